"""Shortcuts without parameters, for residual blocks that change the size."""

from torch import Tensor, nn
from torch.nn import functional as F

from cnnlab.runtime.checks import integer
from cnnlab.runtime.errors import ArgumentError


class ZeroPadShortcut(nn.Module):
    """Every `stride`-th pixel, behind it channels of zeros (arXiv 1512.03385, option A).

    (N, in_channels, H, W) → (N, out_channels, ⌈H / stride⌉, ⌈W / stride⌉). Raises `ArgumentError`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.in_channels = integer("in_channels", in_channels, 1)
        self.out_channels = integer("out_channels", out_channels, 1)
        if out_channels < in_channels:
            raise ArgumentError(
                "out_channels", f"expected at least the {in_channels} channels that reach it, received {out_channels}"
            )
        # the attributes of a window of one pixel, from which the layer table reads what it gives and sees
        self.kernel_size = (1, 1)
        self.stride = (integer("stride", stride, 1),) * 2
        self.padding = (0, 0)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        kept_NCHW = x_NCHW[:, :, :: self.stride[0], :: self.stride[1]]
        return F.pad(kept_NCHW, (0, 0, 0, 0, 0, self.out_channels - self.in_channels))
