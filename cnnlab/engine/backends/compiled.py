"""Forward pass, loss and backward pass as one graph, compiled by torch's Inductor; imported by the runs that use it.

The graph is captured with `make_fx` in fake mode (https://docs.pytorch.org/docs/stable/fx.html), with parameters and
buffers as its inputs: capturing computes nothing, and leaves weights, buffers, generators and images as they were.
"""

import copy
import importlib.util
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cnnlab.engine.backends.graphs import Graphs
from cnnlab.engine.execution import Execution
from cnnlab.engine.step import LossFunction, Network, count_correct, forward_backward
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.errors import TrainingError, first_line

Graph = Callable[..., Sequence[Any]]

for _logger in ("torch.utils.cpp_extension", "torch._inductor"):  # they warn of a CUDA or an SM that a CPU lacks
    logging.getLogger(_logger).setLevel(logging.ERROR)


def missing_compiler(device: torch.device) -> str | None:
    """What Inductor needs and this machine lacks; None where nothing is missing."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "Triton (pip install triton)"
    command = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # as Inductor has it
    return None if shutil.which(command) else f"a C++ compiler ({command}, or another that CXX names)"


class Compiled:
    """`forward_backward` for microbatches of `images`, compiled when first called; the update stays the optimizer's.

    Random numbers are drawn from torch's own generators, so that a resumed run has the bits of an unbroken one; several
    draws in a step may come in another order than eagerly. What a module decides in Python is decided once, while the
    graph is made. Raises `TrainingError` where Inductor fails, or where a number in a tensor decides what is computed.
    """

    def __init__(self, images: int) -> None:
        self.graphs: Graphs[_Captured] = Graphs(images)

    def __call__(
        self,
        network: Network,
        loss: LossFunction,
        microbatch: Batch,
        *,
        execution: Execution,
        scaler: torch.amp.GradScaler,
    ) -> tuple[Tensor, Tensor]:
        captured = self.graphs.find(microbatch, lambda: _Captured(_Loss(network, loss, execution), microbatch))
        if captured is None:
            return forward_backward(network, loss, microbatch, execution=execution, scaler=scaler)
        weight = torch.full((), microbatch.weight, device=microbatch.x_NCHW.device)
        value, correct = captured(microbatch, scaler.scale(weight))
        return value * weight, correct


class _Loss(nn.Module):
    """The network and its loss as one module: images and target → mean loss and correct predictions."""

    def __init__(self, network: Network, loss: LossFunction, execution: Execution) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.execution = execution

    def forward(self, x_NCHW: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        with self.execution.autocast(x_NCHW.device):
            output_NK = self.network(self.execution.arrange(x_NCHW))
            value = self.loss(output_NK, target)
        return value, count_correct(output_NK.detach(), target)


class _Captured:
    """The compiled graph of one signature, and the parameters and buffers that it reads and writes."""

    def __init__(self, module: _Loss, batch: Batch) -> None:
        buffers = dict(module.named_buffers())
        tensors = dict(module.named_parameters()) | buffers
        self.trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.parameters = [parameter.detach() for parameter in module.parameters()]
        self.buffers = [(module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in buffers]
        try:
            inputs = [*self._state(), batch.x_NCHW, batch.target, torch.ones((), device=batch.x_NCHW.device)]
            shared: dict[int, Any] = {id(tensor): tensor for tensor in tensors.values()}
            trial = copy.deepcopy(module, shared)  # what a module keeps in Python is not changed by the capture
            self.graph = _compile(_passes(trial, tensors), inputs)
        except Exception as error:  # torch raises whatever it likes
            message = f"torch cannot compile this network and its loss: {first_line(error)}"
            raise TrainingError(f"{message} Try trainer.execution.compile=false") from error

    def _state(self) -> list[Tensor]:
        """Buffers are looked up in each step: a module may have put another tensor in their place."""
        return [*self.parameters, *(getattr(owner, name) for owner, name in self.buffers)]

    def __call__(self, batch: Batch, weight: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            value, correct, *gradients = self.graph(*self._state(), batch.x_NCHW, batch.target, weight)
            for parameter, gradient in zip(self.trained, gradients, strict=True):
                if parameter.grad is None:
                    parameter.grad = gradient
                elif gradient is not None:
                    parameter.grad += gradient
        return value, correct


def _passes(module: _Loss, tensors: dict[str, Tensor]) -> Callable[..., Sequence[Tensor | None]]:
    """A function of parameters, buffers, images, target and weight: loss, correct predictions, gradients.

    It writes to the buffers what the module does. A gradient has memory of its own, laid out as its parameter: a fused
    update takes that for granted.
    """
    trained = [name for name, tensor in tensors.items() if tensor.requires_grad]

    def passes(*inputs: Tensor) -> Sequence[Tensor | None]:
        *values, x_NCHW, target, weight = inputs
        given = dict(zip(tensors, values, strict=True))
        state = given | {name: given[name].detach().requires_grad_() for name in trained}
        value, correct = functional_call(module, state, (x_NCHW, target))
        gradients = torch.autograd.grad(
            value, [state[name] for name in trained], weight.to(value.dtype), allow_unused=True
        )
        with torch.no_grad():
            for name, buffer in given.items():
                if name not in trained and state[name] is not buffer:
                    buffer.copy_(state[name])  # `functional_call` leaves there what the module put in its place
            return value.detach(), correct, *_laid_out(gradients, [given[name] for name in trained])

    return passes


def _laid_out(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> list[Tensor | None]:
    own: list[Tensor | None] = []
    for gradient, parameter in zip(gradients, parameters, strict=True):
        if gradient is not None and (gradient.stride() != parameter.stride() or any(gradient is one for one in own)):
            gradient = torch.empty_like(parameter).copy_(gradient)
        own.append(gradient)
    return own


def _compile(function: Callable[..., Any], inputs: Sequence[Tensor]) -> Graph:
    from torch._inductor import standalone_compile
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(function, tracing_mode="fake")(*inputs)
    if any(node.target is torch.ops.aten.mkldnn_rnn_layer.default for node in graph.graph.nodes):
        raise NotImplementedError("Inductor cannot call oneDNN's LSTM.")
    options = {"config_patches": {"fallback_random": True}}
    with torch.no_grad():
        return standalone_compile(graph, [*inputs], dynamic_shapes="from_example_inputs", options=options)
