"""A training step as one CUDA graph: its kernels are captured once, and each step launches them together.

A step of a small network is hundreds of kernels of a few microseconds, and Python needs longer to launch each than the
GPU to run it. Replayed, the same kernels compute the same numbers (https://docs.pytorch.org/docs/stable/notes/cuda.html).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.components import Component
from cnnlab.engine.optimization import is_fused
from cnnlab.engine.schedule import changes_momentum
from cnnlab.engine.step import StepResult, train_step
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.errors import TrainingError, first_line
from cnnlab.runtime.randomness import put_back

WARM_UP = 2  # steps on a stream of their own, for libraries that prepare themselves; a graph cannot hold that


def reason_against_cuda_graph(optimizer: Component, schedule: Component) -> str | None:
    """Why a step with this update cannot be captured, in words; None where it can."""
    if not is_fused(optimizer):
        return f"the update that can be captured is the fused one of sgd, adam and adamw, not that of {optimizer.type}"
    if changes_momentum(schedule):
        return f"{schedule.type} changes the momentum, which is a constant of a captured step"
    return None


class CapturedStep:
    """`train_step`, captured at the first whole batch that finds the optimizer's state made, and then replayed.

    A batch of another size is worked off the usual way. The norm of the gradient is part of what is captured. Raises
    `TrainingError` where something in the step cannot be: what asks the GPU for a value in its middle, for example.
    """

    def __init__(self, images: int) -> None:
        self.images = images
        self.replay: Callable[[Tensor, Tensor], tuple[Tensor, ...]] | None = None
        self.rates = LearningRates()

    def __call__(
        self,
        network: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        **options: Any,
    ) -> StepResult:
        if len(batch) != self.images or not has_state(optimizer):
            return train_step(network, loss, optimizer, batch, **options)
        self.rates.update(optimizer, batch.x_NCHW.device)
        if self.replay is None:

            def step(x_NCHW: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                still = Batch(x_NCHW, target, batch.index_N)
                result = train_step(network, loss, optimizer, still, **{**options, "measure_norm": True})
                assert result.gradient_norm is not None
                return result.loss, result.correct, result.gradient_norm

            with self.rates.in_place_of_numbers(optimizer):
                self.replay = capture(step, batch.x_NCHW, batch.target, network, optimizer)
        return StepResult(*self.replay(batch.x_NCHW, batch.target))


class LearningRates:
    """The learning rate of each group as a tensor that stays: a number would be a constant of the graph."""

    def __init__(self) -> None:
        self.numbers: list[float] = []
        self.lr_G = torch.empty(0)

    def update(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        """Takes over what the schedule has set; nothing waits for the device."""
        numbers = [group["lr"] for group in optimizer.param_groups]
        if not self.numbers:
            self.lr_G = torch.tensor(numbers, device=device)
        elif numbers != self.numbers:
            for lr, number in zip(self.lr_G.unbind(), numbers, strict=True):
                lr.fill_(number)
        self.numbers = numbers

    @contextmanager
    def in_place_of_numbers(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """The optimizer's groups hold the tensors, and say that their state may be captured."""
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


def has_state(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the update finds what it keeps from step to step; SGD without momentum keeps nothing."""
    if isinstance(optimizer, torch.optim.SGD) and not optimizer.defaults["momentum"]:
        return True
    return len(optimizer.state) > 0


def capture(
    step: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    x_NCHW: Tensor,
    target: Tensor,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    """A function that does what `step` does, from a graph. Capturing trains nothing. Raises `TrainingError`."""
    still = x_NCHW.clone(), target.clone()
    graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    with put_back([*kept, *network.parameters(), *network.buffers()]):
        try:
            aside = torch.cuda.Stream()
            aside.wait_stream(current)
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    step(*still)
            current.wait_stream(aside)
            optimizer.zero_grad(set_to_none=True)
            # thread_local: threads that pin the memory of images to come go on
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                results = step(*still)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            _let_go_of_the_generator()
            raise TrainingError(
                f"this step cannot be captured as a CUDA graph: {first_line(_cause(error))} "
                f"Try trainer.execution.cuda_graph=false"
            ) from error

    def replay(x_NCHW: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        for mine, given in zip(still, (x_NCHW, target), strict=True):
            mine.copy_(given)
        graph.replay()
        return tuple(result.clone() for result in results)  # the next replay overwrites its own

    return replay


def _let_go_of_the_generator() -> None:
    """After a capture that failed, torch's generator takes itself for captured until another one ends well."""
    with torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode="thread_local"):
        torch.zeros((), device="cuda")


def _cause(error: RuntimeError) -> RuntimeError:
    """What went wrong first; the end of a capture that failed is an error of its own."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return error
