"""One optimizer update: the four steps of training, in the order in which the notes explain them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Protocol

import torch
from torch import Tensor, nn

from cnnlab.engine.execution import Execution
from cnnlab.runtime.batch import Batch


@dataclass(frozen=True)
class StepResult:
    """Left on the device: `loss` () mean over the batch, `correct` () correct predictions, the norm if measured."""

    loss: Tensor
    correct: Tensor
    gradient_norm: Tensor | None


class Step(Protocol):
    """What takes one step: `train_step`, or the same compiled."""

    def __call__(
        self,
        network: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        *,
        execution: Execution,
        scaler: torch.amp.GradScaler,
        accumulate: int = 1,
        clip_norm: float | None = None,
        measure_norm: bool = False,
    ) -> StepResult: ...


class Passes(Protocol):
    """What takes a part of a batch through the network and back: `forward_backward`, or the same traced."""

    def __call__(
        self,
        network: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        part: Batch,
        share: float,
        *,
        execution: Execution,
        scaler: torch.amp.GradScaler,
    ) -> tuple[Tensor, Tensor]: ...


def forward_backward(
    network: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    part: Batch,
    share: float,
    *,
    execution: Execution,
    scaler: torch.amp.GradScaler,
) -> tuple[Tensor, Tensor]:
    """Adds the gradient of `share` times the loss to the parameters; returns that loss and the correct predictions."""
    with execution.autocast(part.x_NCHW.device):
        output_NK = network(execution.arrange(part.x_NCHW))  # 1. forward pass
        cost = loss(output_NK, part.target)  # 2. loss
    if share != 1:
        cost = cost * share
    scaler.scale(cost).backward()  # 3. backward pass: which weights contribute how much
    return cost.detach(), count_correct(output_NK.detach(), part.target)


def train_step(
    network: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    *,
    execution: Execution,
    scaler: torch.amp.GradScaler,
    accumulate: int = 1,
    clip_norm: float | None = None,
    measure_norm: bool = False,
    passes: Passes = forward_backward,
) -> StepResult:
    """Updates the parameters once. Nothing in here waits for the device.

    The batch is worked off in `accumulate` parts, each weighted by its share of the images, so that the gradient is
    that of the whole batch's mean loss. `clip_norm` bounds the gradient's L2 norm, after unscaling.
    """
    optimizer.zero_grad(set_to_none=True)
    costs, right = [], []
    for part in batch.chunks(accumulate):
        share = len(part) / len(batch)
        cost, correct = passes(network, loss, part, share, execution=execution, scaler=scaler)
        costs.append(cost)
        right.append(correct)

    scaler.unscale_(optimizer)
    norm = gradient_norm(network, clip_norm) if measure_norm or clip_norm is not None else None
    scaler.step(optimizer)  # 4. parameter update
    scaler.update()
    return StepResult(reduce(add, costs), reduce(add, right), norm)


def gradient_norm(network: nn.Module, clip_norm: float | None) -> Tensor:
    """The L2 norm of all gradients together, before they are scaled down to `clip_norm` where they exceed it."""
    with_gradient = [parameter for parameter in network.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in with_gradient if p.grad is not None])
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(with_gradient, clip_norm, norm)
    return norm


def count_correct(output_NK: Tensor, target: Tensor) -> Tensor:
    """How many rows have their largest output at the target's class; () int64."""
    wanted_N = target if target.dim() == 1 else target.argmax(1)
    return (output_NK.argmax(1) == wanted_N).sum()
