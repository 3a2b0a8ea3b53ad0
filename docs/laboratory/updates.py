"""Updates of a network by the training step itself, on given images."""

import torch
from torch import Tensor, nn

from cnnlab.components import Component
from cnnlab.engine.execution import Execution
from cnnlab.engine.optimization import OPTIMIZERS, build_optimizer
from cnnlab.engine.step import StepResult, train_step
from cnnlab.runtime.batch import Batch


def update(
    network: nn.Module, loss: nn.Module, x_NCHW: Tensor, target: Tensor, lr: float, weight_decay: float = 0.0
) -> StepResult:
    """One update of plain SGD on these images; the gradients stay in the parameters."""
    arguments = {"lr": lr, "weight_decay": weight_decay}
    optimizer = build_optimizer(Component("optimizer", "sgd", OPTIMIZERS["sgd"], arguments), network, {})
    execution = Execution()
    batch = Batch(x_NCHW, target, torch.arange(len(target)))
    return train_step(
        network, loss, optimizer, batch, execution=execution, scaler=execution.scaler(torch.device("cpu"))
    )


def gradients(network: nn.Module, loss: nn.Module, x_NCHW: Tensor, target: Tensor) -> dict[str, Tensor]:
    """By name: what one update that moves nothing leaves in the parameters."""
    update(network, loss, x_NCHW, target, lr=0.0)
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
