"""What changes a training image by itself: the base class, and what augmentations of several kinds share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cnnlab.runtime.checks import number
from cnnlab.runtime.errors import ArgumentError, ConfigError
from cnnlab.runtime.randomness import uniforms

Shape = tuple[int, int, int]
Interval = tuple[float, float]
Fill = float | tuple[float, ...]
Operation = Callable[[Tensor, Tensor], Tensor]  # images (N, C, H, W) and a number for each, (N, 1, 1, 1) → images
BRIGHTEST = 255.0
_DRAW_BITS = 24  # of a uniform number: `uniforms` makes float32
_CACHED = 1 << 16  # pixels


class Augmentation(ABC):
    """Changes each image by `draws` random numbers."""

    draws = 1
    same_each_turn = False  # True if an image keeps its numbers

    def check(self, shape: Shape) -> None:  # noqa: B027 — most fit any image
        """Raises `ConfigError` where it does not fit images of (C, H, W)."""

    @abstractmethod
    def __call__(self, x_NCHW: Tensor, u_ND: Tensor, turn_N: Tensor) -> Tensor:
        """The changed images; `u_ND` are uniform in [0, 1), `turn_N` int64 from 0."""


def by_operation(x_NCHW: Tensor, operation_N: Tensor, operations: Sequence[Operation], value_N: Tensor) -> Tensor:
    """Image n changed by `operations[operation_N[n]]` with the value `value_N[n]`.

    Images of the same operation are changed together. A GPU is waited for, because their number decides the shapes.
    """
    counts = (operation_N[:, None] == torch.arange(len(operations), device=operation_N.device)).sum(0).tolist()
    order_N = operation_N.argsort(stable=True)
    values = value_N.index_select(0, order_N)[:, None, None, None].split(counts)
    changed_NCHW = torch.empty_like(x_NCHW)
    for operation, place_N, value_N111 in zip(operations, order_N.split(counts), values, strict=True):
        if len(place_N):
            # picked one operation at a time: the images stay in the processor's cache until they are put back
            changed_NCHW.index_copy_(0, place_N, operation(x_NCHW.index_select(0, place_N), value_N111))
    return changed_NCHW


def pixel_uniforms(u_N2: Tensor, shape: Sequence[int]) -> Tensor:
    """(N, …) uniform in [0, 1), one for each pixel of images of this shape, a pure function of two per image."""
    whole_N2 = (u_N2 * 2**_DRAW_BITS).long()
    counter_N = (whole_N2[:, 0] << _DRAW_BITS) + whole_N2[:, 1]
    pixels = torch.Size(shape[1:]).numel()
    # on a CPU in pieces that stay in its cache, several times as fast; on a GPU each operation costs its launch
    images = len(counter_N) if counter_N.is_cuda else max(1, _CACHED // pixels)
    return torch.cat([uniforms(0, piece_N, pixels) for piece_N in counter_N.split(images)]).reshape(shape)


def between(u_N: Tensor, interval: Interval) -> Tensor:
    """Uniform in the interval where `u_N` is in [0, 1)."""
    return interval[0] + u_N * (interval[1] - interval[0])


def ascending(argument: str, value: Any, minimum: float, maximum: float) -> Interval:
    """Two numbers from `minimum` to `maximum` in ascending order. Raises `ArgumentError`."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ArgumentError(argument, f"expected a pair [least, most], received {value!r}")
    low, high = (number(argument, end, minimum, maximum) for end in value)
    if low > high:
        raise ArgumentError(argument, f"expected [least, most] in this order, received {list(value)!r}")
    return low, high


def factors(argument: str, value: Any) -> Interval:
    """Two numbers from 10⁻⁴ to 10⁴ in ascending order. Raises `ArgumentError`."""
    return ascending(argument, value, 1e-4, 1e4)


def fill_value(argument: str, value: Any) -> Fill:
    """A number of 0…255, or one for each channel. Raises `ArgumentError`."""
    if isinstance(value, list | tuple):
        return tuple(number(argument, each, 0, BRIGHTEST) for each in value)
    return number(argument, value, 0, BRIGHTEST)


def check_fill(argument: str, fill: Fill, channels: int) -> None:
    """Raises `ArgumentError` where there is not one number, or one for each channel."""
    if isinstance(fill, tuple) and len(fill) not in (1, channels):
        raise ArgumentError(
            argument, f"expected one number, or one for each of the image's channels ({channels}), received {len(fill)}"
        )


def check_grey_or_rgb(shape: Shape) -> None:
    """Raises `ConfigError` unless images have 1 channel or 3."""
    if shape[0] not in (1, 3):
        raise ConfigError(f"changes colours of images of 1 channel or 3, and these have {shape[0]}")


def spread(fill: Fill, like: Tensor) -> Tensor:
    """(C or 1, 1, 1) on the device and in the dtype of `like`."""
    return torch.tensor(fill, device=like.device, dtype=like.dtype).reshape(-1, 1, 1)
