"""RandAugment and TrivialAugment: operations drawn for each image, computed for all images of an operation together.

Operations and magnitudes are those of `torchvision.transforms.v2.RandAugment` and `TrivialAugmentWide` for uint8
images: on whole numbers of 0…255, with every result a whole number again.
"""

from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor

from cnnlab.data.color import adjust_brightness, away_from, grey
from cnnlab.data.geometry import INTERPOLATIONS, matrices, resample
from cnnlab.data.per_image import (
    BRIGHTEST,
    Augmentation,
    Fill,
    Operation,
    Shape,
    by_operation,
    check_fill,
    check_grey_or_rgb,
    fill_value,
)
from cnnlab.runtime.checks import integer, one_of

Matrix = Callable[[Tensor, int, int], Tensor]  # magnitudes (N,), height, width → (N, 2, 3), as `resample` takes it
MOST_OPS, MOST_BINS = 100, 10_000


class _AutoAugment(Augmentation):
    """What both have: the operations, how pixels are read and what is around the image."""

    def __init__(self, num_magnitude_bins: int, interpolation: str, fill: Fill) -> None:
        self.num_magnitude_bins = integer("num_magnitude_bins", num_magnitude_bins, 2, MOST_BINS)
        self.interpolation = one_of("interpolation", interpolation, INTERPOLATIONS)
        self.fill = fill_value("fill", fill)

    def check(self, shape: Shape) -> None:
        check_grey_or_rgb(shape)
        check_fill("fill", self.fill, shape[0])

    def applied(self, x_NCHW: Tensor, operation_N: Tensor, magnitude_N: Tensor) -> Tensor:
        """Whole numbers of 0…255 changed by `OPERATIONS[operation_N]`."""
        moves = [partial(_moved, matrix, self.interpolation, self.fill) for matrix in MOVES.values()]
        return by_operation(x_NCHW, operation_N, [*moves, *CHANGES.values()], magnitude_N)

    def drawn(self, table_KB: Tensor, operation_u_N: Tensor, sign_u_N: Tensor, bin_N: Tensor) -> tuple[Tensor, Tensor]:
        """Operations, and their magnitudes, of which those that have a direction are negative at random."""
        operation_N = (operation_u_N * len(OPERATIONS)).long()
        magnitude_N = table_KB.to(bin_N.device)[operation_N, bin_N]
        return operation_N, torch.where((sign_u_N < 0.5) & (operation_N < SIGNED), -magnitude_N, magnitude_N)


class RandAugment(_AutoAugment):
    """`num_ops` random operations of the same `magnitude` on each image, as torchvision's `RandAugment`.

    Each is one of 14: identity, shear and translation along rows or columns, rotation, brightness, color, contrast,
    sharpness, posterize, solarize, autocontrast, equalize (arXiv 1909.13719). `magnitude` counts from 0 to
    `num_magnitude_bins` − 1. `interpolation` is nearest or bilinear; around the image is `fill` of 0…255, one number
    or one for each channel. Images are rounded to whole numbers of 0…255 first. Color leaves images of 1 channel as
    they are. Raises `ArgumentError`.
    """

    def __init__(
        self,
        num_ops: int = 2,
        magnitude: int = 9,
        num_magnitude_bins: int = 31,
        interpolation: str = "nearest",
        fill: Fill = 0.0,
    ) -> None:
        super().__init__(num_magnitude_bins, interpolation, fill)
        self.num_ops = integer("num_ops", num_ops, 0, MOST_OPS)
        self.magnitude = integer("magnitude", magnitude, 0, num_magnitude_bins - 1)
        self.draws = 2 * self.num_ops

    def __call__(self, x_NCHW: Tensor, u_ND: Tensor, turn_N: Tensor) -> Tensor:
        table_KB = magnitudes(self.num_magnitude_bins, *x_NCHW.shape[2:])
        bin_N = torch.full((len(x_NCHW),), self.magnitude, device=x_NCHW.device)
        x_NCHW = _levels(x_NCHW)
        for first in range(0, self.draws, 2):
            drawn = self.drawn(table_KB, u_ND[:, first], u_ND[:, first + 1], bin_N)
            x_NCHW = self.applied(x_NCHW, *drawn)
        return x_NCHW


