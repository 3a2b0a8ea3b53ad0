"""The facts of torch's own classes, and how a class finds its own."""

import math
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cnnlab.blocks.facts import MOST_CHANNELS, Facts, Shape, expect_channels, expect_image, format_shape, unchanged
from cnnlab.blocks.receptive_field import column, local, row, unknown, whole
from cnnlab.blocks.window import LONGEST, Axis, Window, check_pool_padding, sides
from cnnlab.runtime.checks import integer, number, one_of
from cnnlab.runtime.errors import ArgumentError, ConfigError

Rule = Callable[..., Facts]


def find_rule(kind: type) -> Rule | None:
    """The rule of the nearest class that has one, unless a nearer one has a `forward` of its own."""
    for ancestor in kind.__mro__:
        if "facts" in vars(ancestor):
            rule: Rule = vars(ancestor)["facts"]
            return rule
        if ancestor in TORCH_FACTS:
            return TORCH_FACTS[ancestor]
        if "forward" in vars(ancestor):
            return None
    return None


def convolution(module: nn.Conv2d, shape: Shape) -> Facts:
    expect_image(shape)
    expect_channels("in_channels", module.in_channels, shape)
    macs_per_unit = math.prod(module.kernel_size) * module.in_channels // module.groups
    return Window.of(module).facts(shape, module.out_channels, macs_per_unit)


def _transposed_convolution(module: nn.ConvTranspose2d, shape: Shape) -> Facts:
    """The convolution whose gradient it is maps the output's shape to the input's; each input value meets a window.

    With stride 1 a unit sees the window that it would see in a convolution with padding d·(k − 1) − p. With others the
    number of input values in a window changes from unit to unit: the receptive field is unknown.
    """
    expect_image(shape)
    expect_channels("in_channels", module.in_channels, shape)
    integer("out_channels", module.out_channels, 1, MOST_CHANNELS)
    kernel, stride = sides("kernel_size", module.kernel_size, 1), sides("stride", module.stride, 1)
    padding, dilation = sides("padding", module.padding, 0), sides("dilation", module.dilation, 1)
    more = sides("output_padding", module.output_padding, 0)
    if any(one >= max(steps) for one, steps in zip(more, zip(stride, dilation, strict=True), strict=True)):
        raise ArgumentError("output_padding", f"expected less than stride or dilation, received {more!r}")
    borders = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    height, width = (
        (size - 1) * s + border - p + extra + 1
        for size, s, border, p, extra in zip(shape[1:], stride, borders, padding, more, strict=True)
    )
    if min(height, width) < 1:
        raise ConfigError(
            f"padding {format_shape(padding)} leaves nothing of its input {format_shape(shape)}: the output would be "
            f"{height}×{width}"
        )
    window = Window(*(Axis(k, s, 2 * b, d) for k, s, b, d in zip(kernel, stride, borders, dilation, strict=True)))
    macs = math.prod(shape) * math.prod(kernel) * module.out_channels // module.groups
    field = window.field if stride == (1, 1) else unknown
    return Facts((module.out_channels, height, width), macs, field, window.label)


UPSAMPLING_MODES = ("nearest", "nearest-exact", "bilinear", "bicubic")


def _upsampling(module: nn.Upsample, shape: Shape) -> Facts:
    """Several units have the same neighbours, or weights that change from unit to unit: their field is unknown."""
    expect_image(shape)
    one_of("mode", module.mode, UPSAMPLING_MODES)
    if module.align_corners is not None and module.mode not in ("bilinear", "bicubic"):
        raise ArgumentError("align_corners", f"expected mode bilinear or bicubic beside it, received {module.mode}")
    if (module.size is None) == (module.scale_factor is None):
        raise ArgumentError("scale_factor", "expected either size or scale_factor, received both or none")
    if module.size is not None:
        return Facts((shape[0], *sides("size", module.size, 1)))
    factors = module.scale_factor if isinstance(module.scale_factor, tuple) else (module.scale_factor,) * 2
    if len(factors) != 2:
        raise ArgumentError("scale_factor", f"expected a number or a pair [height, width], received {list(factors)}")
    scaled = [
        math.floor(size * number("scale_factor", factor, 0, LONGEST, open_minimum=True))
        for size, factor in zip(shape[1:], factors, strict=True)
    ]
    return Facts((shape[0], *sides("scale_factor", tuple(scaled), 1)))


