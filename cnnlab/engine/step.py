"""One optimizer update: the four steps of training, in the order in which the notes explain them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cnnlab.engine.exchange import Exchange, added_up
from cnnlab.engine.execution import Execution
from cnnlab.runtime.batch import Batch

Network = Callable[[Tensor], Tensor]  # what runs: a module, or something around it; the optimizer holds the parameters
LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class StepResult:
    """Left on the device: `loss` () mean over the batch, `correct` () correct predictions, the norm if measured."""

    loss: Tensor
    correct: Tensor
    gradient_norm: Tensor | None


class Backend(Protocol):
    """Computes a microbatch's gradients: `forward_backward`, or the same as one compiled graph."""

    def __call__(
        self,
        network: Network,
        loss: LossFunction,
        microbatch: Batch,
        *,
        execution: Execution,
        scaler: torch.amp.GradScaler,
    ) -> tuple[Tensor, Tensor]: ...


class Step(Protocol):
    """Takes one training step: `train_step`, or the same captured as a CUDA graph."""

    def __call__(
        self,
        network: Network,
        loss: LossFunction,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        *,
        execution: Execution,
        scaler: torch.amp.GradScaler,
        accumulate: int = 1,
        clip_norm: float | None = None,
        measure_norm: bool = False,
        exchange: Exchange = ...,
    ) -> StepResult: ...


def forward_backward(
    network: Network, loss: LossFunction, microbatch: Batch, *, execution: Execution, scaler: torch.amp.GradScaler
) -> tuple[Tensor, Tensor]:
    """Adds the gradient of the weighted loss to the parameters' `grad`; returns that loss and the correct predictions.

    The loss () is the microbatch's mean times its weight, the correct predictions () int64.
    """
    with execution.autocast(microbatch.x_NCHW.device):
        output_NK = network(execution.arrange(microbatch.x_NCHW))  # 1. forward pass
        value = loss(output_NK, microbatch.target)  # 2. loss
    if microbatch.weight != 1:
        value = value * microbatch.weight
    scaler.scale(value).backward()  # 3. backward pass: how much each weight contributes
    return value.detach(), count_correct(output_NK.detach(), microbatch.target)


def train_step(
    network: Network,
    loss: LossFunction,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    *,
    execution: Execution,
    scaler: torch.amp.GradScaler,
    accumulate: int = 1,
    clip_norm: float | None = None,
    measure_norm: bool = False,
    backend: Backend = forward_backward,
    exchange: Exchange = added_up,
) -> StepResult:
    """Updates the parameters once. Nothing in here waits for the device.

    The batch is split into `accumulate` microbatches, each weighted by its fraction of the images, so that the gradient
    is that of the whole batch's mean loss. `clip_norm` bounds the gradient's L2 norm, after unscaling.
    """
    optimizer.zero_grad(set_to_none=True)
    passes = [
        backend(network, loss, microbatch, execution=execution, scaler=scaler)  # 1. to 3.
        for microbatch in batch.chunks(accumulate)
    ]
    loss_of_batch, correct = exchange(passes, batch.weight)
    scaler.unscale_(optimizer)
    norm = gradient_norm(optimizer, clip_norm) if measure_norm or clip_norm is not None else None
    scaler.step(optimizer)  # 4. parameter update
    scaler.update()
    return StepResult(loss_of_batch, correct, norm)


def gradient_norm(optimizer: torch.optim.Optimizer, clip_norm: float | None) -> Tensor:
    """The L2 norm of all gradients together, before they are scaled down to `clip_norm` where they exceed it."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in with_gradient if p.grad is not None])
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(with_gradient, clip_norm, norm)
    return norm


def count_correct(output_NK: Tensor, target: Tensor) -> Tensor:
    """How many rows have their largest output at the target's class; () int64."""
    target_N = target if target.dim() == 1 else target.argmax(1)
    return (output_NK.argmax(1) == target_N).sum()
