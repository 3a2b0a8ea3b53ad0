"""Augmentations that move pixels: flips, crops, and affine maps read by interpolation."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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
    spread,
)
from cnnlab.runtime.checks import integer, number, one_of
from cnnlab.runtime.errors import ArgumentError

INTERPOLATIONS = ("nearest", "bilinear")
Shear = float | Interval | tuple[float, float, float, float]


class HorizontalFlip(Augmentation):
    """Mirrors left and right with probability `p`; keeps the shape. Raises `ArgumentError`."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = number("p", p, 0, 1)

    def __call__(self, x_NCHW: Tensor, u_ND: Tensor, turn_N: Tensor) -> Tensor:
        return _mirror_where(u_ND[:, 0] < self.p, x_NCHW, 3)


class VerticalFlip(Augmentation):
    """Mirrors top and bottom with probability `p`; keeps the shape. Raises `ArgumentError`."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = number("p", p, 0, 1)

    def __call__(self, x_NCHW: Tensor, u_ND: Tensor, turn_N: Tensor) -> Tensor:
        return _mirror_where(u_ND[:, 0] < self.p, x_NCHW, 2)


class AlternatingFlip(Augmentation):
    """Mirrors every other showing of an image; half of the images start mirrored (arXiv 2404.00498, §3.6)."""

    same_each_turn = True

    def __call__(self, x_NCHW: Tensor, u_ND: Tensor, turn_N: Tensor) -> Tensor:
        return _mirror_where((u_ND[:, 0] < 0.5) ^ (turn_N % 2 == 1), x_NCHW, 3)


def _mirror_where(chosen_N: Tensor, x_NCHW: Tensor, dimension: int) -> Tensor:
    return torch.where(chosen_N[:, None, None, None], x_NCHW.flip(dimension), x_NCHW)


class RandomCrop(Augmentation):
    """Pads each side by `padding` pixels and cuts out the image's own size at random, as torchvision's `RandomCrop`.

    What is padded has the value `fill` of 0…255, or with `padding_mode` reflect is the image mirrored without its
    edge. Raises `ArgumentError`.
    """

    draws = 2
    _argument = "padding"

    def __init__(self, padding: int, fill: Fill = 0.0, padding_mode: str = "constant") -> None:
        self.padding = integer(self._argument, padding, 1)
        self.fill = fill_value("fill", fill)
        self.reflect = one_of("padding_mode", padding_mode, ("constant", "reflect")) == "reflect"

    def check(self, shape: Shape) -> None:
        smallest = min(shape[1:])
        if self.padding >= smallest:
            raise ArgumentError(
                self._argument,
                f"expected fewer than the {smallest} pixels of a side of the image, received {self.padding}",
            )
        check_fill("fill", self.fill, shape[0])

    def __call__(self, x_NCHW: Tensor, u_ND: Tensor, turn_N: Tensor) -> Tensor:
        height, width = x_NCHW.shape[2:]
        moved_N2 = (u_ND * (2 * self.padding + 1)).long() - self.padding
        rows_NH = torch.arange(height, device=x_NCHW.device) - moved_N2[:, :1]
        columns_NW = torch.arange(width, device=x_NCHW.device) - moved_N2[:, 1:]
        if self.reflect:
            return _gather_pixels(x_NCHW, _reflect(rows_NH, height), _reflect(columns_NW, width))
        inside_NHW = within(rows_NH, height)[:, :, None] & within(columns_NW, width)[:, None, :]
        taken_NCHW = _gather_pixels(x_NCHW, rows_NH.clamp(0, height - 1), columns_NW.clamp(0, width - 1))
        return taken_NCHW.where(inside_NHW[:, None], spread(self.fill, x_NCHW))


class Shift(RandomCrop):
    """Moves the image by −`pixels` … `pixels` rows and columns, as padding and cropping at random does.

    What comes in is mirrored without its edge (`padding_mode` reflect), or `padding_value` of 0…255 (constant).
    Raises `ArgumentError`.
    """

    _argument = "pixels"

    def __init__(self, pixels: int = 2, padding_mode: str = "reflect", padding_value: float = 0.0) -> None:
        super().__init__(pixels, number("padding_value", padding_value, 0, BRIGHTEST), padding_mode)


def _gather_pixels(x_NCHW: Tensor, rows_NH: Tensor, columns_NW: Tensor) -> Tensor:
    """Pixel (i, j) of image n from its row `rows_NH[n, i]` and column `columns_NW[n, j]`."""
    count, channels, height, width = x_NCHW.shape
    place_NHW = rows_NH[:, :, None] * width + columns_NW[:, None, :]
    place_NCP = place_NHW.reshape(count, 1, height * width).expand(count, channels, -1)
    return x_NCHW.reshape(count, channels, -1).gather(2, place_NCP).reshape(x_NCHW.shape)


def _reflect(place: Tensor, size: int) -> Tensor:
    """−1 → 1, size → size − 2: a mirror through the middle of the outermost pixels."""
    place = place.abs()
    return torch.where(place < size, place, 2 * (size - 1) - place)


def within(place: Tensor, size: int | Tensor) -> Tensor:
    return (place >= 0) & (place < size)


class RandomAffine(Augmentation):
    """Rotates, moves, scales and shears about the middle, each by a uniform amount, as torchvision's `RandomAffine`.

    `degrees` of rotation, clockwise for positive ones, is a pair or a number d for −d … d, and `shear` the same along
    the rows; four numbers are two intervals, along the rows and along the columns. `translate` is the largest fraction
    of width and of height, `scale` an interval of factors. Moves are not rounded to whole pixels. `interpolation` is
    nearest or bilinear; around the image is `fill` of 0…255, one number or one for each channel. Raises
    `ArgumentError`.
    """

    draws = 6

    def __init__(
        self,
        degrees: float | Interval,
        translate: Interval | None = None,
        scale: Interval | None = None,
        shear: Shear | None = None,
        interpolation: str = "nearest",
        fill: Fill = 0.0,
    ) -> None:
        self.degrees = _angles("degrees", degrees, 180)
        self.translate = _fractions("translate", (0.0, 0.0) if translate is None else translate)
        self.scale = factors("scale", (1.0, 1.0) if scale is None else scale)
        self.shear = _shears("shear", 0.0 if shear is None else shear)
        self.interpolation = one_of("interpolation", interpolation, INTERPOLATIONS)
        self.fill = fill_value("fill", fill)

    def check(self, shape: Shape) -> None:
        check_fill("fill", self.fill, shape[0])

    def __call__(self, x_NCHW: Tensor, u_ND: Tensor, turn_N: Tensor) -> Tensor:
        height, width = x_NCHW.shape[2:]
        down, right = self.translate[1] * height, self.translate[0] * width
        matrix_N23 = inverse_matrix(
            between(u_ND[:, 0], self.degrees),
            between(u_ND[:, 4], (-right, right)),
            between(u_ND[:, 3], (-down, down)),
            between(u_ND[:, 2], self.scale),
            between(u_ND[:, 1], self.shear[0]),
            between(u_ND[:, 5], self.shear[1]),
        )
        return resample(x_NCHW, matrix_N23, self.interpolation, self.fill)


class Affine(RandomAffine):
    """`random_affine` with bilinear interpolation, black around, and gentle defaults.

    `degrees` of rotation and of `shear` along the rows are drawn from −d … d; `translate` is the largest fraction of
    height and width, `scale` an interval of factors. Raises `ArgumentError`.
    """

    def __init__(
        self, degrees: float = 10.0, translate: float = 0.1, scale: Interval = (0.9, 1.1), shear: float = 0.0
    ) -> None:
        number("translate", translate, 0, 1)
        super().__init__(degrees, (translate, translate), scale, shear, "bilinear")


class RandomRotation(RandomAffine):
    """Rotates about the middle, as torchvision's `RandomRotation`; keeps the shape.

    `degrees`, counter-clockwise for positive ones, is a pair or a number d for −d … d. `interpolation` is nearest or
    bilinear; around the image is `fill` of 0…255, one number or one for each channel. Raises `ArgumentError`.
    """

    def __init__(self, degrees: float | Interval, interpolation: str = "nearest", fill: Fill = 0.0) -> None:
        super().__init__(degrees, interpolation=interpolation, fill=fill)
        self.degrees = -self.degrees[0], -self.degrees[1]


class Rotation(RandomRotation):
    """Rotates about the middle by −`degrees` … `degrees`; bilinear, black around. Raises `ArgumentError`."""

    def __init__(self, degrees: float = 10.0) -> None:
        super().__init__(degrees, "bilinear")


def _angles(argument: str, value: Any, most: float) -> Interval:
    """A pair of angles from −`most` to `most`, or −value … value. Raises `ArgumentError`."""
    if isinstance(value, list | tuple):
        return ascending(argument, value, -most, most)
    angle = number(argument, value, 0, most)
    return -angle, angle


def _shears(argument: str, value: Any) -> tuple[Interval, Interval]:
    """Intervals of angles, each less than a right one, along the rows and along the columns. Raises `ArgumentError`."""
    if isinstance(value, list | tuple) and len(value) == 4:
        both = _angles(argument, value[:2], 90), _angles(argument, value[2:], 90)
    else:
        both = _angles(argument, value, 90), (0.0, 0.0)
    if 90 in map(abs, (*both[0], *both[1])):
        raise ArgumentError(argument, f"expected less than 90 degrees, received {value!r}")
    return both


def _fractions(argument: str, value: Any) -> Interval:
    """A pair of numbers in [0, 1], of width and height. Raises `ArgumentError`."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ArgumentError(argument, f"expected a pair [of width, of height], received {value!r}")
    across, down = (number(argument, fraction, 0, 1) for fraction in value)
    return across, down


