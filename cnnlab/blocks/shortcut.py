"""Shortcuts without parameters, for residual blocks that change the size."""

from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional as F

from cnnlab.blocks.facts import MOST_CHANNELS, Facts, Shape, expect_channels
from cnnlab.blocks.window import LONGEST, Axis, Window
from cnnlab.runtime.checks import integer
from cnnlab.runtime.errors import ArgumentError


class ZeroPadShortcut(nn.Module):
    """Every `stride`-th pixel, and channels of zeros after those of the input (arXiv 1512.03385, option A).

    (N, in_channels, H, W) → (N, `out_channels`, ⌈H / stride⌉, ⌈W / stride⌉). Raises `ArgumentError`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.in_channels = integer("in_channels", in_channels, 1)
        self.out_channels = integer("out_channels", out_channels, 1, MOST_CHANNELS)
        if out_channels < in_channels:
            raise ArgumentError(
                "out_channels", f"expected at least the {in_channels} channels that reach it, received {out_channels}"
            )
        self.stride = integer("stride", stride, 1, LONGEST)

    def facts(self, shape: Shape) -> Facts:
        expect_channels("in_channels", self.in_channels, shape)
        pixel = Axis(kernel=1, stride=self.stride, border=0, dilation=1)
        return replace(Window(pixel, pixel).facts(shape, self.out_channels), label="")

    def forward(self, x_NCHW: Tensor) -> Tensor:
        kept_NCHW = x_NCHW[:, :, :: self.stride, :: self.stride]
        return F.pad(kept_NCHW, (0, 0, 0, 0, 0, self.out_channels - self.in_channels))
