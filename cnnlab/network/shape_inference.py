"""Does a layer fit what reaches it? The answer is given with the arithmetic, before any weight exists."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.blocks.activation import LeakyReLU, Softmax, Step, TwoClasses
from cnnlab.blocks.conv import Conv
from cnnlab.blocks.dropout import Dropout, Dropout2d
from cnnlab.blocks.linear import Linear
from cnnlab.blocks.normalization import BatchNorm
from cnnlab.blocks.permutation import PermutePixels
from cnnlab.blocks.pooling import AvgPool, GlobalAvgPool, GlobalMaxPool, MaxPool
from cnnlab.blocks.recurrent import Recurrent
from cnnlab.blocks.shortcut import ZeroPadShortcut
from cnnlab.runtime.errors import ConfigError, first_line

Shape = tuple[int, ...]
WINDOWED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, ZeroPadShortcut)
IMAGES = (
    *WINDOWED,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Dropout2d,
    GlobalAvgPool,
    GlobalMaxPool,
    Recurrent,
    PermutePixels,
)
SAME_SHAPE = (
    nn.Identity,
    BatchNorm,
    Dropout,
    Dropout2d,
    LeakyReLU,
    nn.ReLU,
    nn.GELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Tanh,
    PermutePixels,
    Step,
)


@dataclass(frozen=True)
class Fit:
    """What a layer does with the shape that reaches it; `macs` are multiply-accumulates for one image."""

    input_shape: Shape
    output_shape: Shape
    macs: int


def format_shape(shape: Shape) -> str:
    """`20×24×24` for an image, `100` for features."""
    return "×".join(str(size) for size in shape)


def pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def window(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """(kernel, stride, padding before + after, dilation) of a convolution or pooling, each (height, width)."""
    kernel = pair(module.kernel_size)
    stride = pair(module.stride)
    dilation = pair(getattr(module, "dilation", 1))
    padding: Any = module.padding
    if padding == "valid":
        both = (0, 0)
    elif padding == "same":
        both = (dilation[0] * (kernel[0] - 1), dilation[1] * (kernel[1] - 1))
    else:
        both = (2 * pair(padding)[0], 2 * pair(padding)[1])
    return kernel, stride, both, dilation


def check_image(factory: object, key: str, shape: Shape) -> None:
    """Raises `ConfigError` where features reach a block of images, before its constructor reads their sizes."""
    if isinstance(factory, type) and issubclass(factory, IMAGES) and len(shape) != 3:
        layers = "; layers are stacked with num_layers" if issubclass(factory, Recurrent) else ""
        raise ConfigError(
            f"{key}: expected an image (channels × height × width), received {format_shape(shape)} "
            f"features; put it before 'flatten'{layers}"
        )


def check_fit(module: nn.Module, key: str, shape: Shape) -> None:
    """Raises `ConfigError` with the layer's key, its input, the arithmetic and the smallest legal input."""
    if isinstance(module, nn.Linear):
        _check_linear(module, key, shape)
    if isinstance(module, nn.Conv2d | ZeroPadShortcut) and module.in_channels != shape[0]:
        raise ConfigError(
            f"{key}: in_channels={module.in_channels}, but {shape[0]} channels reach it "
            f"({format_shape(shape)}); leave in_channels out and it is inferred"
        )
    if isinstance(module, BatchNorm) and module.num_features != shape[0]:
        raise ConfigError(
            f"{key}: num_features={module.num_features}, but {shape[0]} channels reach it "
            f"({format_shape(shape)}); leave num_features out and it is inferred"
        )
    if isinstance(module, nn.Softmax) and module.dim is not None:
        _check_dimension(module.dim, key, shape)
    if isinstance(module, TwoClasses) and shape != (1,):
        raise ConfigError(f"{key}: expected the activation of one neuron, received {format_shape(shape)}")
    if isinstance(module, WINDOWED):
        _check_window(module, key, shape)


def _check_dimension(dim: int, key: str, shape: Shape) -> None:
    last = len(shape)
    if not (1 <= dim <= last or -last <= dim <= -1):
        raise ConfigError(
            f"{key}.dim: expected 1 to {last} (or −{last} to −1) for an input of {format_shape(shape)}, received {dim}"
        )


def _check_linear(module: nn.Linear, key: str, shape: Shape) -> None:
    if len(shape) == 3:
        raise ConfigError(
            f"{key}: expected features, received an image of {format_shape(shape)}; put 'flatten' "
            f"({shape[0] * shape[1] * shape[2]} features) or 'global_avg_pool' ({shape[0]}) before it"
        )
    if module.in_features != shape[-1]:
        raise ConfigError(
            f"{key}: in_features={module.in_features}, but {shape[-1]} features reach it; "
            f"leave in_features out and it is inferred"
        )


