"""What a network looks like at a step: its weights, their gradients, and what each layer puts out."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.engine.execution import Execution
from cnnlab.engine.records import Snapshot
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.randomness import put_back

IMAGES = 16  # at most; enough for a histogram, and a fraction of a batch's time and memory


def sample(batch: Batch, count: int = IMAGES) -> Batch:
    """A copy of the batch's first images, taken before a step: first layers may work in place."""
    first = batch[slice(count)]
    return Batch(first.x_NCHW.clone(), first.target, first.index_N)


def take_snapshot(
    network: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    execution: Execution,
    images: Batch,
    *,
    step: int,
    epoch: int,
) -> Snapshot:
    """One forward and backward pass over the images, in evaluation mode and in fp32.

    It runs on a copy of network and loss, and the global generators are put back: training is as without it.
    """
    network, loss = copy.deepcopy((network, loss))
    for module in (network, loss):
        if isinstance(module, nn.Module):
            module.eval()
    activations: dict[str, Tensor] = {}
    for name, layer in network.named_children():
        layer.register_forward_hook(_keep(activations, name))
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    with put_back([]), torch.enable_grad(), _differentiable(network):
        value = loss(
            network(execution.arrange(images.x_NCHW.clone())), images.target
        )  # a first layer may work in place
        gradients = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
    return Snapshot(
        step=step,
        epoch=epoch,
        weights={name: parameter.detach() for name, parameter in trained.items()},
        gradients={name: one for name, one in zip(trained, gradients, strict=True) if one is not None},
        activations=activations,
        x_NCHW=images.x_NCHW,
        target=images.target,
    )


def _keep(activations: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def keep(layer: nn.Module, arguments: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            activations[name] = output.detach().clone()  # the next layer may work in place

    return keep


def _differentiable(network: nn.Module) -> AbstractContextManager[object]:
    """cuDNN differentiates recurrent layers in training mode alone."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in network.modules())
    return torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()