class TrivialAugmentWide(_AutoAugment):
    """One random operation of a random magnitude on each image, as torchvision's `TrivialAugmentWide`.

    The operations are those of `rand_augment`, over wider ranges (arXiv 2103.10158), each in `num_magnitude_bins`
    steps. `interpolation` is nearest or bilinear; around the image is `fill` of 0…255, one number or one for each
    channel. Images are rounded to whole numbers of 0…255 first. Raises `ArgumentError`.
    """

    draws = 3

    def __init__(self, num_magnitude_bins: int = 31, interpolation: str = "nearest", fill: Fill = 0.0) -> None:
        super().__init__(num_magnitude_bins, interpolation, fill)

    def __call__(self, x_NCHW: Tensor, u_ND: Tensor, turn_N: Tensor) -> Tensor:
        bin_N = (u_ND[:, 2] * self.num_magnitude_bins).long()
        drawn = self.drawn(wide_magnitudes(self.num_magnitude_bins), u_ND[:, 0], u_ND[:, 1], bin_N)
        return self.applied(_levels(x_NCHW), *drawn)


@lru_cache(maxsize=64)
def magnitudes(bins: int, height: int, width: int) -> Tensor:
    """(operations, bins) of RandAugment, as the operations take them; translations are cut to whole pixels."""
    along_rows, along_columns = 150 / 331 * width, 150 / 331 * height
    return _table(bins, shear=0.3, translate=(along_rows, along_columns), rotate=30.0, factor=0.9, lost_bits=4)


@lru_cache(maxsize=64)
def wide_magnitudes(bins: int) -> Tensor:
    """(operations, bins) of TrivialAugment."""
    return _table(bins, shear=0.99, translate=(32.0, 32.0), rotate=135.0, factor=0.99, lost_bits=6)


def _table(
    bins: int, *, shear: float, translate: tuple[float, float], rotate: float, factor: float, lost_bits: int
) -> Tensor:
    up = partial(torch.linspace, 0.0, steps=bins)
    left = (8 - torch.arange(bins) / ((bins - 1) / lost_bits)).round()
    rows = {
        **dict.fromkeys(("shear_x", "shear_y"), up(shear)),
        "translate_x": up(translate[0]).trunc(),
        "translate_y": up(translate[1]).trunc(),
        "rotate": up(rotate),
        **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), up(factor)),
        "posterize": 2.0 ** (8 - left),
        "solarize": BRIGHTEST * torch.linspace(1.0, 0.0, bins),
    }
    return torch.stack([rows.get(name, torch.zeros(bins)) for name in OPERATIONS])


def _levels(x_NCHW: Tensor) -> Tensor:
    """The nearest whole numbers of 0…255; an augmentation before may have left them."""
    return x_NCHW.round().clamp_(0, BRIGHTEST)


def _moved(matrix: Matrix, interpolation: str, fill: Fill, x_NCHW: Tensor, magnitude_N111: Tensor) -> Tensor:
    matrix_N23 = matrix(magnitude_N111.flatten(), *x_NCHW.shape[2:])
    return resample(x_NCHW, matrix_N23, interpolation, fill).round_()


def _shear_x(m_N: Tensor, height: int, width: int) -> Tensor:
    one_N, zero_N = torch.ones_like(m_N), torch.zeros_like(m_N)
    return matrices(one_N, m_N, m_N * height / 2, zero_N, one_N, zero_N)  # the upper edge stays


def _shear_y(m_N: Tensor, height: int, width: int) -> Tensor:
    one_N, zero_N = torch.ones_like(m_N), torch.zeros_like(m_N)
    return matrices(one_N, zero_N, zero_N, m_N, one_N, m_N * width / 2)  # the left edge stays


def _translate_x(m_N: Tensor, height: int, width: int) -> Tensor:
    one_N, zero_N = torch.ones_like(m_N), torch.zeros_like(m_N)
    return matrices(one_N, zero_N, -m_N, zero_N, one_N, zero_N)


def _translate_y(m_N: Tensor, height: int, width: int) -> Tensor:
    one_N, zero_N = torch.ones_like(m_N), torch.zeros_like(m_N)
    return matrices(one_N, zero_N, zero_N, zero_N, one_N, -m_N)


def _rotate(m_N: Tensor, height: int, width: int) -> Tensor:
    cos_N, sin_N, zero_N = m_N.deg2rad().cos(), m_N.deg2rad().sin(), torch.zeros_like(m_N)
    return matrices(cos_N, -sin_N, zero_N, sin_N, cos_N, zero_N)


