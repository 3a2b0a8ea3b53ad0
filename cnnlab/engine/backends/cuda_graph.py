"""A training step as one CUDA graph: its kernels are captured once, and each step launches them together.

A step of a small network is hundreds of kernels of a few microseconds, and Python needs longer to launch each than the
GPU to run it. Replayed, the same kernels compute the same numbers (https://docs.pytorch.org/docs/stable/notes/cuda.html).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.components import Component
from cnnlab.engine.backends.graphs import Graphs
from cnnlab.engine.optimization import is_fused
from cnnlab.engine.schedule import changes_momentum
from cnnlab.engine.step import Backend, LossFunction, Network, StepResult, train_step
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.errors import TrainingError, first_line
from cnnlab.runtime.randomness import put_back

Replay = Callable[[Batch], StepResult]
WARM_UP = 2  # steps on a stream of their own, for libraries that prepare themselves; a graph cannot hold that


def reason_against_cuda_graph(optimizers: Iterable[Component], schedule: Component) -> str | None:
    """Why a step with these updates cannot be captured; None where it can."""
    for one in optimizers:
        if not is_fused(one):
            return f"the update that can be captured is the fused one of sgd, adam and adamw, not that of {one.type}"
    if changes_momentum(schedule):
        return f"{schedule.type} changes the momentum, which is a constant of a captured step"
    return None


class Captured:
    """`train_step` for batches of `images`, captured once and then replayed; the gradient's norm is always part of it.

    The first step is launched as usual: it makes the optimizer's state. Raises `TrainingError` where the step cannot be
    captured, such as one that asks the GPU for a value.
    """

    def __init__(self, images: int, backend: Backend) -> None:
        self.graphs: Graphs[Replay] = Graphs(images)
        self.backend = backend
        self.rates = LearningRates()
        self.has_state = False

    def forget(self) -> None:
        """Captures anew, for an optimizer whose state was replaced: a graph updates the memory it was captured with."""
        self.graphs, self.rates, self.has_state = Graphs(self.graphs.images), LearningRates(), False

    def __call__(
        self, network: Network, loss: LossFunction, optimizer: torch.optim.Optimizer, batch: Batch, **options: Any
    ) -> StepResult:
        step: Callable[..., StepResult] = partial(train_step, network, loss, optimizer, backend=self.backend, **options)

        def make() -> Replay:
            with self.rates.in_place_of_numbers(optimizer):
                return capture(partial(step, measure_norm=True), batch, [network, loss], optimizer)

        self.rates.update(optimizer, batch.x_NCHW.device)
        replay = self.graphs.find(batch, make, constant=batch.weight) if self.has_state else None
        self.has_state = True
        return (replay or step)(batch)


class LearningRates:
    """Each group's learning rate as a tensor in fixed memory: a number would be a constant of the graph."""

    def __init__(self) -> None:
        self.numbers: list[float] = []
        self.lr_G = torch.empty(0)

    def update(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        """Copies what the schedule has set; nothing waits for the device."""
        numbers = [group["lr"] for group in optimizer.param_groups]
        if not self.numbers:
            self.lr_G = torch.tensor(numbers, device=device)
        elif numbers != self.numbers:
            for lr, number in zip(self.lr_G.unbind(), numbers, strict=True):
                lr.fill_(number)
        self.numbers = numbers

    @contextmanager
    def in_place_of_numbers(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """The optimizer's groups hold the tensors, and are marked `capturable`."""
        before = [dict(group) for group in optimizer.param_groups]
        try:
            for group, lr in zip(optimizer.param_groups, self.lr_G.unbind(), strict=True):
                group.update(lr=lr, **({"capturable": True} if "capturable" in group else {}))
            yield
        finally:
            for group, old in zip(optimizer.param_groups, before, strict=True):
                group.update(old)


def capture(
    step: Callable[[Batch], StepResult], batch: Batch, modules: Iterable[object], optimizer: torch.optim.Optimizer
) -> Replay:
    """A function that does what `step` does, from a graph. Capturing trains nothing. Raises `TrainingError`."""
    still = replace(batch, x_NCHW=batch.x_NCHW.clone(), target=batch.target.clone())
    graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    held = [tensor for one in modules if isinstance(one, nn.Module) for tensor in (*one.parameters(), *one.buffers())]
    with put_back([*kept, *held]):
        try:
            aside = torch.cuda.Stream()
            aside.wait_stream(current)
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    step(still)
            current.wait_stream(aside)
            optimizer.zero_grad(set_to_none=True)
            # thread_local: other threads pin memory for images meanwhile
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                result = step(still)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            _release_generator()
            message = f"this step cannot be captured as a CUDA graph: {first_line(_cause(error))}"
            raise TrainingError(f"{message} Try trainer.execution.cuda_graph=false") from error

    def replay(batch: Batch) -> StepResult:
        still.x_NCHW.copy_(batch.x_NCHW)
        still.target.copy_(batch.target)
        graph.replay()
        assert result.gradient_norm is not None
        return StepResult(result.loss.clone(), result.correct.clone(), result.gradient_norm.clone())

    return replay


def _release_generator() -> None:
    """After a failed capture torch's generator stays marked as captured until another capture succeeds."""
    with torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode="thread_local"):
        torch.zeros((), device="cuda")


def _cause(error: RuntimeError) -> RuntimeError:
    """The first error; the end of a failed capture is an error of its own."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return error
