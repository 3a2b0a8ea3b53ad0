from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnlab.engine.evaluation import evaluate
from cnnlab.engine.examination import MISTAKES, Examiner
from cnnlab.engine.execution import Execution
from cnnlab.runtime.batch import Batch

IMAGES, CLASSES = 60, 3
X = torch.rand(IMAGES, 1, 2, 2, generator=torch.Generator().manual_seed(1))
Y = torch.arange(IMAGES) % CLASSES


class Network(nn.Module):
    """Works in place on its input, which a batch's images are."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return 4 * x_NCHW.mul_(2).flatten(1)[:, :CLASSES]


def batches() -> Iterator[Batch]:
    for start in range(0, IMAGES, 16):
        rows = slice(start, start + 16)
        yield Batch(X[rows].clone(), Y[rows], torch.arange(IMAGES)[rows])


def judge(output_NK: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    return output_NK.softmax(1), F.cross_entropy(output_NK, target_N, reduction="none")


def examine(examiner: Examiner) -> dict[str, float]:
    return evaluate(Network(), F.cross_entropy, examiner.watch(batches()), Execution(), collector=examiner)


OUTPUT_NK = 8 * X.flatten(1)[:, :CLASSES]


def test_the_wrong_images_with_the_largest_loss_are_kept_as_they_were() -> None:
    examiner = Examiner(judge)
    examine(examiner)
    found = examiner.read("val", 5, 1)
    probability_NK, loss_N = judge(OUTPUT_NK, Y)
    wrong = [n for n in loss_N.argsort(descending=True).tolist() if OUTPUT_NK[n].argmax() != Y[n]]
    assert [one.index for one in found.mistakes] == wrong[:MISTAKES]
    assert found.images == IMAGES
    for one in found.mistakes:
        assert torch.equal(one.x_CHW, X[one.index])  # not what the network made of it
        assert (one.label, one.prediction) == (int(Y[one.index]), int(OUTPUT_NK[one.index].argmax()))
        assert abs(one.probability - float(probability_NK[one.index].max())) < 1e-6
    assert examiner.first is not None
    assert torch.equal(examiner.first.x_NCHW, X[:16])


def test_counts_give_precision_and_recall() -> None:
    examiner = Examiner(judge)
    examine(examiner)
    found = examiner.read("val", 5, 1)
    assert found.positives is not None
    assert found.negatives is not None
    probability_NK, _ = judge(OUTPUT_NK, Y)
    for label in range(CLASSES):
        for place in (0, 30, 63, 126):
            above_N = probability_NK[:, label] >= place / 126
            assert int(found.positives[label, place:].sum()) == int((above_N & (label == Y)).sum())
            assert int(found.negatives[label, place:].sum()) == int((above_N & (label != Y)).sum())


def test_it_changes_neither_figures_nor_generators_and_survives_a_judge_that_fails() -> None:
    def failing(output_NK: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
        torch.rand(3)
        output_NK.zero_()
        raise RuntimeError("of one image alone")

    plain = evaluate(Network(), F.cross_entropy, batches(), Execution())
    before = torch.get_rng_state()
    examiner = Examiner(failing)
    assert examine(examiner) == plain
    assert torch.equal(torch.get_rng_state(), before)
    assert str(examiner.error) == "of one image alone"


def test_many_classes_have_no_curves() -> None:
    examiner = Examiner(lambda output_NK, target_N: (output_NK, output_NK.sum(1)))
    batch = Batch(torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]), torch.arange(2))
    for one in examiner.watch([batch]):
        examiner.add(torch.rand(2, 1000), one)
    assert examiner.read("val", 1, 1).positives is None
