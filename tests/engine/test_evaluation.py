import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cnnlab.engine.evaluation import VIEWS, Collector, collect, evaluate
from cnnlab.engine.execution import Execution
from cnnlab.runtime.batch import Batch


def images(count: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_NCHW = torch.randn(count, 3, 2, 2, generator=generator)
    return x_NCHW, torch.randint(0, 4, (count,), generator=generator)


def batches(*sizes: int) -> list[Batch]:
    x_NCHW, y_N = images(sum(sizes))
    parts = zip(x_NCHW.split(sizes), y_N.split(sizes), torch.arange(sum(sizes)).split(sizes), strict=True)
    return [Batch(*part) for part in parts]


def network(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 5, 1), *middle, nn.Flatten(), nn.Linear(20, 4))


@pytest.mark.parametrize("sizes", [(11,), (5, 5, 1)])
def test_unequal_batches_give_the_mean_over_all_images(sizes: tuple[int, ...]) -> None:
    model = network()
    x_NCHW, y_N = images()
    logits_NK = model(x_NCHW).detach().double()
    by_hand = [-float(logits_K.log_softmax(0)[y]) for logits_K, y in zip(logits_NK, y_N, strict=True)]
    measured = evaluate(model, F.cross_entropy, batches(*sizes), Execution())
    assert measured["loss"] == pytest.approx(sum(by_hand) / 11, rel=1e-6)
    assert measured["accuracy"] == sum(int(k) == int(y) for k, y in zip(logits_NK.argmax(1), y_N, strict=True)) / 11


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("collected", [True, False])
def test_the_network_is_in_evaluation_mode_and_left_as_it_was(training: bool, collected: bool) -> None:
    model, seen = network(nn.Dropout(0.5), nn.BatchNorm2d(5)).train(training), []
    model[2].eval()  # frozen
    model.register_forward_hook(lambda module, arguments, output: seen.append((module.training, output.requires_grad)))
    modes, before = [module.training for module in model.modules()], copy.deepcopy(model.state_dict())
    if collected:
        collect(model, batches(4), Execution())
    else:
        evaluate(model, F.cross_entropy, batches(4), Execution())
    with pytest.raises(RuntimeError):
        collect(model, [Batch(torch.zeros(1, 9, 2, 2), torch.zeros(1), torch.zeros(1))], Execution())
    assert seen == [(False, False)]
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_precision_is_that_of_the_execution() -> None:
    model, seen = network(), []
    model.register_forward_hook(lambda module, arguments, output: seen.append(output.dtype))
    in_bf16 = evaluate(model, F.cross_entropy, batches(5, 6), Execution("bf16"))
    in_fp32 = evaluate(model, F.cross_entropy, batches(5, 6), Execution("fp32"))
    assert seen == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    assert in_bf16["loss"] == pytest.approx(in_fp32["loss"], rel=0.03)
    assert collect(model, batches(3), Execution("bf16")).output_NK.dtype == torch.float32


class CountedLoss(nn.CrossEntropyLoss):
    """Counts the batches it has trained on."""

    batches = 0

    def forward(self, output_NK: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.batches += self.training
        return super().forward(output_NK, target)


def test_a_loss_with_a_mode_is_evaluated_in_evaluation_mode_and_left_in_its_own() -> None:
    loss = CountedLoss()
    evaluate(network(), loss, batches(3, 3), Execution())
    assert loss.batches == 0
    assert loss.training


def test_collect_returns_the_output_of_each_image_in_order() -> None:
    model = network(nn.Dropout(0.5), nn.BatchNorm2d(5))
    x_NCHW, y_N = images()
    outputs = collect(model, batches(5, 5, 1), Execution())
    torch.testing.assert_close(outputs.output_NK, model.eval()(x_NCHW).detach())
    assert torch.equal(outputs.target_N, y_N)
    assert outputs.index_N.tolist() == list(range(11))


@pytest.mark.parametrize("name", ["none", "flip"])
def test_one_pass_gives_the_figures_and_the_output_of_each_image(name: str) -> None:
    model, collector = network(nn.Dropout(0.5)), Collector()
    measured = evaluate(model, F.cross_entropy, batches(5, 6), Execution(), views=VIEWS[name], collector=collector)
    outputs, alone = collector.read(), collect(model, batches(5, 6), Execution(), VIEWS[name])
    for field in ("output_NK", "target_N", "index_N"):
        assert torch.equal(getattr(outputs, field), getattr(alone, field))
    assert measured["loss"] == pytest.approx(F.cross_entropy(outputs.output_NK, outputs.target_N).item(), rel=1e-6)
    assert measured["accuracy"] == (outputs.output_NK.argmax(1) == outputs.target_N).double().mean()


def planted(row: int, column: int) -> torch.Tensor:
    """An image of 1×3×4 with one bright pixel."""
    x_NCHW = torch.zeros(1, 1, 3, 4)
    x_NCHW[0, 0, row, column] = 1
    return x_NCHW


def bright(x_NCHW: torch.Tensor) -> list[list[int]]:
    assert x_NCHW.shape == (1, 1, 3, 4)
    return x_NCHW[0, 0].nonzero().tolist()


def test_the_views_are_the_image_its_mirror_image_and_their_shifts_by_one_pixel_each_way() -> None:
    names = ("none", "flip", "shift", "flip_shift")
    places = {name: [tuple(place) for view in VIEWS[name] for place in bright(view(planted(1, 1)))] for name in names}
    shifted, mirrored = [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)], [(1, 2), (0, 2), (2, 2), (1, 1), (1, 3)]
    expected = {"none": [], "flip": [(1, 1), (1, 2)], "shift": shifted, "flip_shift": [*shifted, *mirrored]}
    assert places == expected


