"""Pooling by hand on small images."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnnlab.blocks.pooling import AdaptiveAvgPool, AdaptiveMaxPool, AvgPool, GlobalAvgPool, GlobalMaxPool, MaxPool
from cnnlab.runtime.errors import ArgumentError


def counting(height: int, width: int) -> Tensor:
    """One image that counts 0, 1, 2, … row by row."""
    return torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width)


def test_max_pool_keeps_the_largest_of_each_window() -> None:
    assert MaxPool(2)(counting(4, 4)).tolist() == [[[[5.0, 7.0], [13.0, 15.0]]]]


def test_avg_pool_keeps_the_mean_of_each_window() -> None:
    # (0 + 1 + 4 + 5) / 4 = 2.5
    assert AvgPool(2)(counting(4, 4)).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]


@pytest.mark.parametrize("block", [MaxPool, AvgPool])
def test_the_stride_is_the_kernel_where_it_is_not_given(block: type[nn.Module]) -> None:
    assert block(kernel_size=(2, 3))(counting(6, 6)).shape == (1, 1, 3, 2)


def test_max_pool_takes_every_second_pixel_at_dilation_two() -> None:
    # the window covers the columns 0 and 2, then 1 and 3
    assert MaxPool((1, 2), stride=1, dilation=2)(counting(1, 4)).tolist() == [[[[2.0, 3.0]]]]


def test_the_padding_of_max_pool_never_wins() -> None:
    assert MaxPool(3, stride=1, padding=1)(torch.full((1, 1, 3, 3), -7.0)).eq(-7.0).all()


@pytest.mark.parametrize(("counted", "corner"), [(True, 9.0 * 4 / 9), (False, 9.0)])
def test_avg_pool_counts_its_padding_or_does_not(counted: bool, corner: float) -> None:
    pooled = AvgPool(3, stride=1, padding=1, count_include_pad=counted)(torch.full((1, 1, 3, 3), 9.0))
    assert pooled[0, 0, 0, 0].item() == pytest.approx(corner)


def test_adaptive_avg_pool_gives_the_mean_of_each_half() -> None:
    assert AdaptiveAvgPool((1, 2))(counting(2, 4)).tolist() == [[[[2.5, 4.5]]]]


def test_adaptive_max_pool_gives_the_largest_of_each_half() -> None:
    assert AdaptiveMaxPool((1, 2))(counting(2, 4)).tolist() == [[[[5.0, 7.0]]]]


def test_global_avg_pool_gives_one_mean_per_channel() -> None:
    x_NCHW = torch.stack([counting(2, 2)[0, 0], counting(2, 2)[0, 0] + 10]).unsqueeze(0)
    assert GlobalAvgPool()(x_NCHW).tolist() == [[1.5, 11.5]]


def test_global_max_pool_gives_one_maximum_per_channel() -> None:
    x_NCHW = torch.stack([counting(2, 2)[0, 0], -counting(2, 2)[0, 0]]).unsqueeze(0)
    assert GlobalMaxPool()(x_NCHW).tolist() == [[3.0, 0.0]]


@pytest.mark.parametrize("block", [MaxPool, AvgPool])
@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"kernel_size": 0}, "kernel_size"),
        ({"kernel_size": (2, 2, 2)}, "kernel_size"),
        ({"kernel_size": 2, "stride": 0}, "stride"),
        ({"kernel_size": 2, "padding": -1}, "padding"),
        ({"kernel_size": 3, "padding": 2}, "padding"),  # more than half of the kernel
        ({"kernel_size": (5, 3), "padding": (2, 2)}, "padding"),
    ],
    ids=str,
)
def test_a_value_out_of_range_names_its_argument(
    block: type[nn.Module], settings: dict[str, Any], argument: str
) -> None:
    with pytest.raises(ArgumentError) as caught:
        block(**settings)
    assert caught.value.argument == argument


def test_max_pool_refuses_a_dilation_of_zero() -> None:
    with pytest.raises(ArgumentError) as caught:
        MaxPool(2, dilation=0)
    assert caught.value.argument == "dilation"


@pytest.mark.parametrize("block", [AdaptiveAvgPool, AdaptiveMaxPool])
def test_an_adaptive_pool_refuses_an_empty_output(block: type[nn.Module]) -> None:
    with pytest.raises(ArgumentError) as caught:
        block(output_size=(2, 0))
    assert caught.value.argument == "output_size"


def test_pooling_before_relu_changes_neither_outputs_nor_gradients() -> None:
    """So that `model=cnn`, whose ReLU comes behind, is the network in which it comes before."""
    outputs, gradients = [], []
    for blocks in ((nn.ReLU(), MaxPool(2)), (MaxPool(2), nn.ReLU())):
        x_NCHW = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # with ties
        x_NCHW.requires_grad_()
        output_NCHW = nn.Sequential(*blocks)(x_NCHW)
        (output_NCHW * torch.arange(192).view(4, 3, 4, 4)).sum().backward()
        outputs.append(output_NCHW.detach())
        gradients.append(x_NCHW.grad)
    assert torch.equal(*outputs)
    assert torch.equal(*gradients)