def _brightness(x_NCHW: Tensor, m_N111: Tensor) -> Tensor:
    return adjust_brightness(x_NCHW, 1 + m_N111).floor_()


def _color(x_NCHW: Tensor, m_N111: Tensor) -> Tensor:
    return x_NCHW if x_NCHW.shape[1] == 1 else away_from(grey(x_NCHW).floor_(), x_NCHW, m_N111).floor_()


def _contrast(x_NCHW: Tensor, m_N111: Tensor) -> Tensor:
    return away_from(grey(x_NCHW).floor().mean((1, 2, 3), keepdim=True), x_NCHW, m_N111).floor_()


def _sharpness(x_NCHW: Tensor, m_N111: Tensor) -> Tensor:
    """Away from a blurred image, whose pixels weigh 5 and their eight neighbours 1; the border stays."""
    if min(x_NCHW.shape[2:]) <= 2:
        return x_NCHW
    inner_NCHW = x_NCHW[:, :, 1:-1, 1:-1]
    columns = x_NCHW[:, :, :-2] + x_NCHW[:, :, 1:-1] + x_NCHW[:, :, 2:]
    sums = columns[..., :-2] + columns[..., 1:-1] + columns[..., 2:]
    blurred = sums.add_(inner_NCHW, alpha=4).div_(13).round_()
    changed_NCHW = x_NCHW.clone()
    changed = torch.addcmul(inner_NCHW, blurred.sub_(inner_NCHW), m_N111, value=-1)
    changed_NCHW[:, :, 1:-1, 1:-1] = changed.clamp_(0, BRIGHTEST).floor_()
    return changed_NCHW


def _posterize(x_NCHW: Tensor, step_N111: Tensor) -> Tensor:
    return (x_NCHW / step_N111).floor_().mul_(step_N111)


def _solarize(x_NCHW: Tensor, threshold_N111: Tensor) -> Tensor:
    return torch.where(x_NCHW >= threshold_N111, BRIGHTEST - x_NCHW, x_NCHW)


def _autocontrast(x_NCHW: Tensor, unused_N111: Tensor) -> Tensor:
    """Each channel stretched to 0…255; one of a single value stays."""
    least, most = x_NCHW.amin((2, 3), keepdim=True), x_NCHW.amax((2, 3), keepdim=True)
    flat = least == most
    scale = ((most - least) * (1 / BRIGHTEST)).masked_fill_(flat, 1)
    return x_NCHW.sub(least.masked_fill_(flat, 0)).div_(scale).clamp_(0, BRIGHTEST).floor_()


def _equalize(x_NCHW: Tensor, unused_N111: Tensor) -> Tensor:
    """Each level of a channel becomes the number of its darker pixels, in steps such that the brightest is 255.

    A step is what all but the pixels of the brightest level make, divided by 255; where that is none, nothing changes.
    """
    level_NCP = x_NCHW.flatten(2).long()
    counts_NCL = torch.zeros(*level_NCP.shape[:2], 256, dtype=torch.int64, device=x_NCHW.device)
    counts_NCL.scatter_add_(2, level_NCP, torch.ones_like(level_NCP))
    brightest_NC1 = counts_NCL.gather(2, level_NCP.amax(2, keepdim=True))
    step_NC1 = (level_NCP.shape[2] - brightest_NC1) // 255
    darker_NCL = counts_NCL.cumsum(2) - counts_NCL
    levels_NCL = ((darker_NCL + step_NC1 // 2) // step_NC1.clamp(min=1)).clamp_(max=255)
    equalized_NCP = levels_NCL.to(x_NCHW.dtype).gather(2, level_NCP)
    return torch.where(step_NC1[..., None] > 0, equalized_NCP.reshape(x_NCHW.shape), x_NCHW)


def _identity(x_NCHW: Tensor, unused_N111: Tensor) -> Tensor:
    return x_NCHW


MOVES: dict[str, Matrix] = {
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
}
CHANGES: dict[str, Operation] = {
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "identity": _identity,
}
OPERATIONS = (*MOVES, *CHANGES)
SIGNED = OPERATIONS.index("posterize")  # of those before it, a negative magnitude is the other direction
