"""Losses. Each declares whether it takes logits or activations, so that a mismatch with the last layer is an error.

All are the mean over the images of a batch; targets are class indices (N,) or class probabilities (N, K).
"""

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnlab.runtime.checks import number
from cnnlab.runtime.errors import ArgumentError
from cnnlab.runtime.eval_mode import in_evaluation_mode

Weights = Sequence[float] | str | None


class Loss(nn.Module):
    """The mean over the images of a loss of `each`; `takes` is what the network's output has to be."""

    takes: str
    sigmoid = False  # logits become probabilities by a sigmoid each, not by softmax

    @abstractmethod
    def each(self, output_NK: Tensor, target: Tensor) -> Tensor:
        """The loss of each image, (N,)."""

    def forward(self, output_NK: Tensor, target: Tensor) -> Tensor:
        return self.each(output_NK, target).mean()


class ClassWeighted(Loss):
    """A loss whose images count by the weight of their class.

    `weight` is a number for each class, or `balanced`: N / (K · n_k) for n_k of the N training images in class k
    (scikit-learn's definition). Weighted losses are divided by the number of images, so that the microbatches of a
    batch add up to it; `torch.nn.CrossEntropyLoss(weight)` divides by the weights in the batch. Raises `ArgumentError`.
    """

    weight: Tensor | None

    def __init__(self, weight: Weights = None) -> None:
        super().__init__()
        self.balanced = weight == "balanced"
        self.register_buffer("weight", None, persistent=False)  # follows from the config and the training images
        if isinstance(weight, str):
            if not self.balanced:
                raise ArgumentError("weight", f"expected balanced or a number for each class, received {weight!r}")
        elif weight is not None:
            self.weight = torch.tensor([number(f"weight[{k}]", value, 0) for k, value in enumerate(weight)])
            if len(weight) and not self.weight.any():
                raise ArgumentError("weight", "expected a weight above 0 for at least one class, received zeros alone")

    def check_classes(self, classes: int) -> None:
        """Raises `ArgumentError` where another number of weights was given."""
        if self.weight is not None and not self.balanced and len(self.weight) != classes:
            raise ArgumentError(
                "weight", f"expected {classes} numbers, one for each class of the data, received {len(self.weight)}"
            )

    def fit(self, counts_K: Sequence[int]) -> None:
        """Computes `balanced` weights from the number of training images in each class."""
        if not self.balanced:
            return
        if 0 in counts_K:
            raise ArgumentError(
                "weight", f"balanced needs images of every class, and class {counts_K.index(0)} has none to train on"
            )
        counts = torch.tensor(counts_K, dtype=torch.float64)
        self.weight = (counts.sum() / (len(counts) * counts)).float()


class CrossEntropy(ClassWeighted):
    """−Σ_k t_k · log softmax(logits)_k (`torch.nn.functional.cross_entropy`).

    `label_smoothing` ε takes (1 − ε)·t + ε/K for t (arXiv 1512.00567). Raises `ArgumentError`.
    """

    takes = "logits"

    def __init__(self, label_smoothing: float = 0.0, weight: Weights = None) -> None:
        super().__init__(weight)
        self.label_smoothing = number("label_smoothing", label_smoothing, 0, 1)

    def each(self, logits_NK: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits_NK, target, self.weight, reduction="none", label_smoothing=self.label_smoothing)

    def forward(self, logits_NK: Tensor, target: Tensor) -> Tensor:
        if self.weight is not None:
            return super().forward(logits_NK, target)
        return F.cross_entropy(logits_NK, target, label_smoothing=self.label_smoothing)


class Focal(ClassWeighted):
    """−Σ_k t_k · (1 − p_k)^γ · log p_k with p = softmax(logits) (arXiv 1708.02002, eq. 4, for K classes).

    γ = 0 is cross-entropy; the larger γ, the less an easy image counts. Raises `ArgumentError`.
    """

    takes = "logits"

    def __init__(self, gamma: float = 2.0, weight: Weights = None) -> None:
        super().__init__(weight)
        self.gamma = number("gamma", gamma, 0)

    def each(self, logits_NK: Tensor, target: Tensor) -> Tensor:
        log_p_NK = logits_NK.log_softmax(1, dtype=_at_least_fp32(logits_NK))
        tiny = torch.finfo(log_p_NK.dtype).tiny  # 0 ** γ has no slope for γ < 1
        missed_NK = (-torch.expm1(log_p_NK)).clamp_min(tiny)
        loss_NK = -(missed_NK**self.gamma) * log_p_NK * _probabilities_of(target, log_p_NK)
        return (loss_NK if self.weight is None else loss_NK * self.weight).sum(1)