def _check_window(module: nn.Module, key: str, shape: Shape) -> None:
    kernel, stride, padding, dilation = window(module)
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    smallest = [_smallest(module, *sizes) for sizes in zip(spans, stride, padding, strict=True)]
    sizes = shape[1:]
    axis = next((i for i in (0, 1) if sizes[i] < smallest[i]), None)
    if axis is None:
        return
    name = "height" if axis == 0 else "width"
    if sizes[axis] + padding[axis] < spans[axis]:
        arithmetic = f"{name} ({sizes[axis]} + {padding[axis]} − {spans[axis]}) / {stride[axis]} + 1 < 1"
    else:
        arithmetic = f"its padding mirrors {padding[axis] // 2} of {sizes[axis]} ({name})"
    raise ConfigError(
        f"{key}: kernel {format_shape(kernel)} does not fit its input {format_shape(shape)}: {arithmetic}; "
        f"the smallest legal input is {format_shape((shape[0], *smallest))}"
    )


def _smallest(module: nn.Module, span: int, stride: int, padding: int) -> int:
    """The smallest height or width that gives one row or column; `padding` is that of both sides together."""
    overhang = stride - 1 if getattr(module, "ceil_mode", False) else 0
    mirrored = {"reflect": padding // 2 + 1, "circular": padding // 2}.get(getattr(module, "padding_mode", ""), 1)
    return max(1, span - padding - overhang, mirrored)


def dropped(module: nn.Module, shape: Shape) -> tuple[int, int]:
    """How many of the image's rows and columns, at the bottom and right, lie behind the last window."""
    if not isinstance(module, WINDOWED) or getattr(module, "ceil_mode", False):
        return 0, 0
    kernel, stride, padding, dilation = window(module)
    rests = [
        max(0, (size + border - d * (k - 1) - 1) % s - border // 2)  # the border's own rows are no loss
        for size, border, d, k, s in zip(shape[1:], padding, dilation, kernel, stride, strict=True)
    ]
    return rests[0], rests[1]


def measure(module: nn.Module, key: str, shape: Shape) -> Fit:
    """What a layer on the meta device gives for one image of the shape. Raises `ConfigError`.

    The usual layers go by rule: tracing one convolution on the meta device imports a second's worth of torch.
    """
    output_shape, macs = _by_rule(module, shape) or _traced(module, key, shape)
    return Fit(shape, output_shape, macs)


def _by_rule(module: nn.Module, shape: Shape) -> tuple[Shape, int] | None:
    kind = type(module)  # a subclass may compute something else
    if kind in SAME_SHAPE or (isinstance(module, Softmax)):
        return shape, 0
    if isinstance(module, nn.Flatten) and kind is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
        return (math.prod(shape),), 0
    if kind in (GlobalAvgPool, GlobalMaxPool):
        return shape[:1], 0
    if isinstance(module, TwoClasses):
        return (2,), 0
    if isinstance(module, nn.Linear) and kind in (nn.Linear, Linear):
        return (*shape[:-1], module.out_features), math.prod(shape) * module.out_features
    if isinstance(module, Recurrent):
        return _recurrent(module, shape)
    if isinstance(module, nn.Conv2d) and kind in (nn.Conv2d, Conv) and module.padding_mode == "zeros":
        height, width = _window_output(module, shape)
        macs_per_unit = math.prod(module.kernel_size) * module.in_channels // module.groups
        return (module.out_channels, height, width), macs_per_unit * module.out_channels * height * width
    if isinstance(module, ZeroPadShortcut):
        return (module.out_channels, *_window_output(module, shape)), 0
    if kind in (MaxPool, AvgPool, nn.MaxPool2d, nn.AvgPool2d) and not module.ceil_mode:
        return (shape[0], *_window_output(module, shape)), 0
    return None


def _recurrent(module: Recurrent, shape: Shape) -> tuple[Shape, int]:
    """Each step multiplies every weight once; what gates do value by value is no multiply-accumulate."""
    _, height, width = shape
    weights = sum(parameter.numel() for parameter in module.parameters() if parameter.dim() == 2)
    last = module.layers[-1]
    assert isinstance(last, nn.RNNBase)
    features = last.hidden_size * (2 if last.bidirectional else 1)
    return (features,), weights * (height if module.order == "rows" else height * width)


def _window_output(module: nn.Module, shape: Shape) -> tuple[int, int]:
    """⌊(W + 2P − D(K − 1) − 1) / S⌋ + 1 for height and width."""
    height, width = (
        (size + border - d * (k - 1) - 1) // s + 1
        for size, k, s, border, d in zip(shape[1:], *window(module), strict=True)
    )
    return height, width


def _traced(module: nn.Module, key: str, shape: Shape) -> tuple[Shape, int]:
    """MACs are half of `torch.utils.flop_counter`'s FLOPs, which leave out biases."""
    from torch.utils.flop_counter import FlopCounterMode

    images = 2
    counter = FlopCounterMode(display=False)
    try:
        with counter:
            output = module(torch.empty(images, *shape))
    except Exception as error:
        raise ConfigError(
            f"{key}: {type(module).__name__} does not fit its input {format_shape(shape)}: {first_line(error)}"
        ) from error
    if not isinstance(output, Tensor) or output.dim() < 2 or output.shape[0] != images:
        raise ConfigError(
            f"{key}: expected one tensor with the batch in front from {type(module).__name__}, received "
            f"{format_shape(tuple(output.shape)) if isinstance(output, Tensor) else type(output).__name__}"
        )
    return tuple(output.shape[1:]), counter.get_total_flops() // (2 * images)
