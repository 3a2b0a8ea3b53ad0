"""Losses. Each says whether it takes logits or activations, so that a mismatch with the last layer can be said.

All return the mean over the batch; targets are class indices (N,) or class probabilities (N, K).
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from cnnlab.runtime.checks import number


class CrossEntropy(nn.Module):
    """−Σ_k t_k · log softmax(logits)_k (`torch.nn.functional.cross_entropy`). Raises `ArgumentError`."""

    takes = "logits"

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = number("label_smoothing", label_smoothing, 0, 1)

    def forward(self, logits_NK: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits_NK, target, label_smoothing=self.label_smoothing)


class Quadratic(nn.Module):
    """½ · ‖a − t‖², summed over the outputs (Nielsen, *Neural Networks and Deep Learning*, eq. 6)."""

    takes = "activations"

    def forward(self, activation_NK: Tensor, target: Tensor) -> Tensor:
        if target.dim() == 1:
            target = F.one_hot(target, activation_NK.shape[1])
        return 0.5 * (activation_NK - target).square().sum(1).mean()


LOSSES: dict[str, Callable[..., nn.Module]] = {
    "cross_entropy": CrossEntropy,
    "quadratic": Quadratic,
}
