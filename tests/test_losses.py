"""The losses, against torch and against hand arithmetic."""

import math
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


@TARGETS
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_equals_torch(target: Tensor, smoothing: float) -> None:
    logits_NK = random_logits()
    torch.testing.assert_close(
        CrossEntropy(label_smoothing=smoothing)(logits_NK, target),
        F.cross_entropy(logits_NK, target, label_smoothing=smoothing),
    )


def test_cross_entropy_is_the_mean_surprise_at_the_right_class() -> None:
    # softmax of (0, log 3) is (1/4, 3/4): −log(1/4) and −log(3/4), averaged
    logits_NK = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    loss = CrossEntropy()(logits_NK, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx((math.log(4) + math.log(4 / 3)) / 2)


def test_label_smoothing_moves_a_fraction_to_all_classes() -> None:
    # smoothing 0.2 over 2 classes: the target (1, 0) becomes (0.9, 0.1)
    logits_NK = torch.tensor([[0.0, math.log(3)]])
    loss = CrossEntropy(label_smoothing=0.2)(logits_NK, torch.tensor([0]))
    assert loss.item() == pytest.approx(0.9 * math.log(4) + 0.1 * math.log(4 / 3))


@pytest.mark.parametrize("smoothing", [-0.1, 1.1])
def test_label_smoothing_outside_of_zero_to_one_is_refused(smoothing: Any) -> None:
    with pytest.raises(ArgumentError) as caught:
        CrossEntropy(label_smoothing=smoothing)
    assert caught.value.argument == "label_smoothing"


def test_quadratic_is_half_the_squared_distance_averaged_over_the_batch() -> None:
    activation_NK = torch.tensor([[0.5, 0.0, 1.0], [0.0, 2.0, 0.0]])
    target_NK = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    # (½·(0.25 + 0 + 1) + ½·4) / 2 = (0.625 + 2) / 2
    assert Quadratic()(activation_NK, target_NK).item() == pytest.approx(1.3125)


def test_quadratic_takes_indices_as_one_hot_vectors() -> None:
    torch.manual_seed(0)
    activation_NK = torch.rand(4, 3)
    one_hot_NK = torch.eye(3)[INDICES]
    torch.testing.assert_close(Quadratic()(activation_NK, INDICES), Quadratic()(activation_NK, one_hot_NK))


def test_the_gradient_of_the_quadratic_loss_is_the_difference() -> None:
    activation_NK = torch.rand(4, 3, requires_grad=True)
    Quadratic()(activation_NK, PROBABILITIES_NK).backward()
    torch.testing.assert_close(activation_NK.grad, (activation_NK.detach() - PROBABILITIES_NK) / 4)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (CrossEntropy(), "logits"),
        (Quadratic(), "activations"),
        (nn.CrossEntropyLoss(), "logits"),
        (nn.BCEWithLogitsLoss(), "logits"),
        (nn.MSELoss(), None),
    ],
    ids=str,
)
def test_what_a_loss_takes_is_known_of_torchs_own_too(loss: nn.Module, expected: str | None) -> None:
    assert takes(loss) == expected


def test_summed_bce_is_the_cross_entropy_of_sigmoid_neurons() -> None:
    logits_NK = random_logits().double()
    a_NK, y_NK = logits_NK.sigmoid(), F.one_hot(INDICES, 3).double()
    cost = -(y_NK * a_NK.log() + (1 - y_NK) * (1 - a_NK).log()).sum() / 4
    torch.testing.assert_close(BCE(sum_classes=True)(logits_NK, INDICES), cost)


def test_each_loss_declares_what_it_takes() -> None:
    assert {name: getattr(loss, "takes", None) for name, loss in LOSSES.items()} == {
        "cross_entropy": "logits",
        "bce": "logits",
        "focal": "logits",
        "quadratic": "activations",
    }


@TARGETS
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_are_those_of_torch_divided_by_the_images(target: Tensor, smoothing: float) -> None:
    logits_NK = random_logits()
    by_torch_N = F.cross_entropy(logits_NK, target, torch.tensor(WEIGHTS), reduction="none", label_smoothing=smoothing)
    loss = CrossEntropy(smoothing, WEIGHTS)
    torch.testing.assert_close(loss(logits_NK, target), by_torch_N.mean())
    torch.testing.assert_close(loss.each(logits_NK, target), by_torch_N)


