"""A training step as one CUDA graph: its kernels are captured once, and each step launches them together.

A step of a small network is hundreds of kernels of a few microseconds, and Python needs longer to launch each than the
GPU to run it. Replayed, the same kernels compute the same numbers (https://docs.pytorch.org/docs/stable/notes/cuda.html).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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

Replay = Callable[[Tensor, Tensor], tuple[Tensor, ...]]  # of images and target
WARM_UP = 2  # steps on a stream of their own, for libraries that prepare themselves; a graph cannot hold that


def reason_against_cuda_graph(optimizer: Component, schedule: Component) -> str | None:
    """Why a step with this update cannot be captured; None where it can."""
    if not is_fused(optimizer):
        return f"the update that can be captured is the fused one of sgd, adam and adamw, not that of {optimizer.type}"
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

    def __call__(
        self,
        network: Network,
        loss: LossFunction,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        **options: Any,
    ) -> StepResult:
        def step(x_NCHW: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            still = Batch(x_NCHW, target, batch.index_N, batch.global_count)
            result = train_step(
                network, loss, optimizer, still, backend=self.backend, **{**options, "measure_norm": True}
            )
            assert result.gradient_norm is not None
            return result.loss, result.correct, result.gradient_norm

        def make() -> Replay:
            with self.rates.in_place_of_numbers(optimizer):
                return capture(step, batch, [network, loss], optimizer)

        self.rates.update(optimizer, batch.x_NCHW.device)
        replay = self.graphs.find(batch, make, constant=batch.weight) if self.has_state else None
        if replay is None:
            self.has_state = True
            return train_step(network, loss, optimizer, batch, backend=self.backend, **options)
        return StepResult(*replay(batch.x_NCHW, batch.target))


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
        groups = optimizer.param_groups
        held: list[dict[str, Any]] = [
            {name: group[name] for name in ("lr", "capturable") if name in group} for group in groups
        ]
        try:
            for group, before, lr in zip(groups, held, self.lr_G.unbind(), strict=True):
                group.update({name: lr if name == "lr" else True for name in before})
            yield
        finally:
            for group, before in zip(groups, held, strict=True):
                group.update(before)


def capture(
    step: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    batch: Batch,
    modules: Iterable[object],
    optimizer: torch.optim.Optimizer,
) -> Replay:
    """A function that does what `step` does, from a graph. Capturing trains nothing. Raises `TrainingError`."""
    still = batch.x_NCHW.clone(), batch.target.clone()
    graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    held = [tensor for one in modules if isinstance(one, nn.Module) for tensor in (*one.parameters(), *one.buffers())]
    with put_back([*kept, *held]):
        try:
            aside = torch.cuda.Stream()
            aside.wait_stream(current)
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    step(*still)
            current.wait_stream(aside)
            optimizer.zero_grad(set_to_none=True)
            # thread_local: other threads may go on pinning memory for images
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                results = step(*still)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            _release_generator()
            raise TrainingError(
                f"this step cannot be captured as a CUDA graph: {first_line(_cause(error))} "
                f"Try trainer.execution.cuda_graph=false"
            ) from error

    def replay(x_NCHW: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        for mine, given in zip(still, (x_NCHW, target), strict=True):
            mine.copy_(given)
        graph.replay()
        return tuple(result.clone() for result in results)  # the next replay overwrites these

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
