"""Batch norm over the images of all ranks, on any device: torch's `SyncBatchNorm` computes on GPUs alone."""

import torch
import torch.distributed.nn.functional as differentiable
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cnnlab.runtime.distributed import training_group


class SyncBatchNorm(_BatchNorm):
    """A batch norm whose mean and variance in training are those of every rank's images together.

    Ranks may have different numbers of images, but each has to have one. The variance is the mean square of the
    deviations from the mean of all, in two passes, so that it loses no digits.
    """

    @classmethod
    def of(cls, norm: _BatchNorm) -> "SyncBatchNorm":
        """One with the parameters and averages of `norm`, which it shares."""
        made = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        made._parameters, made._buffers, made.training = norm._parameters, norm._buffers, norm.training
        return made

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.dim() in (2, 3, 4, 5)

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        group, channels = training_group(), [1, -1] + [1] * (input.dim() - 2)
        others = [dim for dim in range(input.dim()) if dim != 1]
        count = input.new_tensor([input.numel() / input.shape[1]], dtype=torch.float32)
        sums = differentiable.all_reduce(torch.cat([input.float().sum(others), count]), group=group)
        mean_C, count = sums[:-1] / sums[-1], sums[-1].detach()
        centred = input.float() - mean_C.view(channels)
        var_C = differentiable.all_reduce(centred.square().sum(others), group=group) / count
        self._average(mean_C.detach(), var_C.detach() * (count / (count - 1)))
        normalized = centred * torch.rsqrt(var_C + self.eps).view(channels)
        if self.weight is not None:
            normalized = normalized * self.weight.view(channels) + self.bias.view(channels)
        return normalized.to(input.dtype)

    @torch.no_grad()
    def _average(self, mean_C: Tensor, var_C: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        fraction = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean_C, fraction)
        self.running_var.lerp_(var_C, fraction)


def synchronized(network: nn.Module) -> nn.Module:
    """The network with each batch norm among the ranks; names and parameters stay."""
    if isinstance(network, _BatchNorm):
        return SyncBatchNorm.of(network)
    for name, child in network.named_children():
        setattr(network, name, synchronized(child))
    return network
