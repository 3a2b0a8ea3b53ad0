"""Does a layer fit what reaches it? The answer is given with the arithmetic, before any weight exists."""

from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.runtime.errors import ConfigError, first_line

Shape = tuple[int, ...]
WINDOWED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
PICTURES = (
    *WINDOWED,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Dropout2d,
)


def format_shape(shape: Shape) -> str:
    """`20×24×24` for a picture, `100` for features."""
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


def check_fit(module: nn.Module, key: str, shape: Shape) -> None:
    """Raises `ConfigError` with the layer's key, its input, the arithmetic and the smallest legal input."""
    if isinstance(module, PICTURES) and len(shape) != 3:
        raise ConfigError(
            f"{key}: expected a picture (channels × height × width), received {format_shape(shape)} "
            f"features; put it before 'flatten'"
        )
    if isinstance(module, nn.Linear):
        _check_linear(module, key, shape)
    if isinstance(module, nn.Conv2d) and module.in_channels != shape[0]:
        raise ConfigError(
            f"{key}: in_channels={module.in_channels}, but {shape[0]} channels reach it "
            f"({format_shape(shape)}); leave in_channels out and it is inferred"
        )
    if isinstance(module, WINDOWED):
        _check_window(module, key, shape)


def _check_linear(module: nn.Linear, key: str, shape: Shape) -> None:
    if len(shape) == 3:
        raise ConfigError(
            f"{key}: expected features, received a picture of {format_shape(shape)}; put 'flatten' "
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
    sizes = list(shape[1:])
    if all(size + border >= span for size, border, span in zip(sizes, padding, spans, strict=True)):
        return
    axis = next(i for i in (0, 1) if sizes[i] + padding[i] < spans[i])
    smallest = [max(1, span - border) for span, border in zip(spans, padding, strict=True)]
    raise ConfigError(
        f"{key}: kernel {format_shape(kernel)} does not fit its input {format_shape(shape)}: "
        f"{'height' if axis == 0 else 'width'} ({sizes[axis]} + {padding[axis]} − {spans[axis]}) / "
        f"{stride[axis]} + 1 < 1; the smallest legal input is {format_shape((shape[0], *smallest))}"
    )


def dropped(module: nn.Module, shape: Shape) -> tuple[int, int]:
    """How many rows and columns at the bottom and right no window of the layer covers."""
    if not isinstance(module, WINDOWED) or getattr(module, "ceil_mode", False):
        return 0, 0
    kernel, stride, padding, dilation = window(module)
    rests = [
        (size + border - d * (k - 1) - 1) % s
        for size, border, d, k, s in zip(shape[1:], padding, dilation, kernel, stride, strict=True)
    ]
    return rests[0], rests[1]


def trace(module: nn.Module, key: str, shape: Shape) -> Shape:
    """The shape that a layer on the meta device gives for one picture. Raises `ConfigError`."""
    try:
        output = module(torch.empty(2, *shape))
    except Exception as error:
        raise ConfigError(
            f"{key}: {type(module).__name__} does not fit its input {format_shape(shape)}: {first_line(error)}"
        ) from error
    if not isinstance(output, Tensor) or output.dim() < 2 or output.shape[0] != 2:
        raise ConfigError(
            f"{key}: expected one tensor with the batch in front from {type(module).__name__}, received "
            f"{format_shape(tuple(output.shape)) if isinstance(output, Tensor) else type(output).__name__}"
        )
    return tuple(output.shape[1:])
