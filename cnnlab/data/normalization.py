"""uint8 images become the floats that the network sees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cnnlab.data.level_counts import LEVELS, level_counts
from cnnlab.data.source import Images
from cnnlab.runtime.checks import number, one_of
from cnnlab.runtime.errors import ArgumentError

NORMALIZATIONS = ("standardize", "unit", "none", "imagenet")
# of ImageNet's training images, red, green, blue, in units of 0…1; what torchvision's networks were trained with
# (github.com/pytorch/vision, references/classification/presets.py)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_SD = (0.229, 0.224, 0.225)
SMALLEST_STD = 1e-6  # in units of 0…1


@dataclass(frozen=True)
class Normalization:
    """x ↦ (x − mean) / sd per channel, in units of the uint8 images (0…255)."""

    mean_C: tuple[float, ...]
    sd_C: tuple[float, ...]

    @classmethod
    def fit(cls, method: str | Mapping[str, Any], images: Images | Tensor) -> "Normalization":
        """`standardize` measures mean and sd of the training images, `unit` maps to [0, 1], `none` to 0…255.

        `imagenet` takes ImageNet's, for grey images their means over the three channels, and a mapping its own `mean`
        and `std`, a number for each channel in units of 0…1. Raises `ArgumentError`.
        """
        channels = images.shape[0] if isinstance(images, Images) else images.shape[1]
        check_normalization(method, channels)
        if given := given_statistics(method, channels):
            mean, sd = (tuple(255 * value for value in statistics) for statistics in given)
            return cls(mean, sd)
        if method == "standardize":
            counts_C256 = level_counts(images)
            levels = torch.arange(LEVELS, dtype=torch.float64)
            total_C = counts_C256.sum(1)
            mean_C = (counts_C256 * levels).sum(1) / total_C
            var_C = (counts_C256 * (levels - mean_C[:, None]) ** 2).sum(1) / total_C
            sd_C = [sd if sd > 0 else 1.0 for sd in var_C.sqrt().tolist()]  # a channel of one value
            return cls(tuple(mean_C.tolist()), tuple(sd_C))
        scale = {"unit": 255.0, "none": 1.0}[str(method)]
        return cls((0.0,) * channels, (scale,) * channels)

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(−mean/sd, 1/sd), each (C, 1, 1) float32."""
        mean_C = torch.tensor(self.mean_C, dtype=torch.float64)
        sd_C = torch.tensor(self.sd_C, dtype=torch.float64)
        shift_C11, scale_C11 = (-mean_C / sd_C)[:, None, None], (1 / sd_C)[:, None, None]
        return shift_C11.float().to(device), scale_C11.float().to(device)


def normalized(x_NCHW: Tensor, shift_C11: Tensor, scale_C11: Tensor) -> Tensor:
    """Images of 0…255 as the network sees them, by the `tensors` of a `Normalization`; float32 for uint8 ones."""
    return (x_NCHW * scale_C11).add_(shift_C11)


def given_statistics(method: str | Mapping[str, Any], channels: int) -> tuple[tuple[float, ...], ...] | None:
    """Mean and sd per channel, in units of 0…1, that a method brings along; None where it has none."""
    if isinstance(method, Mapping):
        return tuple(method["mean"]), tuple(method["std"])
    if method == "imagenet":
        return of_channels(IMAGENET_MEAN, channels), of_channels(IMAGENET_SD, channels)
    return None


def of_channels(rgb: Sequence[float], channels: int) -> tuple[float, ...]:
    """What is known of red, green and blue, for colour images; for grey ones its mean."""
    return tuple(rgb) if channels == 3 else (sum(rgb) / 3,)


def check_method(method: Any) -> None:
    """Raises `ArgumentError` for anything but a method's name, or a mapping of `mean` and `std`."""
    if not isinstance(method, Mapping):
        one_of("normalize", method, NORMALIZATIONS)
        return
    if set(method) != {"mean", "std"} or not all(isinstance(values, list | tuple) for values in method.values()):
        raise ArgumentError("normalize", f"expected {{mean: [NUMBER, …], std: [NUMBER, …]}}, received {dict(method)}")
    for value in method["mean"]:
        number("normalize.mean", value)
    for value in method["std"]:
        number("normalize.std", value, SMALLEST_STD)


def check_normalization(method: str | Mapping[str, Any], channels: int) -> None:
    """Raises `ArgumentError` where images of so many channels cannot be normalised so."""
    if method == "imagenet" and channels not in (1, 3):
        raise ArgumentError("normalize", f"imagenet is for images of 1 channel or 3, and these have {channels}")
    if isinstance(method, Mapping):
        for name, values in method.items():
            if len(values) != channels:
                raise ArgumentError(
                    f"normalize.{name}", f"expected a number for each of the {channels} channels, received {[*values]}"
                )
