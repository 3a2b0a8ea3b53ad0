"""Filters that whiten the patches of images (arXiv 2404.00498, section 3.2)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnlab.runtime.errors import ArgumentError

CHUNK = 1 << 22  # numbers of patches in memory at once


@dataclass(frozen=True)
class Whitening:
    """An initializer that marks a convolution; its filters need images, which come later.

    What is computed from them is `filters`, where `images` is how many are wanted.
    """

    images: int
    eps: float

    def __call__(self, module: nn.Module) -> None:
        if not list(module.parameters(recurse=False)):
            return
        if not isinstance(module, nn.Conv2d) or module.groups != 1:
            what = f"groups={module.groups}" if isinstance(module, nn.Conv2d) else type(module).__name__
            raise ArgumentError("type", f"whitening is an init of its own for a conv without groups, received {what}")
        wanted = 2 * patch_size(module)
        if module.out_channels != wanted:
            raise ArgumentError(
                "type",
                f"whitening has two filters for each number of a patch: expected out_channels = 2·"
                f"{describe_patch(module)} = {wanted}, received {module.out_channels}",
            )
        vars(module)["whitening"] = self

    def filters(self, covariance_DD: Tensor, conv: nn.Conv2d) -> Tensor:
        """(2·D, C, k, k) in the type of the convolution's weight, from the covariance of its patches."""
        value_D, vector_DD = torch.linalg.eigh(covariance_DD.double())
        whitened_DD = (vector_DD / (value_D.clamp(min=0) + self.eps).sqrt()).T.flip(0)
        return torch.cat((whitened_DD, -whitened_DD)).view(conv.weight.shape).to(conv.weight.dtype)


def patch_size(conv: nn.Conv2d) -> int:
    """The D = C·k·k numbers that a filter sees at once."""
    return conv.in_channels * math.prod(conv.kernel_size)


def describe_patch(conv: nn.Conv2d) -> str:
    """`2·2·3`: rows, columns and channels of a patch."""
    return "·".join(str(size) for size in (*conv.kernel_size, conv.in_channels))


def patch_covariance(inputs: Iterable[Tensor], conv: nn.Conv2d) -> Tensor:
    """(D, D) in float64: the covariance of all patches inside of the inputs (N, C, H, W), at every offset."""
    size = patch_size(conv)
    count, sum_D, product_DD = 0, torch.zeros(size).double(), torch.zeros(size, size).double()
    for x_NCHW in inputs:
        for part_NCHW in x_NCHW.split(max(1, CHUNK // (x_NCHW[0, 0].numel() * size))):
            patches_NDP = F.unfold(part_NCHW.double(), conv.kernel_size, conv.dilation)
            patches_PD = patches_NDP.transpose(1, 2).reshape(-1, size)
            count += len(patches_PD)
            sum_D += patches_PD.sum(0)
            product_DD += patches_PD.T @ patches_PD
    mean_D = sum_D / count
    return product_DD / count - torch.outer(mean_D, mean_D)
