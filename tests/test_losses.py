"""The losses, against torch and against hand arithmetic."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cnnlab.losses import LOSSES, CrossEntropy, Quadratic
from cnnlab.runtime.errors import ArgumentError

INDICES = torch.tensor([2, 0, 1, 2])
PROBABILITIES_NK = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.1, 0.8, 0.1], [0.0, 0.5, 0.5]])


@pytest.mark.parametrize("target", [INDICES, PROBABILITIES_NK], ids=["indices", "probabilities"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_equals_torch(target: Tensor, smoothing: float) -> None:
    torch.manual_seed(0)
    logits_NK = torch.randn(4, 3)
    torch.testing.assert_close(
        CrossEntropy(label_smoothing=smoothing)(logits_NK, target),
        F.cross_entropy(logits_NK, target, label_smoothing=smoothing),
    )


def test_cross_entropy_is_the_mean_surprise_at_the_right_class() -> None:
    # softmax of (0, log 3) is (1/4, 3/4): −log(1/4) and −log(3/4), averaged
    logits_NK = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    loss = CrossEntropy()(logits_NK, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx((math.log(4) + math.log(4 / 3)) / 2)


def test_label_smoothing_moves_a_share_to_all_classes() -> None:
    # smoothing 0.2 over 2 classes: the target (1, 0) becomes (0.9, 0.1)
    logits_NK = torch.tensor([[0.0, math.log(3)]])
    loss = CrossEntropy(label_smoothing=0.2)(logits_NK, torch.tensor([0]))
    assert loss.item() == pytest.approx(0.9 * math.log(4) + 0.1 * math.log(4 / 3))


def test_cross_entropy_takes_probabilities() -> None:
    logits_NK = torch.tensor([[0.0, math.log(3)]])
    loss = CrossEntropy()(logits_NK, torch.tensor([[0.5, 0.5]]))
    assert loss.item() == pytest.approx(0.5 * math.log(4) + 0.5 * math.log(4 / 3))


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, math.nan, "much"])
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


def test_a_loss_says_what_it_takes() -> None:
    assert {name: getattr(loss, "takes", None) for name, loss in LOSSES.items()} == {
        "cross_entropy": "logits",
        "bce": "logits",
        "focal": "logits",
        "quadratic": "activations",
    }