def _pixel_unshuffle(module: nn.PixelUnshuffle, shape: Shape) -> Facts:
    """Its channels together hold a window of the image."""
    expect_image(shape)
    factor = integer("downscale_factor", module.downscale_factor, 1, LONGEST)
    if shape[1] % factor or shape[2] % factor:
        raise ArgumentError(
            "downscale_factor", f"expected a divisor of height and width of {format_shape(shape)}, received {factor}"
        )
    axis = Axis(kernel=factor, stride=factor, border=0, dilation=1)
    return Window(axis, axis).facts(shape, shape[0] * factor**2)


def _pixel_shuffle(module: nn.PixelShuffle, shape: Shape) -> Facts:
    """Neighbouring units stem from one pixel: their field is unknown."""
    expect_image(shape)
    factor = integer("upscale_factor", module.upscale_factor, 1, LONGEST)
    if shape[0] % factor**2:
        raise ArgumentError(
            "upscale_factor", f"its square divides no {shape[0]} channels ({format_shape(shape)}), received {factor}"
        )
    return Facts((shape[0] // factor**2, shape[1] * factor, shape[2] * factor))


def _local_response_norm(module: nn.LocalResponseNorm, shape: Shape) -> Facts:
    """A unit sees `size` channels of its pixel."""
    expect_image(shape)
    integer("size", module.size, 1, MOST_CHANNELS)
    return Facts(shape, field=local)


def _glu(module: nn.GLU, shape: Shape) -> Facts:
    """Of an image, channels a and b of one pixel; half a row or a column elsewhere: their field is unknown."""
    dim = _dimension("dim", module.dim, shape)
    if shape[dim] % 2:
        raise ArgumentError("dim", f"expected an even size to halve, received {shape[dim]} of {format_shape(shape)}")
    halved = tuple(size // 2 if index == dim else size for index, size in enumerate(shape))
    return Facts(halved, field=local if len(shape) == 3 and dim == 0 else unknown)


def _dimension(argument: str, dim: int, shape: Shape) -> int:
    """The index in `shape` of a dimension that is counted with the batch. Raises `ArgumentError`."""
    last = len(shape)
    if not (1 <= dim <= last or -last <= dim <= -1):
        raise ArgumentError(
            argument, f"expected 1 to {last} (or −{last} to −1) for an input of {format_shape(shape)}, received {dim}"
        )
    return dim - 1 if dim > 0 else dim + last


def _expect_one_tensor(module: nn.Module) -> None:
    if getattr(module, "return_indices", False):
        raise ArgumentError("return_indices", "expected false: a block gives one tensor, received true")


def _pooling(module: nn.MaxPool2d | nn.AvgPool2d, shape: Shape) -> Facts:
    _expect_one_tensor(module)
    check_pool_padding(module.padding, module.kernel_size)
    if getattr(module, "divisor_override", None) == 0:
        raise ArgumentError("divisor_override", "expected null or a number other than 0, received 0")
    return Window.of(module).facts(shape, shape[0])


def _adaptive_pooling(module: nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d, shape: Shape) -> Facts:
    expect_image(shape)
    _expect_one_tensor(module)
    size = module.output_size if isinstance(module.output_size, tuple) else (module.output_size,) * 2
    kept = tuple(before if after is None else after for before, after in zip(shape[1:], size, strict=False))
    height, width = sides("output_size", kept if len(size) == 2 else size, 1)
    return Facts((shape[0], height, width), field=whole)


def _linear(module: nn.Linear, shape: Shape) -> Facts:
    if len(shape) == 3:
        raise ConfigError(
            f"expected features, received an image of {format_shape(shape)}; put 'flatten' ({math.prod(shape)} "
            f"features) or 'global_avg_pool' ({shape[0]}) before it"
        )
    if module.in_features != shape[-1]:
        raise ConfigError(
            f"in_features={module.in_features}, but {shape[-1]} features reach it; leave in_features out and it is "
            f"inferred"
        )
    field = whole if len(shape) == 1 else local  # of a sequence, the features of one position
    return Facts((*shape[:-1], module.out_features), math.prod(shape) * module.out_features, field)


def _flatten(module: nn.Flatten, shape: Shape) -> Facts:
    if (module.start_dim, module.end_dim) == (1, -1):
        return Facts((math.prod(shape),), field=local)
    return Facts(field=unknown)


def _softmax(module: nn.Softmax | nn.LogSoftmax | nn.Softmin, shape: Shape) -> Facts:
    dim = _dimension("dim", 1 if module.dim is None else module.dim, shape)
    by_dimension: dict[int, list[Any]] = {1: [whole], 3: [local, column, row]}
    return Facts(shape, field=by_dimension.get(len(shape), [unknown] * len(shape))[dim])


def _batch_norm(module: _BatchNorm, shape: Shape) -> Facts:
    """In evaluation mode; without running statistics it takes those of the batch."""
    return Facts(field=local if module.track_running_stats else whole)


def _group_norm(module: nn.GroupNorm, shape: Shape) -> Facts:
    expect_channels("num_channels", module.num_channels, shape)
    return Facts(shape, field=whole if len(shape) == 3 or module.num_groups == 1 else unknown)


def _layer_norm(module: nn.LayerNorm, shape: Shape) -> Facts:
    dimensions = len(module.normalized_shape)
    if tuple(module.normalized_shape) != shape[-dimensions:]:
        raise ArgumentError(
            "normalized_shape",
            f"expected the last sizes of {format_shape(shape)}, received {format_shape(module.normalized_shape)}",
        )
    if dimensions == len(shape):
        return Facts(shape, field=whole)
    return Facts(shape, field=local if len(shape) == 2 else row if dimensions == 1 else whole)


def _channel_dropout(module: nn.Dropout2d, shape: Shape) -> Facts:
    expect_image(shape)
    return unchanged(module, shape)


def _traced_and_local(module: nn.Module, shape: Shape) -> Facts:
    return Facts(field=local)


TORCH_FACTS: dict[type, Rule] = {
    nn.Conv2d: convolution,
    nn.ConvTranspose2d: _transposed_convolution,
    nn.Upsample: _upsampling,
    nn.PixelUnshuffle: _pixel_unshuffle,
    nn.PixelShuffle: _pixel_shuffle,
    nn.LocalResponseNorm: _local_response_norm,
    nn.GLU: _glu,
    nn.MaxPool2d: _pooling,
    nn.AvgPool2d: _pooling,
    nn.AdaptiveAvgPool2d: _adaptive_pooling,
    nn.AdaptiveMaxPool2d: _adaptive_pooling,
    nn.Linear: _linear,
    nn.Flatten: _flatten,
    nn.Softmax: _softmax,
    nn.LogSoftmax: _softmax,
    nn.Softmin: _softmax,
    _BatchNorm: _batch_norm,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.Dropout2d: _channel_dropout,
    nn.PReLU: _traced_and_local,  # its parameters may not fit
    **dict.fromkeys(
        (
            nn.Identity,
            nn.Dropout,
            nn.AlphaDropout,
            nn.ReLU,
            nn.LeakyReLU,
            nn.ReLU6,
            nn.ELU,
            nn.SELU,
            nn.CELU,
            nn.GELU,
            nn.SiLU,
            nn.Mish,
            nn.Sigmoid,
            nn.LogSigmoid,
            nn.Hardsigmoid,
            nn.Tanh,
            nn.Hardtanh,
            nn.Hardswish,
            nn.Softplus,
            nn.Softsign,
        ),
        unchanged,
    ),
}