def inverse_matrix(
    degrees_N: Tensor, right_N: Tensor, down_N: Tensor, scale_N: Tensor, shear_x_N: Tensor, shear_y_N: Tensor
) -> Tensor:
    """(N, 2, 3): where each pixel comes from under shift ∘ rotation ∘ scale ∘ shear, in pixels from the middle.

    Angles are in degrees, clockwise with the y axis downwards. The shears are those of `torchvision.transforms`:
    x − tan(sx)·y after y − tan(sy)·x.
    """
    angle_N, shear_y_N = degrees_N.deg2rad(), shear_y_N.deg2rad()
    tangent_N = shear_x_N.deg2rad().tan()
    xx_N = (angle_N - shear_y_N).cos() / shear_y_N.cos()
    yx_N = (angle_N - shear_y_N).sin() / shear_y_N.cos()
    xy_N = -(xx_N * tangent_N + angle_N.sin())
    yy_N = angle_N.cos() - yx_N * tangent_N
    # the determinant is 1 but for the scale
    turned_N22 = matrices(yy_N, -xy_N, -yx_N, xx_N) / scale_N[:, None, None]
    return torch.cat([turned_N22, -turned_N22 @ torch.stack([right_N, down_N], 1)[:, :, None]], 2)


def matrices(*entries: Tensor) -> Tensor:
    """(N, 2, …) of entries (N,) given row by row."""
    return torch.stack(entries, 1).reshape(len(entries[0]), 2, -1)


