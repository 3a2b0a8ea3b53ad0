"""Augmentations that change colours and keep every pixel in its place."""

import math
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from cnnlab.data.per_image import (
    BRIGHTEST,
    Augmentation,
    Interval,
    Operation,
    Shape,
    ascending,
    between,
    by_operation,
    check_grey_or_rgb,
    pixel_uniforms,
)
from cnnlab.runtime.checks import number
from cnnlab.runtime.errors import ArgumentError

LUMA = (0.2989, 0.587, 0.114)  # of red, green and blue, as torchvision has it (ITU-R BT.601)
MOST = 100.0  # a factor of brightness, contrast or saturation


class Brightness(Augmentation):
    """Multiplies the image by a factor of 1 − `amount` … 1 + `amount`, within 0…255. Raises `ArgumentError`."""

    def __init__(self, amount: float = 0.2) -> None:
        self.amount = number("amount", amount, 0, 1)

    def __call__(self, x_NCHW: Tensor, u_ND: Tensor, turn_N: Tensor) -> Tensor:
        return adjust_brightness(x_NCHW, _factors(u_ND, self.amount))


class Contrast(Augmentation):
    """Stretches the image about its own mean by 1 − `amount` … 1 + `amount`, within 0…255. Raises `ArgumentError`."""

    def __init__(self, amount: float = 0.2) -> None:
        self.amount = number("amount", amount, 0, 1)

    def __call__(self, x_NCHW: Tensor, u_ND: Tensor, turn_N: Tensor) -> Tensor:
        mean_N111 = x_NCHW.mean((1, 2, 3), keepdim=True)
        return torch.lerp(mean_N111, x_NCHW, _factors(u_ND, self.amount)).clamp(0, BRIGHTEST)


def _factors(u_ND: Tensor, amount: float) -> Tensor:
    return (1 + amount * (2 * u_ND[:, 0] - 1))[:, None, None, None]


class ColorJitter(Augmentation):
    """Changes brightness, contrast, saturation and hue in a random order, as torchvision's `ColorJitter`.

    `brightness`, `contrast` and `saturation` are an interval of factors, or a number a for 1 − a … 1 + a; `hue` is an
    interval of turns of the colour circle within −0.5 … 0.5, or a number h for −h … h. Saturation and hue leave images
    of 1 channel as they are. Raises `ArgumentError`.
    """

    draws = 5

    def __init__(
        self,
        brightness: float | Interval | None = None,
        contrast: float | Interval | None = None,
        saturation: float | Interval | None = None,
        hue: float | Interval | None = None,
    ) -> None:
        if brightness is contrast is saturation is hue is None:
            raise ArgumentError("brightness", "expected it, or one of contrast, saturation and hue; received none")
        self.intervals = (
            _around_one("brightness", brightness),
            _around_one("contrast", contrast),
            _around_one("saturation", saturation),
            _around_zero("hue", hue),
        )

    def check(self, shape: Shape) -> None:
        check_grey_or_rgb(shape)

    def __call__(self, x_NCHW: Tensor, u_ND: Tensor, turn_N: Tensor) -> Tensor:
        chosen = [k for k, interval in enumerate(self.intervals) if interval]
        value_NK = torch.stack([between(u_ND[:, k], self.intervals[k] or (0, 0)) for k in chosen], 1)
        orders_PK = torch.tensor(list(permutations(range(len(chosen)))), device=x_NCHW.device)
        order_NK = orders_PK[(u_ND[:, -1] * len(orders_PK)).long()]
        operations = [ADJUSTMENTS[k] for k in chosen]
        for operation_N, value_N in zip(order_NK.unbind(1), value_NK.gather(1, order_NK).unbind(1), strict=True):
            x_NCHW = by_operation(x_NCHW, operation_N, operations, value_N)
        return x_NCHW


def _around_one(argument: str, value: Any) -> Interval | None:
    """An interval of factors, of which a single number is half the width. Raises `ArgumentError`."""
    if value is None or isinstance(value, list | tuple):
        return None if value is None else ascending(argument, value, 0, MOST)
    width = number(argument, value, 0, MOST - 1)
    return max(0.0, 1 - width), 1 + width


def _around_zero(argument: str, value: Any) -> Interval | None:
    """An interval of turns, of which a single number is half the width. Raises `ArgumentError`."""
    if value is None or isinstance(value, list | tuple):
        return None if value is None else ascending(argument, value, -0.5, 0.5)
    width = number(argument, value, 0, 0.5)
    return -width, width


