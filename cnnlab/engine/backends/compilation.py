"""The network or the whole training step as one compiled graph: `torch.compile`, imported by the runs that use it.

A graph is made for one shape of batch. What has another shape, such as a smaller last batch, goes the usual way, so
that nothing is compiled twice, and which steps are compiled depends on nothing but the step. Random numbers are drawn
from torch's own generators, so that a resumed run goes on to the same bits.
"""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.components import Component
from cnnlab.engine.backends.cuda_graph import CapturedStep, LearningRates, capture, has_state
from cnnlab.engine.backends.tracing import TracedPasses
from cnnlab.engine.execution import Execution
from cnnlab.engine.schedule import changes_momentum
from cnnlab.engine.step import Step, StepResult, count_correct, train_step
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.errors import TrainingError, first_line


def missing_compiler(device: torch.device) -> str | None:
    """What `torch.compile` needs and this machine lacks, in words; None where nothing is missing."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "Triton (pip install triton)"
    command = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # as Inductor has it
    return None if shutil.which(command) else f"a C++ compiler ({command}, or another that CXX names)"


def reason_against_step(optimizer: Component, schedule: Component) -> str | None:
    """Why the update cannot be part of the graph, in words; None where it can."""
    if optimizer.factory not in _UPDATES or optimizer.arguments.get("differentiable"):
        return f"the update is part of that graph for sgd, adam and adamw alone, and the optimizer is {optimizer.type}"
    if changes_momentum(schedule):
        return f"{schedule.type} changes the momentum, which is a constant of that graph"
    return None


def build_step(
    execution: Execution, batch_size: int, accumulate: int = 1, say: Callable[[str], None] | None = None
) -> Step:
    """The function that takes a training step; compiled, captured or traced, where `execution` says so, when called.

    `say` is told where steps turn out not to be traceable.
    """
    part = -(-batch_size // accumulate)
    if execution.compile == "network":
        return _CompiledNetwork(part)
    if execution.compile == "step":
        return _CompiledStep(batch_size)
    if execution.trace is True:
        return partial(train_step, passes=TracedPasses(part, say))
    return CapturedStep(batch_size) if execution.cuda_graph is True else train_step


def forget_compiled() -> None:
    """Frees what earlier runs of this process compiled: torch compiles but so many versions of one function."""
    torch.compiler.reset()


class _CompiledNetwork:
    """`train_step` with the network's forward and backward pass as a graph each."""

    def __init__(self, images: int) -> None:
        self.images = images
        self.network: _Forward | None = None

    def __call__(self, network: nn.Module, *arguments: Any, **options: Any) -> StepResult:
        if self.network is None:
            self.network = _Forward(network, self.images)
        torch.compiler.cudagraph_mark_step_begin()  # what the last step's graphs returned is not used any more
        with _in_words():
            return train_step(self.network, *arguments, **options)


class _Forward(nn.Module):
    """The network, compiled for so many images; any other number of them goes through the network as it is."""

    def __init__(self, network: nn.Module, images: int) -> None:
        super().__init__()
        self.network = network
        self.images = images
        cudagraphs = next(network.parameters()).device.type == "cuda"
        self.compiled = _compile(network, fullgraph=False, cudagraphs=cudagraphs)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        run = self.compiled if len(x_NCHW) == self.images else self.network
        output_NK: Tensor = run(x_NCHW)
        return output_NK


class _CompiledStep:
    """`train_step` as one graph: forward pass, loss, gradients, clipping and update, without Python in between.

    The state stays the optimizer's own. Its first update, which makes that state, is taken the usual way. The norm of
    the gradient is part of every step's graph, so that steps which record it have the same bits as those that do not.
    """

    def __init__(self, images: int) -> None:
        self.images = images
        self.graph: Callable[[Tensor, Tensor], tuple[Tensor, ...]] | None = None
        self.rates = LearningRates()

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
    ) -> StepResult:
        if len(batch) != self.images or not has_state(optimizer):
            return train_step(
                network,
                loss,
                optimizer,
                batch,
                execution=execution,
                scaler=scaler,
                accumulate=accumulate,
                clip_norm=clip_norm,
                measure_norm=measure_norm,
            )
        self.rates.update(optimizer, batch.x_NCHW.device)
        if self.graph is None:
            optimizer.zero_grad(set_to_none=True)
            step = _whole_step(network, loss, optimizer, execution, accumulate, clip_norm)
            compiled = partial(_compile(step, fullgraph=True), self.rates.lr_G)
            with _in_words():  # it is compiled now
                if execution.cuda_graph is True:
                    self.graph = capture(compiled, batch.x_NCHW, batch.target, network, optimizer)
                else:
                    self.graph = compiled
                return StepResult(*self.graph(batch.x_NCHW, batch.target))
        return StepResult(*self.graph(batch.x_NCHW, batch.target))


