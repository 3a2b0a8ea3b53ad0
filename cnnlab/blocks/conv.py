"""Convolutions: of all channels, of each by itself, both one after the other, and the transposed."""

from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional as F

from cnnlab.blocks.facts import MOST_CHANNELS, Facts, Shape
from cnnlab.blocks.torch_facts import convolution
from cnnlab.blocks.window import sides
from cnnlab.runtime.checks import integer, number, one_of
from cnnlab.runtime.errors import ArgumentError

PADDING_MODES = ("zeros", "reflect", "replicate", "circular", "constant")
MOST_PADDING = 1e6


class Conv(nn.Conv2d):
    """`out_channels` filters that slide over an image: (N, in_channels, H, W) → (N, out_channels, H', W').

    H' = ⌊(H + 2·padding − dilation·(kernel_size − 1) − 1) / stride⌋ + 1, and the same for W' (`torch.nn.Conv2d`).
    `padding` is a whole number, a pair, `same` (H' = H, stride 1 only) or `valid` (none). `padding_value` is the
    constant that fills the border when `padding_mode` is `constant`.

    Raises `ArgumentError` for a value out of range.
    """

    facts = convolution

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        padding_value: float = 0.0,
    ) -> None:
        integer("out_channels", out_channels, 1, MOST_CHANNELS)
        strides = sides("stride", stride, 1)
        if isinstance(padding, str):
            one_of("padding", padding, ("same", "valid"))
        else:
            padding = sides("padding", padding, 0)
        if padding == "same" and strides != (1, 1):
            raise ArgumentError("padding", f"expected 'valid' or numbers beside stride {stride!r}, received 'same'")
        one_of("padding_mode", padding_mode, PADDING_MODES)
        self.padding_value = number("padding_value", padding_value, -MOST_PADDING, MOST_PADDING)
        if padding_value != 0 and padding_mode != "constant":
            raise ArgumentError(
                "padding_value",
                f"expected padding_mode=constant beside it, received padding_mode={padding_mode}",
            )
        _check_groups(groups, in_channels, out_channels)
        super().__init__(
            in_channels,
            out_channels,
            sides("kernel_size", kernel_size, 1),
            strides,
            padding,
            sides("dilation", dilation, 1),
            groups,
            bias,
            "zeros" if padding_mode == "constant" else padding_mode,  # type: ignore[arg-type]
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if self.padding_value == 0:
            return super().forward(x_NCHW)
        x_NCHW = F.pad(x_NCHW, self._reversed_padding_repeated_twice, value=self.padding_value)
        return F.conv2d(x_NCHW, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class DepthwiseConv(Conv):
    """A convolution of each channel by itself: (N, C, H, W) → (N, out_channels, H', W'), `groups` is `in_channels`.

    `out_channels` is a multiple of the input's channels, by default their number: each channel has as many filters.
    All other arguments as in `conv`: `kernel_size`, `stride`, `padding`, `dilation`, `bias`, `padding_mode`,
    `padding_value`. Raises `ArgumentError`.
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: int | tuple[int, int],
        out_channels: int | None = None,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        padding_value: float = 0.0,
    ) -> None:
        out_channels = in_channels if out_channels is None else integer("out_channels", out_channels, 1, MOST_CHANNELS)
        if out_channels % integer("in_channels", in_channels, 1):
            raise ArgumentError(
                "out_channels", f"expected a multiple of the {in_channels} input channels, received {out_channels}"
            )
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            in_channels,
            bias,
            padding_mode,
            padding_value,
        )


class SeparableConv(nn.Module):
    """A depthwise convolution and a 1×1 convolution of its channels: (N, C, H, W) → (N, `out_channels`, H', W').

    `kernel_size`, `stride`, `padding`, `dilation`, `padding_mode` and `padding_value` are the first one's, as in
    `conv`; `bias` is the second one's, where that of the first would be a constant for it (arXiv 1610.02357). Nothing
    stands between them: with a norm there, write `depthwise_conv` and `conv`. Raises `ArgumentError`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        padding_value: float = 0.0,
    ) -> None:
        super().__init__()
        window = (kernel_size, None, stride, padding, dilation)
        self.depthwise = DepthwiseConv(in_channels, *window, False, padding_mode, padding_value)
        self.pointwise = Conv(in_channels, out_channels, 1, bias=bias)

    def facts(self, shape: Shape) -> Facts:
        first = convolution(self.depthwise, shape)
        assert first.output_shape is not None
        second = convolution(self.pointwise, first.output_shape)
        return replace(first, output_shape=second.output_shape, macs=first.macs + second.macs)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        mixed_NCHW: Tensor = self.pointwise(self.depthwise(x_NCHW))
        return mixed_NCHW


class ConvTranspose(nn.ConvTranspose2d):
    """Each pixel adds a window to the output: the gradient of a convolution, as an operation of its own.

    (N, in_channels, H, W) → (N, `out_channels`, H', W'), H' = (H − 1)·stride − 2·padding + dilation·(kernel_size − 1)
    + output_padding + 1, and the same for W' (`torch.nn.ConvTranspose2d`). `output_padding` adds rows and columns at
    one side, fewer than `stride` or `dilation`, for the several sizes that a convolution maps to one.

    Raises `ArgumentError` for a value out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        output_padding: int | tuple[int, int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, int] = 1,
    ) -> None:
        integer("out_channels", out_channels, 1, MOST_CHANNELS)
        _check_groups(groups, in_channels, out_channels)
        super().__init__(
            in_channels,
            out_channels,
            sides("kernel_size", kernel_size, 1),
            sides("stride", stride, 1),
            sides("padding", padding, 0),
            sides("output_padding", output_padding, 0),
            groups,
            bias,
            sides("dilation", dilation, 1),
        )


def _check_groups(groups: int, in_channels: int, out_channels: int) -> None:
    integer("in_channels", in_channels, 1)
    integer("groups", groups, 1)
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if channels % groups:
            raise ArgumentError("groups", f"{name} {channels} cannot be divided into {groups} groups")