class BCE(Loss):
    """Binary cross-entropy of each output with its own 0 or 1 (`binary_cross_entropy_with_logits`).

    Each class against all others (as in arXiv 2110.00476). The mean over the K outputs, as
    `torch.nn.BCEWithLogitsLoss` has it, or with `sum_classes` their sum: the cross-entropy of sigmoid neurons a,
    −Σ_k [t_k·ln a_k + (1 − t_k)·ln(1 − a_k)] (Nielsen, *Neural Networks and Deep Learning*, eq. 63). The sigmoid is in
    the loss, where ln a is exact for any logit: the last layer is a linear one. Raises `ArgumentError`.
    """

    takes = "logits"
    sigmoid = True

    def __init__(self, label_smoothing: float = 0.0, sum_classes: bool = False) -> None:
        super().__init__()
        self.label_smoothing = number("label_smoothing", label_smoothing, 0, 1)
        self.sum_classes = sum_classes

    def each(self, logits_NK: Tensor, target: Tensor) -> Tensor:
        target_NK = _probabilities_of(target, logits_NK)
        if self.label_smoothing:
            target_NK = target_NK * (1 - self.label_smoothing) + self.label_smoothing / logits_NK.shape[1]
        loss_NK = F.binary_cross_entropy_with_logits(logits_NK, target_NK, reduction="none")
        return loss_NK.sum(1) if self.sum_classes else loss_NK.mean(1)


class Quadratic(Loss):
    """½ · ‖a − t‖², summed over the outputs (Nielsen, *Neural Networks and Deep Learning*, eq. 6)."""

    takes = "activations"

    def each(self, activation_NK: Tensor, target: Tensor) -> Tensor:
        return 0.5 * (activation_NK - _probabilities_of(target, activation_NK)).square().sum(1)

    def forward(self, activation_NK: Tensor, target: Tensor) -> Tensor:
        # the mean over the images is K/2 times that over all outputs, which is one operation instead of four
        return F.mse_loss(activation_NK, _probabilities_of(target, activation_NK)) * (activation_NK.shape[1] / 2)


def _at_least_fp32(output_NK: Tensor) -> torch.dtype:
    """What autocast computes torch's own losses in, on CUDA and on CPU."""
    return torch.promote_types(output_NK.dtype, torch.float32)


def _probabilities_of(target: Tensor, output_NK: Tensor) -> Tensor:
    """Class indices as rows with a single one; class probabilities as they are."""
    if target.dim() == 1:
        classes_K = torch.arange(output_NK.shape[1], device=target.device)
        return (target.unsqueeze(1) == classes_K).to(output_NK.dtype)  # F.one_hot reads the largest target
    return target


LOSSES: dict[str, Callable[..., nn.Module]] = {
    "cross_entropy": CrossEntropy,
    "bce": BCE,
    "focal": Focal,
    "quadratic": Quadratic,
}
_TAKE_LOGITS = (nn.CrossEntropyLoss, nn.MultiMarginLoss)
_TAKE_SIGMOIDS_LOGITS = (nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss)


def takes(loss: nn.Module) -> str | None:
    """`logits` or `activations`: what the network has to put out for the loss; None where it is unknown."""
    if isinstance(loss, _TAKE_LOGITS + _TAKE_SIGMOIDS_LOGITS):
        return "logits"
    declared: str | None = getattr(loss, "takes", None)
    return declared


def check_untrained(loss: nn.Module) -> None:
    """Raises `ArgumentError` for a parameter of the loss that wants a gradient: nothing would ever update it."""
    for name, parameter in loss.named_parameters():
        if parameter.requires_grad:
            raise ArgumentError(
                name,
                f"{type(loss).__name__} declares it as an nn.Parameter, and only the network's parameters are trained: "
                f"expected a buffer (register_buffer), or a block of the network that holds it",
            )


def probabilities(loss: nn.Module, output_NK: Tensor) -> Tensor:
    """(N, K) float32 in [0, 1], from what the loss takes: softmax or sigmoid of logits, activations as they are."""
    output_NK = output_NK.float()
    return final_activation(loss, output_NK)(output_NK)


def final_activation(loss: nn.Module, output_NK: Tensor) -> Callable[[Tensor], Tensor]:
    """What makes probabilities of a network's outputs; of a user's own loss by the values of `output_NK`."""
    if isinstance(loss, _TAKE_SIGMOIDS_LOGITS) or (isinstance(loss, Loss) and loss.sigmoid):
        return torch.sigmoid
    if isinstance(loss, _TAKE_LOGITS) or (isinstance(loss, Loss) and loss.takes == "logits"):
        return partial(torch.softmax, dim=1)
    if isinstance(loss, nn.NLLLoss):
        return torch.exp
    within = bool(((output_NK >= 0) & (output_NK <= 1)).all())
    return nn.Identity() if within else partial(torch.softmax, dim=1)


@torch.no_grad()
def loss_of_each(loss: nn.Module, output_NK: Tensor, target: Tensor) -> Tensor:
    """(N,) the loss of each image, for any loss: ours, torch's (by `reduction`), or a user's own, one by one."""
    if isinstance(loss, Loss):
        return loss.each(output_NK, target)
    if type(loss).__module__ == nn.CrossEntropyLoss.__module__:  # torch's own
        single: Any = copy.copy(loss)
        single.reduction = "none"
        each: Tensor = single(output_NK, target).reshape(len(output_NK), -1).mean(1)
        return each
    with in_evaluation_mode(loss):
        return torch.stack([loss(output_NK[n : n + 1], target[n : n + 1]) for n in range(len(output_NK))])
