"""Pooling by hand on small images."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnnlab.blocks.pooling import (
    AdaptiveAvgPool,
    AdaptiveMaxPool,
    AvgPool,
    GlobalAvgPool,
    GlobalMaxPool,
    MaxPool,
    Subsampling,
)
from cnnlab.runtime.errors import ArgumentError


def counting(height: int, width: int) -> Tensor:
    """One image that counts 0, 1, 2, … row by row."""
    return torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width)


def test_max_pool_keeps_the_largest_of_each_window_and_avg_pool_the_mean() -> None:
    assert MaxPool(2)(counting(4, 4)).tolist() == [[[[5.0, 7.0], [13.0, 15.0]]]]
    assert AvgPool(2)(counting(4, 4)).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]  # (0 + 1 + 4 + 5) / 4 = 2.5


def test_subsampling_learns_a_coefficient_and_a_bias_for_each_channel() -> None:
    pool, x_NCHW = Subsampling(2), torch.cat((counting(4, 4), counting(4, 4)), 1)
    torch.testing.assert_close(pool(x_NCHW), AvgPool(2)(x_NCHW), rtol=0, atol=0)  # as it starts
    with torch.no_grad():
        pool.weight.copy_(torch.tensor([1.0, 2.0]))
        pool.bias.copy_(torch.tensor([0.5, -1.0]))
    assert pool(x_NCHW).tolist() == [[[[3, 5], [11, 13]], [[4, 8], [20, 24]]]]  # 2.5 + 0.5, 2·2.5 − 1


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


def test_adaptive_pools_give_the_mean_or_the_largest_of_each_half() -> None:
    assert AdaptiveAvgPool((1, 2))(counting(2, 4)).tolist() == [[[[2.5, 4.5]]]]
    assert AdaptiveMaxPool((1, 2))(counting(2, 4)).tolist() == [[[[5.0, 7.0]]]]


def test_global_pools_give_one_mean_or_maximum_per_channel() -> None:
    x_NCHW = torch.cat([counting(2, 2), 10 - counting(2, 2)], dim=1)
    assert GlobalAvgPool()(x_NCHW).tolist() == [[1.5, 8.5]]
    assert GlobalMaxPool()(x_NCHW).tolist() == [[3.0, 10.0]]


@pytest.mark.parametrize(
    ("block", "settings", "argument"),
    [
        (MaxPool, {"kernel_size": (2, 2, 2)}, "kernel_size"),
        (AvgPool, {"kernel_size": 2, "stride": 0}, "stride"),
        (MaxPool, {"kernel_size": 3, "padding": 2}, "padding"),  # more than half of the kernel
        (AvgPool, {"kernel_size": (5, 3), "padding": (2, 2)}, "padding"),
        (MaxPool, {"kernel_size": 2, "dilation": 0}, "dilation"),
        (AdaptiveAvgPool, {"output_size": (2, 0)}, "output_size"),
        (AdaptiveMaxPool, {"output_size": (2, 0)}, "output_size"),
    ],
    ids=str,
)
def test_a_value_out_of_range_names_its_argument(
    block: type[nn.Module], settings: dict[str, Any], argument: str
) -> None:
    with pytest.raises(ArgumentError) as caught:
        block(**settings)
    assert caught.value.argument == argument
