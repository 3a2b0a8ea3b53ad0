"""Augmentation: random changes to the images of a training batch.

Every augmentation takes float images of 0…255, (N, C, H, W), and for each image `draws` uniform numbers that are a
pure function of (seed, index, turn), where `turn` counts how often the image came before: its epoch, unless classes
are balanced. So the result does not depend on the batch, the workers or the loader. Mixing blends images of a
batch, so it depends on the batch as well.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from cnnlab.data.mixing import CutMix, Mixing, MixUp
from cnnlab.runtime.checks import integer, number, one_of
from cnnlab.runtime.errors import ArgumentError
from cnnlab.runtime.randomness import derive, uniforms

Shape = tuple[int, int, int]
Interval = tuple[float, float]
BRIGHTEST = 255.0
TURN_BITS = 32  # of a counter of 64 bits, the upper ones count turns, the lower ones images


class Augmentation(ABC):
    """Changes each image by `draws` random numbers."""

    draws = 1
    same_each_turn = False  # True if an image keeps its numbers

    def check(self, shape: Shape) -> None:  # noqa: B027 — most fit any image
        """Raises `ArgumentError` where images of (C, H, W) are too small for it."""

    @abstractmethod
    def __call__(self, x_NCHW: Tensor, u_ND: Tensor, turn_N: Tensor) -> Tensor:
        """The changed images; `u_ND` are uniform in [0, 1), `turn_N` int64 from 0."""


class HorizontalFlip(Augmentation):
    """Mirrors left and right with probability `p`; keeps the shape. Raises `ArgumentError`."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = number("p", p, 0, 1)

    def __call__(self, x_NCHW: Tensor, u_ND: Tensor, turn_N: Tensor) -> Tensor:
        return _mirror_where(u_ND[:, 0] < self.p, x_NCHW)


class AlternatingFlip(Augmentation):
    """Mirrors every other showing of an image; half of the images start mirrored (arXiv 2404.00498, §3.6)."""

    same_each_turn = True

    def __call__(self, x_NCHW: Tensor, u_ND: Tensor, turn_N: Tensor) -> Tensor:
        return _mirror_where((u_ND[:, 0] < 0.5) ^ (turn_N % 2 == 1), x_NCHW)


def _mirror_where(chosen_N: Tensor, x_NCHW: Tensor) -> Tensor:
    return torch.where(chosen_N[:, None, None, None], x_NCHW.flip(3), x_NCHW)


class Shift(Augmentation):
    """Moves the image by −`pixels` … `pixels` rows and columns, as padding and cropping at random does.

    What comes in is mirrored without its edge (`padding_mode` reflect), or `padding_value` of 0…255 (constant).
    Raises `ArgumentError`.
    """

    draws = 2

    def __init__(self, pixels: int = 2, padding_mode: str = "reflect", padding_value: float = 0.0) -> None:
        self.pixels = integer("pixels", pixels, 1)
        self.reflect = one_of("padding_mode", padding_mode, ("reflect", "constant")) == "reflect"
        self.padding_value = number("padding_value", padding_value, 0, BRIGHTEST)

    def check(self, shape: Shape) -> None:
        smallest = min(shape[1:])
        if self.pixels >= smallest:
            raise ArgumentError(
                "pixels", f"expected fewer than the {smallest} pixels of a side of the image, received {self.pixels}"
            )

    def __call__(self, x_NCHW: Tensor, u_ND: Tensor, turn_N: Tensor) -> Tensor:
        height, width = x_NCHW.shape[2:]
        moved_N2 = (u_ND * (2 * self.pixels + 1)).long() - self.pixels
        rows_NH = torch.arange(height, device=x_NCHW.device) - moved_N2[:, :1]
        columns_NW = torch.arange(width, device=x_NCHW.device) - moved_N2[:, 1:]
        if self.reflect:
            return _gather_pixels(x_NCHW, _reflect(rows_NH, height), _reflect(columns_NW, width))
        inside_NHW = _within(rows_NH, height)[:, :, None] & _within(columns_NW, width)[:, None, :]
        taken_NCHW = _gather_pixels(x_NCHW, rows_NH.clamp(0, height - 1), columns_NW.clamp(0, width - 1))
        return taken_NCHW.where(inside_NHW[:, None], torch.tensor(self.padding_value, device=x_NCHW.device))


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


def _within(place: Tensor, size: int) -> Tensor:
    return (place >= 0) & (place < size)