def _whole_step(
    network: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    execution: Execution,
    accumulate: int,
    clip_norm: float | None,
) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
    """A function of each group's learning rate, images and target that does what `train_step` does."""
    updates = [_update_of(optimizer, group) for group in optimizer.param_groups]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    device = parameters[0].device

    def step(lr_G: Tensor, x_NCHW: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        costs, right, parts = [], [], []
        for part_NCHW, part_target in zip(x_NCHW.chunk(accumulate), target.chunk(accumulate), strict=True):
            with execution.autocast(device):
                output_NK = network(execution.arrange(part_NCHW))
                cost = loss(output_NK, part_target)
            if accumulate > 1:
                cost = cost * (len(part_NCHW) / len(x_NCHW))
            parts.append(torch.autograd.grad(cost, parameters))
            costs.append(cost.detach())
            right.append(count_correct(output_NK.detach(), part_target))
        gradients = [reduce(add, one) for one in zip(*parts, strict=True)]
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        if clip_norm is not None:  # as `clip_grads_with_norm_` does
            factor = (clip_norm / (norm + 1e-6)).clamp(max=1.0)
            gradients = [gradient * factor for gradient in gradients]
        with torch.no_grad():
            start = 0
            for number, update in enumerate(updates):
                update(gradients[start : start + sizes[number]], lr_G[number])
                start += sizes[number]
        return reduce(add, costs), reduce(add, right), norm

    return step


Update = Callable[[Sequence[Tensor], Tensor], None]


def _sgd(parameters: list[Tensor], states: list[dict[str, Any]], group: Mapping[str, Any]) -> Update:
    from torch.optim.sgd import sgd

    options = {name: group[name] for name in ("weight_decay", "momentum", "dampening", "nesterov", "maximize")}
    momenta = [state.get("momentum_buffer") for state in states]

    def update(gradients: Sequence[Tensor], lr: Tensor) -> None:
        sgd(parameters, list(gradients), momenta, foreach=False, fused=False, lr=lr, **options)

    return update


def _adam(parameters: list[Tensor], states: list[dict[str, Any]], group: Mapping[str, Any]) -> Update:
    from torch.optim.adam import adam

    beta1, beta2 = group["betas"]
    options = {name: group[name] for name in ("amsgrad", "weight_decay", "eps", "maximize", "decoupled_weight_decay")}
    means, squares, steps = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step"))
    largest = [state["max_exp_avg_sq"] for state in states] if group["amsgrad"] else []

    def update(gradients: Sequence[Tensor], lr: Tensor) -> None:
        adam(
            parameters,
            list(gradients),
            means,
            squares,
            largest,
            steps,
            foreach=False,
            fused=False,
            capturable=True,  # the count of steps stays a tensor
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            **options,
        )

    return update


_UPDATES: dict[type[torch.optim.Optimizer], Callable[..., Update]] = {
    torch.optim.SGD: _sgd,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
}


def _update_of(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> Update:
    states = [optimizer.state.get(parameter, {}) for parameter in group["params"]]
    return _UPDATES[type(optimizer)](group["params"], states, group)


def _compile(function: Any, *, fullgraph: bool, cudagraphs: bool = False) -> Any:
    import torch._dynamo

    torch._dynamo.config.trace_autograd_ops = True
    options: dict[str, Any] = {"fallback_random": True, "triton.cudagraphs": cudagraphs}
    return torch.compile(function, fullgraph=fullgraph, dynamic=False, options=options)


@contextmanager
def _in_words() -> Iterator[None]:
    """What the compiler cannot do is told in a sentence, with the way out."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        raise TrainingError(
            f"torch could not compile this network or its step: {first_line(error)} Try trainer.execution.compile=none"
        ) from error
