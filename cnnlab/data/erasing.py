"""Augmentations that hide a rectangle of each image."""

import math

import torch
from torch import Tensor

from cnnlab.data.geometry import within
from cnnlab.data.per_image import (
    BRIGHTEST,
    Augmentation,
    Fill,
    Interval,
    Shape,
    ascending,
    between,
    check_fill,
    factors,
    fill_value,
    pixel_uniforms,
    spread,
)
from cnnlab.runtime.checks import integer, number
from cnnlab.runtime.errors import ArgumentError

TRIES = 10  # rectangles that are drawn until one fits, as torchvision has it
RANDOM = "random"


class Cutout(Augmentation):
    """Paints a square of `size` pixels about a random pixel with `fill` of 0…255 (arXiv 1708.04552).

    The square may reach over the edges. Raises `ArgumentError`.
    """

    draws = 2

    def __init__(self, size: int, fill: float = 0.0) -> None:
        self.size = integer("size", size, 1)
        self.fill = number("fill", fill, 0, BRIGHTEST)

    def check(self, shape: Shape) -> None:
        smallest = min(shape[1:])
        if self.size > smallest:
            raise ArgumentError("size", f"expected at most a side of the image, {smallest}, received {self.size}")

    def __call__(self, x_NCHW: Tensor, u_ND: Tensor, turn_N: Tensor) -> Tensor:
        sizes_2 = torch.tensor(x_NCHW.shape[2:], device=x_NCHW.device)
        first_N2 = (u_ND * sizes_2).long() - self.size // 2
        inside_N1HW = _rectangles(first_N2, torch.full_like(first_N2, self.size), x_NCHW)
        return x_NCHW.masked_fill(inside_N1HW, self.fill)


class RandomErasing(Augmentation):
    """Erases a rectangle with probability `p`, as torchvision's `RandomErasing` (arXiv 1708.04896).

    `scale` is the interval of its fraction of the area, `ratio` that of its height to its width, drawn on a
    logarithmic scale; one that does not fit is drawn anew, up to ten times. `value` is a number of 0…255, one for
    each channel, or random: uniform in 0…255 for each pixel, as in the paper. Raises `ArgumentError`.

    This happens before normalisation. torchvision's recipes erase after it, where 0 is the mean of the training
    images: give that here, such as `[125, 123, 114]` for CIFAR-10.
    """

    draws = 3 + 2 * TRIES + 2

    def __init__(
        self,
        p: float = 0.5,
        scale: Interval = (0.02, 0.33),
        ratio: Interval = (0.3, 3.3),
        value: Fill | str = 0.0,
    ) -> None:
        self.p = number("p", p, 0, 1)
        self.scale = ascending("scale", scale, 0, 1)
        self.ratio = factors("ratio", ratio)
        if isinstance(value, str) and value != RANDOM:
            raise ArgumentError("value", f"expected a number, one for each channel, or {RANDOM}, received {value!r}")
        self.value: Fill | str = value if isinstance(value, str) else fill_value("value", value)

    def check(self, shape: Shape) -> None:
        if not isinstance(self.value, str):
            check_fill("value", self.value, shape[0])

    def __call__(self, x_NCHW: Tensor, u_ND: Tensor, turn_N: Tensor) -> Tensor:
        first_N2, sides_N2 = self.rectangles(u_ND, x_NCHW.shape[2:])
        if isinstance(self.value, str):
            value_NCHW = (pixel_uniforms(u_ND[:, -2:], x_NCHW.shape) * (BRIGHTEST + 1)).floor()
        else:
            value_NCHW = spread(self.value, x_NCHW)
        return torch.where(_rectangles(first_N2, sides_N2, x_NCHW), value_NCHW, x_NCHW)

    def rectangles(self, u_ND: Tensor, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """(N, 2) first row and column, and (N, 2) height and width, int64; 0 × 0 where nothing is erased."""
        size_2 = torch.tensor(size, device=u_ND.device)
        tried_NT2 = u_ND[:, 3 : 3 + 2 * TRIES].unflatten(1, (TRIES, 2))
        area_NT = between(tried_NT2[:, :, 0], self.scale) * math.prod(size)
        ratio_NT = between(tried_NT2[:, :, 1], (math.log(self.ratio[0]), math.log(self.ratio[1]))).exp()
        sides_NT2 = torch.stack([(area_NT * ratio_NT).sqrt(), (area_NT / ratio_NT).sqrt()], 2).round().long()
        fits_NT = (sides_NT2 < size_2).all(2)
        chosen_N = fits_NT.int().argmax(1)  # the first that fits
        erased_N = fits_NT.any(1) & (u_ND[:, 0] < self.p)
        sides_N2 = sides_NT2.take_along_dim(chosen_N[:, None, None], 1)[:, 0] * erased_N[:, None]
        return (u_ND[:, 1:3] * (size_2 - sides_N2 + 1)).long(), sides_N2


def _rectangles(first_N2: Tensor, sides_N2: Tensor, x_NCHW: Tensor) -> Tensor:
    """(N, 1, H, W) True within the rectangles that begin at these rows and columns."""
    inside = []
    for axis, length in enumerate(x_NCHW.shape[2:]):
        place_NL = torch.arange(length, device=x_NCHW.device) - first_N2[:, axis : axis + 1]
        inside.append(within(place_NL, sides_N2[:, axis : axis + 1]))
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
