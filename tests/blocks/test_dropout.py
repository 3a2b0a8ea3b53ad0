"""Inverted dropout: what survives training is scaled, evaluation changes nothing."""

import math

import pytest
import torch
import torchvision
from torch import nn

from cnnlab.blocks.dropout import Dropout, Dropout2d, DropPath
from cnnlab.runtime.errors import ArgumentError

BOTH = pytest.mark.parametrize("block", [Dropout, Dropout2d])
ALL = pytest.mark.parametrize("block", [Dropout, Dropout2d, DropPath])


@ALL
def test_evaluation_and_training_at_zero_change_nothing(block: type[nn.Module]) -> None:
    x_NCHW = torch.randn(2, 8, 4, 4)
    assert torch.equal(block(p=0.5).eval()(x_NCHW), x_NCHW)
    assert torch.equal(block(p=0.0)(x_NCHW), x_NCHW)


@BOTH
def test_survivors_are_scaled_by_one_over_the_kept_fraction(block: type[nn.Module]) -> None:
    torch.manual_seed(0)
    values = block(p=0.75)(torch.ones(5, 65, 3, 3)).unique()  # an odd number of activations
    assert values.tolist() == [0.0, 4.0]  # 1 / (1 − 0.75)


def test_neighbours_in_memory_are_zeroed_independently() -> None:
    torch.manual_seed(0)
    count, p = 100_000, 0.3
    zeroed_N2 = Dropout(p)(torch.ones(count, 2)).eq(0).double()  # one number of 64 bits is drawn for both
    for fraction, expected in (*((fraction, p) for fraction in zeroed_N2.mean(0)), (zeroed_N2.prod(1).mean(), p * p)):
        assert abs(fraction.item() - expected) < 5 * math.sqrt(expected * (1 - expected) / count)


@pytest.mark.parametrize("p", [1e-12, 1 - 1e-12])
def test_the_extremes_of_p_keep_all_and_nothing(p: float) -> None:
    kept = Dropout(p)(torch.ones(1000)).ne(0).float().mean().item()
    assert kept == round(1 - p)


def test_the_gradient_goes_through_the_survivors_alone() -> None:
    torch.manual_seed(0)
    x_NC = torch.rand(5, 7).add(1).requires_grad_()
    output_NC = Dropout(0.5)(x_NC)
    output_NC.sum().backward()
    torch.testing.assert_close(x_NC.grad, output_NC.detach() / x_NC.detach())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dtype_and_layout_are_kept(layout: torch.memory_format) -> None:
    x_NCHW = torch.ones(2, 3, 4, 5, dtype=torch.bfloat16).to(memory_format=layout)  # type: ignore[call-overload]
    output_NCHW = Dropout(0.5)(x_NCHW)
    assert (output_NCHW.dtype, output_NCHW.stride()) == (x_NCHW.dtype, x_NCHW.stride())


def test_the_mask_follows_from_torchs_generator() -> None:
    masks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        masks.append(Dropout(0.5)(torch.ones(100)))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_dropout2d_zeroes_whole_channels() -> None:
    torch.manual_seed(0)
    kept_NC = Dropout2d(0.5)(torch.ones(4, 16, 5, 5)).ne(0).sum(dim=(2, 3))
    assert set(kept_NC.flatten().tolist()) == {0, 25}


@pytest.mark.parametrize("shape", [(3, 4, 4), (5, 6), (7,)], ids=["image", "sequence", "features"])
def test_drop_path_zeroes_whole_images_and_draws_as_torchvisions(shape: tuple[int, ...]) -> None:
    x, results = torch.ones(64, *shape), []
    for block in (DropPath(0.25), torchvision.ops.StochasticDepth(0.25, "row")):
        torch.manual_seed(0)
        results.append(block(x))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    factors_NF = results[0].flatten(1)
    assert torch.equal(factors_NF.amin(1), factors_NF.amax(1))
    torch.testing.assert_close(factors_NF.unique(), torch.tensor([0.0, 4 / 3]))


@ALL
@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan"), True])
def test_a_fraction_outside_of_zero_to_one_is_refused(block: type[nn.Module], p: object) -> None:
    with pytest.raises(ArgumentError, match=r"\[0, 1\)") as caught:
        block(p=p)
    assert caught.value.argument == "p"
