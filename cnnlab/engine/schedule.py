"""Learning-rate schedules: pure functions of (step, total_steps), stepped once per update.

Each entry of `SCHEDULES` returns a function from the step to a factor of `optimizer.lr`.
"""

import bisect
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from cnnlab.components import Component
from cnnlab.runtime.checks import number, one_of

Factor = Callable[[int], float]
CYCLING = (torch.optim.lr_scheduler.OneCycleLR, torch.optim.lr_scheduler.CyclicLR)


def constant() -> Factor:
    """The optimizer's lr, throughout."""
    return lambda step: 1.0


def step(step_size: float, gamma: float = 0.1, *, steps_per_epoch: int) -> Factor:
    """lr·gammaⁿ after n times `step_size` epochs (`torch.optim.lr_scheduler.StepLR`, to the update)."""
    number("step_size", step_size, 0, open_minimum=True)
    number("gamma", gamma, 0, open_minimum=True)
    width = step_size * steps_per_epoch
    return lambda step: gamma ** math.floor(step / width + 1e-9)  # 55 / (1.1 · 50) is below 1 in floats


def cosine(warmup: float = 0.0, min_factor: float = 0.0, *, total_steps: int) -> Factor:
    """Linear warm-up over the fraction `warmup` of all steps, then half a cosine to `min_factor` (arXiv 1608.03983).

    The first warm-up step has 1/n of the lr, the n-th all of it.
    """
    number("warmup", warmup, 0, 1, open_maximum=True)
    number("min_factor", min_factor, 0, 1)
    rising = round(warmup * total_steps)
    falling = max(1, total_steps - rising)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        progress = min(1.0, (step - rising) / falling)
        return min_factor + (1 - min_factor) * (1 + math.cos(math.pi * progress)) / 2

    return factor


def one_cycle(
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    anneal_strategy: str = "cos",
    *,
    total_steps: int,
) -> Factor:
    """Up to lr at `pct_start`, then down (arXiv 1708.07120; `torch.optim.lr_scheduler.OneCycleLR`).

    Starts at lr/div_factor and ends at lr/div_factor/final_div_factor; `anneal_strategy` is cos, or linear for a
    triangle.
    """
    number("pct_start", pct_start, 0, 1)
    number("div_factor", div_factor, 1)
    number("final_div_factor", final_div_factor, 1)
    anneal = _ANNEALING[one_of("anneal_strategy", anneal_strategy, (*_ANNEALING,))]
    start, end = 1 / div_factor, 1 / (div_factor * final_div_factor)
    peak = pct_start * total_steps - 1
    last = total_steps - 1

    def factor(step: int) -> float:
        if step <= peak:
            return anneal(start, 1.0, step / peak if peak > 0 else 1.0)
        return anneal(1.0, end, min(1.0, (step - peak) / (last - peak)) if last > peak else 1.0)

    return factor


def triangle(start: float = 0.2, peak: float = 0.25, end: float = 0.0, *, total_steps: int) -> Factor:
    """Linear from `start` · lr up to lr after the fraction `peak` of the steps, then down to `end` · lr.

    The first step has `start` · lr, the step at `peak` · total_steps (rounded down) lr; `end` · lr would be that of the
    step after the last (arXiv 2404.00498, whose published code does so; `one_cycle` reaches its peak and its end one
    step earlier).
    """
    number("start", start, 0, 1)
    number("peak", peak, 0, 1)
    number("end", end, 0, 1)
    rising = int(peak * total_steps)
    falling = total_steps - rising

    def factor(step: int) -> float:
        if step < rising:
            return _line(start, 1.0, step / rising)
        return _line(1.0, end, min(1.0, (step - rising) / falling)) if falling else 1.0

    return factor


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _line(start: float, end: float, progress: float) -> float:
    return start + (end - start) * progress


_ANNEALING = {"cos": _cosine, "linear": _line}


Cycle = tuple[int, int | None]  # the step it begins at, and its length where that is known


def cycles(total_steps: int | None, own_steps: int | None, restarts: Sequence[int]) -> list[Cycle]:
    """A run's cycles: each restart begins one, which lasts `own_steps` or, without them, until the next."""
    starts, ends = [0, *restarts], [*restarts, total_steps]
    return [
        (start, own_steps if own_steps is not None or end is None else end - start)
        for start, end in zip(starts, ends, strict=True)
    ]


def in_cycles(starts: Sequence[int], factors: Sequence[Factor]) -> Factor:
    """Each factor from its own start on, counted from there."""

    def factor(step: int) -> float:
        cycle = bisect.bisect_right(starts, step) - 1
        return factors[cycle](step - starts[cycle])

    return factor


SCHEDULES: dict[str, Callable[..., Factor]] = {
    "constant": constant,
    "step": step,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "triangle": triangle,
}


class LRScheduler(Protocol):
    """What the trainer needs of a schedule; torch's own schedulers have it too."""

    def step(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def changes_momentum(schedule: Component) -> bool:
    """True if it also sets the momentum, as two of torch's do."""
    return schedule.factory in CYCLING and bool(schedule.arguments.get("cycle_momentum", True))


class Schedule:
    """Sets every group's lr to its own base lr times the factor of the step."""

    def __init__(self, optimizer: torch.optim.Optimizer, factor: Factor) -> None:
        self.optimizer = optimizer
        self.factor = factor
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.steps = 0
        self._apply()

    def step(self) -> None:
        self.steps += 1
        self._apply()

    def _apply(self) -> None:
        factor = self.factor(self.steps)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * factor

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self._apply()