def test_a_image_counts_by_the_weight_of_its_class() -> None:
    # −log(1/4) for class 0, of weight 3, and −log(3/4) for class 1, of weight 0.5; two images
    logits_NK = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    loss = CrossEntropy(weight=[3, 0.5])(logits_NK, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx((3 * math.log(4) + 0.5 * math.log(4 / 3)) / 2)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels_N = np.repeat([0, 1, 2], [7, 1, 12])
    loss = CrossEntropy(weight="balanced")
    loss.fit([7, 1, 12])
    expected_K = compute_class_weight("balanced", classes=np.arange(3), y=labels_N)
    assert loss.weight is not None
    np.testing.assert_allclose(loss.weight.numpy(), expected_K, rtol=1e-6)


def test_balanced_weights_every_class_the_same() -> None:
    # a network that knows nothing: each class's images have a loss of N/K · log K together
    loss = CrossEntropy(weight="balanced")
    loss.fit([1, 3])
    each_N = loss.each(torch.zeros(4, 2), torch.tensor([0, 1, 1, 1]))
    assert each_N[0].item() == pytest.approx(2 * math.log(2))
    assert each_N[1:].sum().item() == pytest.approx(2 * math.log(2))


def test_given_weights_stay_whatever_the_counts() -> None:
    loss = CrossEntropy(weight=WEIGHTS)
    loss.fit([1, 1, 100])
    assert loss.weight is not None
    assert loss.weight.tolist() == WEIGHTS


def test_balanced_weights_need_images_of_every_class() -> None:
    with pytest.raises(ArgumentError, match="balanced needs images of every class, and class 1 has none") as caught:
        Focal(weight="balanced").fit([5, 0, 2])
    assert caught.value.argument == "weight"


@pytest.mark.parametrize(
    ("weight", "argument", "message"),
    [
        ("ballanced", "weight", "expected balanced or a number for each class, received 'ballanced'"),
        ([1, -0.5], "weight[1]", "expected a number ≥ 0, received -0.5"),
        ([1, "x"], "weight[1]", "received 'x'"),
        ([0, 0.0], "weight", "above 0 for at least one class"),
    ],
)
def test_weights_that_make_no_sense_are_refused(weight: Any, argument: str, message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        CrossEntropy(weight=weight)
    assert caught.value.argument == argument
    assert message in caught.value.message


@pytest.mark.parametrize("count", [2, 4])
def test_another_number_of_weights_than_classes_is_refused(count: int) -> None:
    with pytest.raises(ArgumentError, match=f"expected 3 numbers, one for each class of the data, received {count}"):
        CrossEntropy(weight=[1.0] * count).check_classes(3)


@pytest.mark.parametrize("weight", [None, "balanced", WEIGHTS])
def test_as_many_weights_as_classes_are_taken(weight: Any) -> None:
    loss = CrossEntropy(weight=weight)
    loss.check_classes(3)
    assert loss.balanced == (weight == "balanced")


OURS = {
    "cross_entropy": CrossEntropy(),
    "smoothed": CrossEntropy(0.1),
    "weighted": CrossEntropy(weight=WEIGHTS),
    "focal": Focal(),
    "weighted focal": Focal(0.5, WEIGHTS),
    "bce": BCE(),
    "summed bce": BCE(0.1, sum_classes=True),
    "quadratic": Quadratic(),
}


@TARGETS
@pytest.mark.parametrize("loss", OURS.values(), ids=OURS.keys())
def test_the_parts_of_a_batch_add_up_to_it(loss: Loss, target: Tensor) -> None:
    logits_NK = random_logits()
    parts = [len(part) / 4 * loss(logits_NK[part], target[part]) for part in torch.arange(4).split([1, 3])]
    torch.testing.assert_close(sum(parts), loss(logits_NK, target))


@TARGETS
@pytest.mark.parametrize("loss", OURS.values(), ids=OURS.keys())
def test_the_losses_of_each_average_to_the_loss(loss: Loss, target: Tensor) -> None:
    logits_NK = random_logits()
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


def test_focal_discounts_easy_images() -> None:
    # p of the right class is 3/4 and 1/4: (1/4)² · log(4/3) and (3/4)² · log 4, averaged
    logits_NK = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    loss = Focal(gamma=2)(logits_NK, torch.tensor([1, 0]))
    assert loss.item() == pytest.approx((math.log(4 / 3) / 16 + math.log(4) * 9 / 16) / 2)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("target", [INDICES, PROBABILITIES_NK.double()], ids=["indices", "probabilities"])
def test_the_gradient_of_focal_is_that_of_finite_differences(gamma: float, target: Tensor) -> None:
    loss = Focal(gamma, WEIGHTS).double()
    logits_NK = random_logits().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: loss(logits, target), logits_NK)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("size", [20.0, 1e4])
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


@pytest.mark.parametrize("gamma", [-1, math.inf])
def test_a_gamma_that_makes_no_sense_is_refused(gamma: Any) -> None:
    with pytest.raises(ArgumentError) as caught:
        Focal(gamma=gamma)
    assert caught.value.argument == "gamma"


@TARGETS
def test_bce_equals_torch_with_a_one_for_the_class(target: Tensor) -> None:
    logits_NK = random_logits()
    target_NK = torch.eye(3)[target] if target.dim() == 1 else target
    torch.testing.assert_close(BCE()(logits_NK, target), nn.BCEWithLogitsLoss()(logits_NK, target_NK))


def test_bce_of_three_classes_by_hand() -> None:
    # sigmoids 3/4, 1/2, 1/4 against (1, 0, 0): log(4/3) + log 2 + log(4/3), and a third of it
    logits_NK = torch.tensor([[math.log(3), 0.0, -math.log(3)]])
    summed = 2 * math.log(4 / 3) + math.log(2)
    assert BCE(sum_classes=True)(logits_NK, torch.tensor([0])).item() == pytest.approx(summed)
    assert BCE()(logits_NK, torch.tensor([0])).item() == pytest.approx(summed / 3)


def test_bce_smooths_as_cross_entropy_does() -> None:
    # smoothing 0.3 over 3 classes: (0, 0, 1) becomes (0.1, 0.1, 0.8)
    logits_NK = random_logits(1)
    smoothed_NK = torch.tensor([[0.1, 0.1, 0.8]])
    torch.testing.assert_close(BCE(0.3)(logits_NK, torch.tensor([2])), BCE()(logits_NK, smoothed_NK))


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy(),
        Focal(),
        nn.CrossEntropyLoss(),
        nn.MultiMarginLoss(),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_the_logits_of_these_become_probabilities_together(loss: nn.Module) -> None:
    # even where every logit could be a probability
    logits_NK = torch.tensor([[0.0, math.log(2)], [1.0, 1.0]])
    torch.testing.assert_close(probabilities(loss, logits_NK), torch.tensor([[1 / 3, 2 / 3], [0.5, 0.5]]))


@pytest.mark.parametrize(
    "loss", [BCE(), nn.BCEWithLogitsLoss(), nn.MultiLabelSoftMarginLoss()], ids=lambda loss: type(loss).__name__
)
def test_the_logits_of_these_become_probabilities_one_by_one(loss: nn.Module) -> None:
    logits_NK = torch.tensor([[0.0, math.log(3)]])
    torch.testing.assert_close(probabilities(loss, logits_NK), torch.tensor([[0.5, 0.75]]))


def test_log_probabilities_become_probabilities() -> None:
    log_p_NK = torch.tensor([[0.25, 0.75]]).log()
    torch.testing.assert_close(probabilities(nn.NLLLoss(), log_p_NK), torch.tensor([[0.25, 0.75]]))


@pytest.mark.parametrize("loss", [Quadratic(), nn.MSELoss()], ids=lambda loss: type(loss).__name__)
def test_activations_are_taken_as_they_are_where_they_can_be_probabilities(loss: nn.Module) -> None:
    activation_NK = torch.tensor([[0.0, 1.0, 0.5]])
    assert torch.equal(probabilities(loss, activation_NK), activation_NK)
    beyond_NK = torch.tensor([[-0.5, 1.0, 0.5]])
    torch.testing.assert_close(probabilities(loss, beyond_NK), beyond_NK.softmax(1))


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.MultiMarginLoss(),
        nn.NLLLoss(),
    ],
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