class Affine(Augmentation):
    """Turns, moves, scales and shears about the middle, each by a uniform amount; bilinear, black around.

    `degrees` of turning, counter-clockwise for positive ones, and of `shear` along the rows are drawn from −d … d;
    `translate` is the largest fraction of height and width, `scale` an interval of factors. Raises `ArgumentError`.
    """

    draws = 5

    def __init__(
        self, degrees: float = 10.0, translate: float = 0.1, scale: Interval = (0.9, 1.1), shear: float = 0.0
    ) -> None:
        self.degrees = number("degrees", degrees, 0, 180)
        self.translate = number("translate", translate, 0, 1)
        self.scale = _interval("scale", scale)
        self.shear = number("shear", shear, 0, 90, open_maximum=True)

    def __call__(self, x_NCHW: Tensor, u_ND: Tensor, turn_N: Tensor) -> Tensor:
        height, width = x_NCHW.shape[2:]
        signed_ND = 2 * u_ND - 1
        angle_N = signed_ND[:, 0] * math.radians(self.degrees)
        shear_N = torch.tan(signed_ND[:, 1] * math.radians(self.shear))
        factor_N = self.scale[0] + u_ND[:, 2] * (self.scale[1] - self.scale[0])
        down_N, right_N = signed_ND[:, 3] * self.translate * height, signed_ND[:, 4] * self.translate * width
        return _resample(x_NCHW, angle_N, shear_N, factor_N, down_N, right_N)


def _resample(
    x_NCHW: Tensor, angle_N: Tensor, shear_N: Tensor, factor_N: Tensor, down_N: Tensor, right_N: Tensor
) -> Tensor:
    """Reads each pixel from where the inverse of shift ∘ turn ∘ shear ∘ scale puts it; moves are in pixels."""
    height, width = x_NCHW.shape[2:]
    cos_N, sin_N = angle_N.cos(), angle_N.sin()
    # in pixels from the middle, y downwards: the inverse of a counter-clockwise turn, then of the shear
    xx_N, xy_N = cos_N - shear_N * sin_N, -sin_N - shear_N * cos_N
    yx_N, yy_N = sin_N, cos_N
    turn_N22 = torch.stack([torch.stack([xx_N, xy_N], 1), torch.stack([yx_N, yy_N], 1)], 1) / factor_N[:, None, None]
    back_N2 = -(turn_N22 @ torch.stack([right_N, down_N], 1)[:, :, None])[:, :, 0]
    sides_2 = torch.tensor([width / 2, height / 2], device=x_NCHW.device)  # grid_sample counts sides as −1 … 1
    theta_N23 = torch.cat([turn_N22 * sides_2 / sides_2[:, None], (back_N2 / sides_2)[:, :, None]], 2)
    grid_NHW2 = F.affine_grid(theta_N23, list(x_NCHW.shape), align_corners=False)
    return F.grid_sample(x_NCHW, grid_NHW2, mode="bilinear", padding_mode="zeros", align_corners=False)


class Rotation(Affine):
    """Turns about the middle by −`degrees` … `degrees`; bilinear, black around. Raises `ArgumentError`."""

    def __init__(self, degrees: float = 10.0) -> None:
        super().__init__(degrees, translate=0.0, scale=(1.0, 1.0), shear=0.0)


class RandomResizedCrop(Augmentation):
    """Cuts out a rectangle and stretches it to the image's size (as `torchvision.transforms.RandomResizedCrop`).

    `scale` is the interval of the crop's fraction of the area, `ratio` that of its width to its height in pixels, drawn
    on a logarithmic scale; sides are cut to those of the image. Raises `ArgumentError`.
    """

    draws = 4

    def __init__(self, scale: Interval = (0.5, 1.0), ratio: Interval = (3 / 4, 4 / 3)) -> None:
        self.scale = _interval("scale", scale)
        if self.scale[1] > 1:
            raise ArgumentError("scale", f"expected fractions of the area, at most 1, received {list(scale)!r}")
        self.ratio = _interval("ratio", ratio)

    def __call__(self, x_NCHW: Tensor, u_ND: Tensor, turn_N: Tensor) -> Tensor:
        height, width = x_NCHW.shape[2:]
        area_N = self.scale[0] + u_ND[:, 0] * (self.scale[1] - self.scale[0])
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        # relative to the image's own ratio, as affine_grid counts sides
        stretch_N = ((low + u_ND[:, 1] * (high - low)).exp() * height / width).sqrt()
        sides_N2 = torch.stack([area_N.sqrt() * stretch_N, area_N.sqrt() / stretch_N], 1).clamp(max=1)
        middle_N2 = (2 * u_ND[:, 2:] - 1) * (1 - sides_N2)
        theta_N23 = torch.cat([torch.diag_embed(sides_N2), middle_N2[:, :, None]], 2)
        grid_NHW2 = F.affine_grid(theta_N23, list(x_NCHW.shape), align_corners=False)
        return F.grid_sample(x_NCHW, grid_NHW2, mode="bilinear", padding_mode="border", align_corners=False)


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
        hit = []
        for axis, length in enumerate(x_NCHW.shape[2:]):
            place_NL = torch.arange(length, device=x_NCHW.device) - first_N2[:, axis : axis + 1]
            hit.append(_within(place_NL, self.size))
        hit_NHW = hit[0][:, :, None] & hit[1][:, None, :]
        return x_NCHW.masked_fill(hit_NHW[:, None], self.fill)