def grey(x_NCHW: Tensor) -> Tensor:
    """(N, 1, H, W) brightness as the eye has it; images of 1 channel as they are."""
    if x_NCHW.shape[1] == 1:
        return x_NCHW
    red, green, blue = x_NCHW.split(1, 1)
    return red.mul(LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def away_from(other: Tensor, x_NCHW: Tensor, amount_N111: Tensor) -> Tensor:
    """x + amount · (x − other) within 0…255: `other` for −1, the images for 0."""
    return torch.addcmul(x_NCHW * (1 + amount_N111), other, amount_N111, value=-1).clamp_(0, BRIGHTEST)


def adjust_brightness(x_NCHW: Tensor, factor_N111: Tensor) -> Tensor:
    return (x_NCHW * factor_N111).clamp_(0, BRIGHTEST)


def adjust_contrast(x_NCHW: Tensor, factor_N111: Tensor) -> Tensor:
    """About the mean of the grey image."""
    return away_from(grey(x_NCHW).mean((1, 2, 3), keepdim=True), x_NCHW, factor_N111 - 1)


def adjust_saturation(x_NCHW: Tensor, factor_N111: Tensor) -> Tensor:
    """About the grey image: 0 is grey, 1 the images; of 1 channel as they are."""
    return x_NCHW if x_NCHW.shape[1] == 1 else away_from(grey(x_NCHW), x_NCHW, factor_N111 - 1)


def adjust_hue(x_NCHW: Tensor, turn_N111: Tensor) -> Tensor:
    """Turns the hue of HSV, keeping saturation and value; 0.5 gives the complement. 1 channel stays as it is.

    A channel is value − range · max(0, min(k, 4 − k, 1)) with k = (n + 6 · hue) mod 6, where n is 5 for red, 3 for
    green, 1 for blue (en.wikipedia.org/wiki/HSL_and_HSV, "HSV to RGB alternative").
    """
    if x_NCHW.shape[1] == 1:
        return x_NCHW
    red, green, blue = x_NCHW.split(1, 1)
    least, value = x_NCHW.aminmax(dim=1, keepdim=True)
    extent = value - least
    # sixths of a turn from red; grey has none
    sixths = torch.where(value == green, (blue - red) / extent + 2, (red - green) / extent + 4)
    sixths = torch.where(value == red, (green - blue) / extent, sixths).where(extent > 0, torch.zeros_like(extent))
    offsets_C11 = torch.tensor([5.0, 3.0, 1.0], device=x_NCHW.device)[:, None, None]
    k_NCHW = (sixths + 6 * turn_N111 + offsets_C11).remainder_(6)
    return value - extent * torch.minimum(k_NCHW, 4 - k_NCHW).clamp_(0, 1)


ADJUSTMENTS: tuple[Operation, ...] = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


class RandomGrayscale(Augmentation):
    """Turns images grey with probability `p`, as torchvision's `RandomGrayscale`; keeps the number of channels.

    Images of 1 channel stay as they are. Raises `ArgumentError`.
    """

    def __init__(self, p: float = 0.1) -> None:
        self.p = number("p", p, 0, 1)

    def check(self, shape: Shape) -> None:
        check_grey_or_rgb(shape)

    def __call__(self, x_NCHW: Tensor, u_ND: Tensor, turn_N: Tensor) -> Tensor:
        return torch.where((u_ND[:, 0] < self.p)[:, None, None, None], grey(x_NCHW), x_NCHW)


class GaussianNoise(Augmentation):
    """Adds to each pixel a normal number of its own, as torchvision's `GaussianNoise`.

    `mean` and `sigma` are in units of 0…1, the range of 0…255; `clip` keeps the result within it. Raises
    `ArgumentError`.
    """

    draws = 2

    def __init__(self, mean: float = 0.0, sigma: float = 0.1, clip: bool = True) -> None:
        self.mean = number("mean", mean, -1, 1)
        self.sigma = number("sigma", sigma, 0, 1)
        self.clip = clip

    def __call__(self, x_NCHW: Tensor, u_ND: Tensor, turn_N: Tensor) -> Tensor:
        u_NCHW = pixel_uniforms(u_ND, x_NCHW.shape).clamp_(min=2.0**-25)  # 0 would be −∞
        normal_NCHW = math.sqrt(2) * torch.erfinv(2 * u_NCHW - 1)
        noisy_NCHW = x_NCHW + BRIGHTEST * (self.mean + self.sigma * normal_NCHW)
        return noisy_NCHW.clamp(0, BRIGHTEST) if self.clip else noisy_NCHW