def resample(x_NCHW: Tensor, matrix_N23: Tensor, interpolation: str, fill: Fill = 0.0) -> Tensor:
    """Images whose pixels are read at M·(x, y, 1), in pixels from the middle; `fill` where that is outside."""
    height, width = x_NCHW.shape[2:]
    sides_2 = torch.tensor([width / 2, height / 2], device=x_NCHW.device)  # grid_sample counts sides as −1 … 1
    ones_1 = torch.ones(1, device=x_NCHW.device)
    theta_N23 = matrix_N23 * torch.cat([sides_2, ones_1]) / sides_2[:, None]
    grid_NHW2 = F.affine_grid(theta_N23, list(x_NCHW.shape), align_corners=False)
    if fill in (0.0, (0.0,)):
        return _sample(x_NCHW, grid_NHW2, interpolation, "zeros")
    around_C11 = spread(fill, x_NCHW)  # what is outside counts as zero, so the images are measured from it
    return _sample(x_NCHW - around_C11, grid_NHW2, interpolation, "zeros") + around_C11


def _sample(x_NCHW: Tensor, grid_NHW2: Tensor, interpolation: str, padding_mode: str) -> Tensor:
    return F.grid_sample(x_NCHW, grid_NHW2, mode=interpolation, padding_mode=padding_mode, align_corners=False)


class RandomResizedCrop(Augmentation):
    """Cuts out a rectangle and stretches it to the image's size (as `torchvision.transforms.RandomResizedCrop`).

    `scale` is the interval of the crop's fraction of the area, `ratio` that of its width to its height in pixels, drawn
    on a logarithmic scale; sides are cut to those of the image. Raises `ArgumentError`.
    """

    draws = 4

    def __init__(self, scale: Interval = (0.5, 1.0), ratio: Interval = (3 / 4, 4 / 3)) -> None:
        self.scale = factors("scale", scale)
        if self.scale[1] > 1:
            raise ArgumentError("scale", f"expected fractions of the area, at most 1, received {list(scale)!r}")
        self.ratio = factors("ratio", ratio)

    def __call__(self, x_NCHW: Tensor, u_ND: Tensor, turn_N: Tensor) -> Tensor:
        height, width = x_NCHW.shape[2:]
        area_N = between(u_ND[:, 0], self.scale)
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        # relative to the image's own ratio, as affine_grid counts sides
        stretch_N = (between(u_ND[:, 1], (low, high)).exp() * height / width).sqrt()
        sides_N2 = torch.stack([area_N.sqrt() * stretch_N, area_N.sqrt() / stretch_N], 1).clamp(max=1)
        middle_N2 = (2 * u_ND[:, 2:] - 1) * (1 - sides_N2)
        theta_N23 = torch.cat([torch.diag_embed(sides_N2), middle_N2[:, :, None]], 2)
        grid_NHW2 = F.affine_grid(theta_N23, list(x_NCHW.shape), align_corners=False)
        return _sample(x_NCHW, grid_NHW2, "bilinear", "border")
