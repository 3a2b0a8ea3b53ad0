"""Pooling: downsampling by the largest or the mean value of each window."""

import torch
from torch import Tensor, nn

from cnnlab.blocks.facts import Facts, Shape, expect_channels, expect_image
from cnnlab.blocks.receptive_field import whole
from cnnlab.blocks.window import Pair, Window, check_pool_padding, sides
from cnnlab.runtime.checks import integer

Size = int | tuple[int, int]


def _window(kernel_size: Size, stride: Size | None, padding: Size) -> tuple[Pair, Pair, Pair]:
    kernel, paddings = sides("kernel_size", kernel_size, 1), sides("padding", padding, 0)
    check_pool_padding(padding, kernel_size)
    return kernel, kernel if stride is None else sides("stride", stride, 1), paddings


class MaxPool(nn.MaxPool2d):
    """The largest value of each window: (N, C, H, W) → (N, C, H', W').

    H' = ⌊(H + 2·padding − dilation·(kernel_size − 1) − 1) / stride⌋ + 1; `stride` is `kernel_size` where it is
    not given. Raises `ArgumentError`.
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(
            *_window(kernel_size, stride, padding),
            dilation=sides("dilation", dilation, 1),
            ceil_mode=ceil_mode,
        )


class AvgPool(nn.AvgPool2d):
    """The mean of each window: (N, C, H, W) → (N, C, H', W'), sizes as in `MaxPool`. Raises `ArgumentError`."""

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__(
            *_window(kernel_size, stride, padding), ceil_mode=ceil_mode, count_include_pad=count_include_pad
        )


class Subsampling(AvgPool):
    """The mean of each window times a learned coefficient, plus a learned bias, one of each per channel.

    (N, C, H, W) → (N, C, H', W'): LeNet-5's layers S2 and S4 (LeCun et al. 1998, section II.B), which sum the four
    pixels of a window instead, so that their coefficient is a quarter of this one. `stride` is `kernel_size` where it
    is not given. Raises `ArgumentError`.
    """

    def __init__(self, num_channels: int, kernel_size: Size = 2, stride: Size | None = None) -> None:
        super().__init__(kernel_size, stride)
        self.weight = nn.Parameter(torch.ones(integer("num_channels", num_channels, 1)))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def facts(self, shape: Shape) -> Facts:
        expect_image(shape)
        expect_channels("num_channels", len(self.weight), shape)
        return Window.of(self).facts(shape, shape[0])

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return super().forward(x_NCHW) * self.weight[:, None, None] + self.bias[:, None, None]


class AdaptiveAvgPool(nn.AdaptiveAvgPool2d):
    """Means over windows whose number is `output_size`: (N, C, H, W) → (N, C, *output_size)."""

    def __init__(self, output_size: Size) -> None:
        super().__init__(sides("output_size", output_size, 1))


class AdaptiveMaxPool(nn.AdaptiveMaxPool2d):
    """Maxima over windows whose number is `output_size`: (N, C, H, W) → (N, C, *output_size)."""

    def __init__(self, output_size: Size) -> None:
        super().__init__(sides("output_size", output_size, 1))


class GlobalAvgPool(nn.Module):
    """The mean of each channel: (N, C, H, W) → (N, C)."""

    def facts(self, shape: Shape) -> Facts:
        expect_image(shape)
        return Facts(shape[:1], field=whole)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW.mean(dim=(2, 3))


class GlobalMaxPool(nn.Module):
    """The largest value of each channel: (N, C, H, W) → (N, C)."""

    facts = GlobalAvgPool.facts

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW.amax(dim=(2, 3))
