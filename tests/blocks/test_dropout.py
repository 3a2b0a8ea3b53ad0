"""Inverted dropout: what survives training is scaled, evaluation changes nothing."""

import math

import pytest
import torch
from torch import nn

from cnnlab.blocks.dropout import Dropout, Dropout2d
from cnnlab.runtime.errors import ArgumentError

BOTH = pytest.mark.parametrize("block", [Dropout, Dropout2d])


@BOTH
def test_evaluation_changes_nothing(block: type[nn.Module]) -> None:
    x_NCHW = torch.randn(2, 8, 4, 4)
    assert torch.equal(block(p=0.5).eval()(x_NCHW), x_NCHW)


@BOTH
def test_training_at_zero_changes_nothing(block: type[nn.Module]) -> None:
    x_NCHW = torch.randn(2, 8, 4, 4)
    assert torch.equal(block(p=0.0)(x_NCHW), x_NCHW)


@BOTH
def test_survivors_are_scaled_by_one_over_the_kept_share(block: type[nn.Module]) -> None:
    torch.manual_seed(0)
    values = block(p=0.75)(torch.ones(4, 64, 2, 2)).unique()
    assert values.tolist() == [0.0, 4.0]  # 1 / (1 − 0.75)


def test_about_a_share_p_of_the_activations_is_zeroed() -> None:
    torch.manual_seed(0)
    count, p = 100_000, 0.3
    share = Dropout(p)(torch.ones(1, count)).eq(0).double().mean().item()
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / count)


def test_dropout_zeroes_single_pixels() -> None:
    torch.manual_seed(0)
    zeros_in_channel = Dropout(0.5)(torch.ones(1, 1, 16, 16)).eq(0).sum()
    assert 0 < zeros_in_channel < 256


def test_dropout2d_zeroes_whole_channels() -> None:
    torch.manual_seed(0)
    kept_NC = Dropout2d(0.5)(torch.ones(4, 16, 5, 5)).ne(0).sum(dim=(2, 3))
    assert set(kept_NC.flatten().tolist()) == {0, 25}


@BOTH
@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan"), True, "half"])
def test_a_share_outside_of_zero_to_one_is_refused(block: type[nn.Module], p: object) -> None:
    with pytest.raises(ArgumentError, match=r"\[0, 1\)") as caught:
        block(p=p)
    assert caught.value.argument == "p"
