"""The learning rate range test (arXiv 1506.01186): steps at rising learning rates show where the loss falls."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cnnlab.engine.step import train_step
from cnnlab.engine.trainer import TrainState
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.errors import TrainingError

FIRST, LAST = 1e-6, 10.0
PER_DECADE = 20  # steps
SMOOTHING = 0.9  # of the loss, from step to step
DIVERGED = 4.0  # times the lowest loss: the end of the test
MOST = 0.95  # of the loss's fall
NOISE = 10  # first steps, whose smoothed loss is of few batches
FEWEST = 20  # steps that make a curve


@dataclass(frozen=True)
class RangeTest:
    """The learning rates that were tried, and the smoothed loss before the update at each.

    `steepest` is where the loss falls most over the logarithm of the learning rate. `valley` is where most of its fall
    lies behind: the highest learning rate of a schedule that rises and falls.
    """

    lrs: list[float]
    losses: list[float]
    steepest: float
    valley: float


def learning_rates() -> list[float]:
    """From `FIRST` to `LAST`, evenly spaced on a logarithmic scale."""
    count = round(PER_DECADE * math.log10(LAST / FIRST)) + 1
    return [FIRST * (LAST / FIRST) ** (index / (count - 1)) for index in range(count)]


def range_test(
    train_state: TrainState, batches: Iterable[Batch], *, accumulate: int = 1, clip_norm: float | None = None
) -> RangeTest:
    """Trains `train_state`, which is used up, for one step at each learning rate, until the loss has diverged.

    Parameter groups whose lr is `FIRST`, times their `lr_scale`, take part; others keep theirs. Raises `TrainingError`
    where the loss is not finite before there is a curve.
    """
    optimizer = train_state.optimizer
    scales = [group.get("lr_scale", 1.0) for group in optimizer.param_groups]
    moving = [
        (group, scale)
        for group, scale in zip(optimizer.param_groups, scales, strict=True)
        if group["lr"] == FIRST * scale
    ]
    lrs, losses, mean, lowest = list[float](), list[float](), 0.0, math.inf
    for lr, batch in zip(learning_rates(), batches, strict=False):
        for group, scale in moving:
            group["lr"] = lr * scale
        result = train_step(
            train_state.network,
            train_state.loss,
            optimizer,
            batch,
            execution=train_state.execution,
            scaler=train_state.scaler,
            accumulate=accumulate,
            clip_norm=clip_norm,
        )
        mean = SMOOTHING * mean + (1 - SMOOTHING) * float(result.loss)
        smoothed = mean / (1 - SMOOTHING ** (len(losses) + 1))
        lowest = min(lowest, smoothed)
        if not math.isfinite(smoothed) or smoothed > DIVERGED * lowest:
            break
        lrs.append(lr)
        losses.append(smoothed)
    if len(lrs) < FEWEST:
        raise TrainingError(
            f"optimizer.lr: the loss diverges within {len(lrs) + 1} steps from a learning rate of {FIRST:g} on: "
            f"expected a network that trains at {lrs[-1] if lrs else FIRST:.2g}, or a value instead of auto"
        )
    later = lrs[NOISE:], losses[NOISE:]
    return RangeTest(lrs, losses, lrs[NOISE + steepest(*later)], lrs[NOISE + valley(later[1])])


def steepest(lrs: Sequence[float], losses: Sequence[float]) -> int:
    """The index where the loss falls most over the logarithm of the learning rate."""
    slopes = [
        (after - before) / math.log(high / low)
        for (low, high), (before, after) in zip(
            zip(lrs, lrs[2:], strict=False), zip(losses, losses[2:], strict=False), strict=True
        )
    ]
    return 1 + min(range(len(slopes)), key=slopes.__getitem__)


def valley(losses: Sequence[float]) -> int:
    """The first index where most of the fall, from the highest loss to the lowest after it, lies behind."""
    lowest = min(range(len(losses)), key=losses.__getitem__)
    highest = max(range(lowest + 1), key=losses.__getitem__)
    enough = losses[highest] - MOST * (losses[highest] - losses[lowest])
    return next(index for index in range(highest, lowest + 1) if losses[index] <= enough)
