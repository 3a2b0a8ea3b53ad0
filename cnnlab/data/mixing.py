"""Mixing: pairs of images of a batch are blended, with their targets."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from cnnlab.runtime.checks import number

LEAST_ALPHA, MOST_ALPHA = 0.01, 1000.0  # below, gamma variates underflow; above, each image is half its partner's


class Mixing(ABC):
    """Blends each image with another of its batch; targets become probabilities (N, K) whose rows sum to 1.

    One weight for the whole batch, drawn from Beta(`alpha`, `alpha`): near 0 or 1 for a small alpha, uniform for 1.
    """

    def __init__(self, alpha: float = 0.2) -> None:
        self.alpha = number("alpha", alpha, LEAST_ALPHA, MOST_ALPHA)

    def __call__(self, x_NCHW: Tensor, target_NK: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        gammas = torch._standard_gamma(torch.full((2,), self.alpha, dtype=torch.float64), generator)
        weight = float(gammas[0] / gammas.sum())
        partner_N = torch.randperm(len(x_NCHW), generator=generator).to(x_NCHW.device)
        return self.mix(x_NCHW, target_NK, partner_N, weight, generator)

    @abstractmethod
    def mix(
        self, x_NCHW: Tensor, target_NK: Tensor, partner_N: Tensor, weight: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Each image and target with this weight, and its partner with the rest."""


class MixUp(Mixing):
    """x ← λ·x + (1 − λ)·x', and the targets the same (arXiv 1710.09412). Raises `ArgumentError`."""

    def mix(
        self, x_NCHW: Tensor, target_NK: Tensor, partner_N: Tensor, weight: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        return (
            torch.lerp(x_NCHW[partner_N], x_NCHW, weight),
            torch.lerp(target_NK[partner_N], target_NK, weight),
        )


class CutMix(Mixing):
    """Pastes a rectangle of the partner's over each image; targets go by area (arXiv 1905.04899).

    The rectangle has the image's proportions and about 1 − λ of its area, its middle anywhere: what is over an edge is
    cut, and the targets are weighted by the area that is left. Raises `ArgumentError`.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__(alpha)

    def mix(
        self, x_NCHW: Tensor, target_NK: Tensor, partner_N: Tensor, weight: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        height, width = x_NCHW.shape[2:]
        middle = torch.rand(2, generator=generator).tolist()
        rows, columns = (
            _cut(at * size, (1 - weight) ** 0.5 * size, size) for at, size in zip(middle, (height, width), strict=True)
        )
        mixed_NCHW = x_NCHW.clone()
        mixed_NCHW[:, :, rows, columns] = x_NCHW[partner_N][:, :, rows, columns]
        left = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
        return mixed_NCHW, torch.lerp(target_NK[partner_N], target_NK, left)


def _cut(middle: float, length: float, size: int) -> slice:
    """The pixels of a stretch about `middle`, within 0 … size."""
    return slice(max(0, round(middle - length / 2)), min(size, round(middle + length / 2)))