def test_what_is_shifted_in_repeats_the_edge() -> None:
    _, up, down, left, right = VIEWS["shift"]
    assert bright(down(planted(0, 1))) == [[0, 1], [1, 1]]
    assert bright(up(planted(2, 1))) == [[1, 1], [2, 1]]
    assert bright(right(planted(1, 0))) == [[1, 0], [1, 1]]
    assert bright(left(planted(1, 3))) == [[1, 2], [1, 3]]
    assert bright(up(planted(0, 1))) == []  # and what is shifted out is gone


def test_what_is_shifted_diagonally_comes_in_mirrored_without_the_edge() -> None:
    _, down_right, up_left, *_ = VIEWS["flip_diagonal"]
    assert bright(down_right(planted(1, 1))) == [[0, 0], [0, 2], [2, 0], [2, 2]]
    assert bright(down_right(planted(0, 0))) == [[1, 1]]
    assert bright(up_left(planted(1, 2))) == [[0, 1], [0, 3], [2, 1], [2, 3]]


def test_a_view_takes_images_of_one_pixel_and_several_channels() -> None:
    x_NCHW = torch.randn(2, 3, 1, 1)
    assert all(torch.equal(view(x_NCHW), x_NCHW) for name in VIEWS for view in VIEWS[name])


def test_the_weights_of_the_views_sum_to_one() -> None:
    assert [sum(VIEWS[name].values()) for name in VIEWS] == pytest.approx([0, 1, 1, 1, 1])


@pytest.mark.parametrize("name", ["flip", "shift", "flip_shift"])
def test_the_output_is_the_mean_over_the_views(name: str) -> None:
    model = network()
    x_NCHW, _ = images()
    outputs = collect(model, batches(5, 6), Execution(), VIEWS[name])
    by_hand = [model(view(x_NCHW)).detach() for view in VIEWS[name]]
    torch.testing.assert_close(outputs.output_NK, sum(by_hand) / len(by_hand))
    assert (outputs.output_NK - model(x_NCHW)).abs().max() > 1e-3


def test_the_image_weighs_as_much_as_its_diagonal_shifts() -> None:
    """arXiv 2404.00498, section 3.5: mirrored or not, and half of the weight for the two that are moved."""
    model = network()
    x_NCHW, _ = images()
    padded = F.pad(x_NCHW, (1, 1, 1, 1), mode="reflect")
    outputs_NK = [model(x) + model(x.flip(3)) for x in (x_NCHW, padded[..., :2, :2], padded[..., 2:, 2:])]
    by_hand = (outputs_NK[0] + (outputs_NK[1] + outputs_NK[2]) / 2) / 4
    outputs = collect(model, batches(5, 6), Execution(), VIEWS["flip_diagonal"])
    torch.testing.assert_close(outputs.output_NK, by_hand.detach())


def test_a_meter_sees_every_batch_and_its_figures_stand_beside_the_loss() -> None:
    class Largest:
        """A meter that keeps the largest output it was shown."""

        lower_is_better, largest = (), -math.inf

        def update(self, output_NK: torch.Tensor, target: torch.Tensor) -> None:
            assert len(output_NK) == len(target)
            self.largest = max(self.largest, float(output_NK.max()))

        def read(self) -> dict[str, float]:
            return {"largest": self.largest}

    model = network()
    measured = evaluate(model, F.cross_entropy, batches(5, 6), Execution(), Largest())
    assert list(measured) == ["loss", "accuracy", "largest"]
    assert measured["largest"] == pytest.approx(float(model(images()[0]).detach().max()))