class Brightness(Augmentation):
    """Multiplies the image by a factor of 1 − `amount` … 1 + `amount`, within 0…255. Raises `ArgumentError`."""

    def __init__(self, amount: float = 0.2) -> None:
        self.amount = number("amount", amount, 0, 1)

    def __call__(self, x_NCHW: Tensor, u_ND: Tensor, turn_N: Tensor) -> Tensor:
        return (x_NCHW * _factors(u_ND, self.amount)).clamp(0, BRIGHTEST)


class Contrast(Augmentation):
    """Stretches the image about its own mean by 1 − `amount` … 1 + `amount`, within 0…255. Raises `ArgumentError`."""

    def __init__(self, amount: float = 0.2) -> None:
        self.amount = number("amount", amount, 0, 1)

    def __call__(self, x_NCHW: Tensor, u_ND: Tensor, turn_N: Tensor) -> Tensor:
        mean_N111 = x_NCHW.mean((1, 2, 3), keepdim=True)
        return torch.lerp(mean_N111, x_NCHW, _factors(u_ND, self.amount)).clamp(0, BRIGHTEST)


def _factors(u_ND: Tensor, amount: float) -> Tensor:
    return (1 + amount * (2 * u_ND[:, 0] - 1))[:, None, None, None]


def _interval(argument: str, value: Interval) -> Interval:
    """Two numbers from 10⁻⁴ to 10⁴ in ascending order. Raises `ArgumentError`."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ArgumentError(argument, f"expected a pair [least, most], received {value!r}")
    low = number(argument, value[0], 1e-4, 1e4)
    high = number(argument, value[1], 1e-4, 1e4)
    if low > high:
        raise ArgumentError(argument, f"expected [least, most] in this order, received {list(value)!r}")
    return low, high


class Augment:
    """Applies named augmentations to each training batch, in their order.

    The numbers of an image depend on (seed, the augmentation's name, index, turn) alone; how a batch is mixed, on
    (seed, name, epoch, position in the epoch). So it has no state to save.
    """

    def __init__(self, steps: Mapping[str, Augmentation | Mixing], classes: int, seed: int) -> None:
        self.steps = steps
        self.classes = classes
        self.seed = seed

    @property
    def mixes(self) -> bool:
        """True if an image's result depends on its batch."""
        return any(isinstance(step, Mixing) for step in self.steps.values())

    def __call__(
        self, x_NCHW: Tensor, target_N: Tensor, index_N: Tensor, turn_N: Tensor, epoch: int, position: int
    ) -> tuple[Tensor, Tensor]:
        """The changed images, and targets (N,), or (N, K) where images were mixed; `x_NCHW` float of 0…255.

        `turn_N` counts how often each image came before, `position` is the batch's in the epoch.
        """
        target = target_N
        for name, step in self.steps.items():
            if isinstance(step, Mixing):
                generator = torch.Generator().manual_seed(derive(self.seed, "mix", name, epoch, position))
                target_NK = target if target.dim() == 2 else F.one_hot(target, self.classes).float()
                x_NCHW, target = step(x_NCHW, target_NK, generator)
            else:
                counter_N = index_N if step.same_each_turn else (turn_N << TURN_BITS) + index_N
                u_ND = uniforms(derive(self.seed, "augment", name), counter_N, step.draws)
                x_NCHW = step(x_NCHW, u_ND, turn_N)
        return x_NCHW, target


AUGMENTATIONS: dict[str, Callable[..., Augmentation | Mixing]] = {
    "horizontal_flip": HorizontalFlip,
    "alternating_flip": AlternatingFlip,
    "shift": Shift,
    "affine": Affine,
    "rotation": Rotation,
    "random_resized_crop": RandomResizedCrop,
    "cutout": Cutout,
    "brightness": Brightness,
    "contrast": Contrast,
    "mixup": MixUp,
    "cutmix": CutMix,
}
