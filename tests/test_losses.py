"""The losses, against torch and against hand arithmetic."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.nn import functional as F

from cnnlab.losses import (
    BCE,
    LOSSES,
    CrossEntropy,
    Focal,
    Loss,
    Quadratic,
    check_untrained,
    loss_of_each,
    probabilities,
    takes,
)
from cnnlab.runtime.errors import ArgumentError

INDICES = torch.tensor([2, 0, 1, 2])
PROBABILITIES_NK = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.1, 0.8, 0.1], [0.0, 0.5, 0.5]])
TARGETS = pytest.mark.parametrize("target", [INDICES, PROBABILITIES_NK], ids=["indices", "probabilities"])
WEIGHTS = [0.5, 2.0, 1.25]


def random_logits(count: int = 4, classes: int = 3) -> Tensor:
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(0))


# softmax of (0, log 3) is (1/4, 3/4), sigmoids of (log 3, 0, −log 3) are 3/4, 1/2, 1/4; two images each
SURE_NK = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
SIGMOIDS_NK = torch.tensor([[math.log(3), 0.0, -math.log(3)]] * 2)
OFF, ON = math.log(4), math.log(4 / 3)  # −log(1/4), −log(3/4)


@pytest.mark.parametrize(
    ("loss", "output_NK", "expected"),
    [
        (CrossEntropy(), SURE_NK, (OFF + ON) / 2),
        # smoothing 0.2 over 2 classes: the target (1, 0) becomes (0.9, 0.1)
        (CrossEntropy(label_smoothing=0.2), SURE_NK, (0.9 * OFF + 0.1 * ON + 0.9 * ON + 0.1 * OFF) / 2),
        (CrossEntropy(weight=[3, 0.5]), SURE_NK, (3 * OFF + 0.5 * ON) / 2),
        (Focal(gamma=2), SURE_NK, (OFF * 9 / 16 + ON / 16) / 2),
        (BCE(sum_classes=True), SIGMOIDS_NK, (3 * ON + OFF + 2 * math.log(2)) / 2),
        (BCE(), SIGMOIDS_NK, (3 * ON + OFF + 2 * math.log(2)) / 2 / 3),
        # smoothing 0.3 over 3 classes: (1, 0, 0) becomes (0.8, 0.1, 0.1): −Δt·z = 0.2 · log 3 more
        (BCE(0.3, sum_classes=True), torch.tensor([[math.log(3), 0.0, 0.0]]), ON + math.log(4) + 0.2 * math.log(3)),
        (Quadratic(), torch.tensor([[0.5, 0.0, 1.0], [0.0, 3.0, 0.0]]), (0.5 * (0.25 + 1) + 0.5 * 4) / 2),
    ],
    ids=str,
)
def test_the_loss_of_the_classes_0_and_1_by_hand(loss: nn.Module, output_NK: Tensor, expected: float) -> None:
    assert loss(output_NK, torch.tensor([0, 1])[: len(output_NK)]).item() == pytest.approx(expected)


def test_what_a_loss_takes_is_known_of_torchs_own_too() -> None:
    expected = {"cross_entropy": "logits", "bce": "logits", "focal": "logits", "quadratic": "activations"}
    assert {name: takes(make()) for name, make in LOSSES.items()} == expected
    assert takes(nn.CrossEntropyLoss()) == takes(nn.BCEWithLogitsLoss()) == "logits"
    assert takes(nn.MSELoss()) is None


@TARGETS
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_are_those_of_torch_divided_by_the_images(target: Tensor, smoothing: float) -> None:
    logits_NK = random_logits()
    by_torch_N = F.cross_entropy(logits_NK, target, torch.tensor(WEIGHTS), reduction="none", label_smoothing=smoothing)
    loss = CrossEntropy(smoothing, WEIGHTS)
    torch.testing.assert_close(loss(logits_NK, target), by_torch_N.mean())
    torch.testing.assert_close(loss.each(logits_NK, target), by_torch_N)


def test_balanced_weights_are_those_of_scikit_learn_and_given_ones_stay() -> None:
    for weight, expected_K in (("balanced", sklearn_weights([7, 1, 12])), (WEIGHTS, WEIGHTS)):
        loss = CrossEntropy(weight=weight)
        loss.check_classes(3)
        loss.fit([7, 1, 12])
        assert loss.weight is not None
        assert loss.weight.tolist() == pytest.approx(list(expected_K))


def sklearn_weights(counts: list[int]) -> Any:
    labels_N = np.repeat(range(len(counts)), counts)
    return compute_class_weight("balanced", classes=np.arange(len(counts)), y=labels_N)


@pytest.mark.parametrize(
    ("make", "argument", "message"),
    [
        (lambda: CrossEntropy(-0.1), "label_smoothing", "received -0.1"),
        (lambda: CrossEntropy(1.1), "label_smoothing", "received 1.1"),
        (lambda: Focal(-1), "gamma", "received -1"),
        (lambda: Focal(math.inf), "gamma", "received inf"),
        (lambda: CrossEntropy(weight="ballanced"), "weight", "for each class, received 'ballanced'"),
        (lambda: CrossEntropy(weight=[1, -0.5]), "weight[1]", "expected a number ≥ 0, received -0.5"),
        (lambda: CrossEntropy(weight=[0, 0.0]), "weight", "above 0 for at least one class"),
        (lambda: CrossEntropy(weight=[1.0, 1.0]).check_classes(3), "weight", "expected 3 numbers, .* received 2"),
        (lambda: CrossEntropy(weight=[1.0] * 4).check_classes(3), "weight", "expected 3 numbers, .* received 4"),
        (lambda: Focal(weight="balanced").fit([5, 0, 2]), "weight", "every class, and class 1 has none"),
    ],
)
def test_an_illegal_argument_is_refused_by_its_name(make: Callable[[], Any], argument: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as caught:
        make()
    assert caught.value.argument == argument


OURS = [
    *(CrossEntropy(), CrossEntropy(0.1), CrossEntropy(weight=WEIGHTS), Focal(), Focal(0.5, WEIGHTS)),
    *(BCE(), BCE(0.1, sum_classes=True), Quadratic()),
]


@TARGETS
@pytest.mark.parametrize("loss", OURS, ids=str)
def test_microbatches_and_the_losses_of_each_add_up_to_the_loss(loss: Loss, target: Tensor) -> None:
    logits_NK = random_logits()
    parts = [len(part) / 4 * loss(logits_NK[part], target[part]) for part in torch.arange(4).split([1, 3])]
    torch.testing.assert_close(sum(parts), loss(logits_NK, target))
    each_N = loss_of_each(loss, logits_NK, target)
    assert each_N.shape == (4,)
    torch.testing.assert_close(each_N.mean(), loss(logits_NK, target))
    torch.testing.assert_close(each_N[2:3], loss_of_each(loss, logits_NK[2:3], target[2:3]))


@TARGETS
@pytest.mark.parametrize("weight", [None, WEIGHTS])
def test_focal_without_focus_is_cross_entropy(target: Tensor, weight: Any) -> None:
    logits_NK = random_logits()
    torch.testing.assert_close(
        Focal(gamma=0, weight=weight)(logits_NK, target), CrossEntropy(weight=weight)(logits_NK, target)
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("target", [INDICES, PROBABILITIES_NK.double()], ids=["indices", "probabilities"])
def test_the_gradient_of_focal_is_that_of_finite_differences(gamma: float, target: Tensor) -> None:
    loss = Focal(gamma, WEIGHTS).double()
    logits_NK = random_logits().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: loss(logits, target), logits_NK)


@pytest.mark.parametrize(("gamma", "size"), [(0.5, 1e4), (2.0, 20.0)])
def test_the_gradient_of_focal_is_finite_where_the_network_is_sure(gamma: float, size: float) -> None:
    logits_NK = torch.tensor([[size, 0.0, 0.0], [0.0, 0.0, size]], requires_grad=True)
    loss = Focal(gamma)(logits_NK, torch.tensor([0, 1]))  # surely right, surely wrong
    loss.backward()
    assert logits_NK.grad is not None
    assert bool(logits_NK.grad.isfinite().all())
    # the loss of what is surely right is 0; of what is surely wrong its logit, with slope 1 (of two images)
    assert loss.item() == pytest.approx(size / 2, rel=1e-4)
    torch.testing.assert_close(logits_NK.grad, torch.tensor([[0.0, 0.0, 0.0], [0.0, -0.5, 0.5]]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("loss", [CrossEntropy(0.1), Focal(0.5, WEIGHTS), BCE(), Quadratic()], ids=str)
def test_a_loss_is_computed_in_fp32_under_autocast(loss: Loss) -> None:
    output_NK = random_logits().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = loss(output_NK, INDICES)
    assert under_autocast.dtype == torch.float32
    torch.testing.assert_close(under_autocast, loss(output_NK.float(), INDICES), rtol=1e-6, atol=0)


@TARGETS
def test_bce_equals_torch_with_a_one_for_the_class(target: Tensor) -> None:
    logits_NK = random_logits()
    target_NK = torch.eye(3)[target] if target.dim() == 1 else target
    torch.testing.assert_close(BCE()(logits_NK, target), nn.BCEWithLogitsLoss()(logits_NK, target_NK))


LOGITS_NK = torch.tensor([[0.0, math.log(3)], [1.0, 1.0]])
SOFTMAX, SIGMOID = [[0.25, 0.75], [0.5, 0.5]], [[0.5, 0.75], [0.7310586, 0.7310586]]


@pytest.mark.parametrize(
    ("loss", "output_NK", "expected"),
    [
        *((loss, LOGITS_NK, SOFTMAX) for loss in (Focal(), nn.CrossEntropyLoss(), nn.MultiMarginLoss())),
        (CrossEntropy(), torch.tensor([[0.0, math.log(2)]]), [[1 / 3, 2 / 3]]),  # could be probabilities, too
        *((loss, LOGITS_NK, SIGMOID) for loss in (BCE(), nn.BCEWithLogitsLoss(), nn.MultiLabelSoftMarginLoss())),
        (nn.NLLLoss(), torch.tensor([[0.25, 0.75]]).log(), [[0.25, 0.75]]),
        *((loss, torch.tensor([[0.0, 1.0, 0.5]]), [[0.0, 1.0, 0.5]]) for loss in (Quadratic(), nn.MSELoss())),
        *((loss, LOGITS_NK, SOFTMAX) for loss in (Quadratic(), nn.MSELoss())),  # cannot be probabilities
    ],
)
def test_outputs_become_probabilities_as_their_loss_takes_them(
    loss: nn.Module, output_NK: Tensor, expected: list[list[float]]
) -> None:
    torch.testing.assert_close(probabilities(loss, output_NK), torch.tensor(expected))


@pytest.mark.parametrize(
    "loss",
    [nn.CrossEntropyLoss(label_smoothing=0.1), nn.MultiMarginLoss(), nn.NLLLoss()],
    ids=lambda loss: type(loss).__name__,
)
def test_torchs_own_losses_are_measured_for_each_image(loss: Any) -> None:
    output_NK = random_logits()
    each_N = loss_of_each(loss, output_NK, INDICES)
    one_by_one = [loss(output_NK[n : n + 1], INDICES[n : n + 1]) for n in range(4)]
    torch.testing.assert_close(each_N, torch.stack(one_by_one))
    torch.testing.assert_close(each_N.mean(), loss(output_NK, INDICES))
    assert loss.reduction == "mean"


class Hinge(nn.Module):
    """Someone's own loss, a mean over the batch, with a parameter and an attribute that torch's losses have too."""

    def __init__(self) -> None:
        super().__init__()
        self.margin = nn.Parameter(torch.tensor(1.0))
        self.reduction = "average"

    def forward(self, output_NK: Tensor, target: Tensor) -> Tensor:
        own_N1 = output_NK.gather(1, target[:, None])
        return (self.margin + output_NK - own_N1).clamp_min(0).mean()


def test_a_loss_with_a_trained_parameter_is_refused_by_its_name() -> None:
    with pytest.raises(ArgumentError, match=r"margin: .* only the network's parameters are trained"):
        check_untrained(Hinge())
    check_untrained(Hinge().requires_grad_(False))
    check_untrained(CrossEntropy(weight=WEIGHTS))


def test_a_users_own_loss_is_measured_for_each_image() -> None:
    output_NK, loss = random_logits(), Hinge()
    each_N = loss_of_each(loss, output_NK, INDICES)
    by_hand = [
        sum(max(0.0, 1 + float(output - output_K[label])) for output in output_K) / 3
        for output_K, label in zip(output_NK, INDICES, strict=True)
    ]
    assert each_N.tolist() == pytest.approx(by_hand)
    assert not each_N.requires_grad
    assert loss.reduction == "average"
