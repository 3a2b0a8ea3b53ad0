"""uint8 pictures become the floats that the network sees."""

from dataclasses import dataclass

import torch
from torch import Tensor

NORMALIZATIONS = ("standardize", "unit", "none")


@dataclass(frozen=True)
class Normalization:
    """x ↦ (x − mean) / sd per channel, in units of the uint8 pictures (0…255)."""

    mean_C: tuple[float, ...]
    sd_C: tuple[float, ...]

    @classmethod
    def fit(cls, kind: str, x_NCHW: Tensor) -> "Normalization":
        """`standardize` measures mean and sd of the training pictures, `unit` maps to [0, 1], `none` to 0…255."""
        channels = x_NCHW.shape[1]
        if kind == "standardize":
            # exact integer sums: neither the order of the pictures nor the thread count moves a bit
            counts_C256 = torch.stack(
                [torch.bincount(x_NCHW[:, c].flatten(), minlength=256) for c in range(channels)]
            ).double()
            levels = torch.arange(256, dtype=torch.float64)
            total_C = counts_C256.sum(1)
            mean_C = (counts_C256 * levels).sum(1) / total_C
            var_C = (counts_C256 * (levels - mean_C[:, None]) ** 2).sum(1) / total_C
            sd_C = [sd if sd > 0 else 1.0 for sd in var_C.sqrt().tolist()]  # a channel of one value
            return cls(tuple(mean_C.tolist()), tuple(sd_C))
        scale = {"unit": 255.0, "none": 1.0}[kind]
        return cls((0.0,) * channels, (scale,) * channels)

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(−mean/sd, 1/sd), each (C, 1, 1) float32: one fused multiply-add a batch."""
        mean_C = torch.tensor(self.mean_C, dtype=torch.float64)
        sd_C = torch.tensor(self.sd_C, dtype=torch.float64)
        shift_C11, scale_C11 = (-mean_C / sd_C)[:, None, None], (1 / sd_C)[:, None, None]
        return shift_C11.float().to(device), scale_C11.float().to(device)
