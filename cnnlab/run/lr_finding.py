"""A learning rate for a run, found on copies of what it trains: `optimizer.lr=auto` and `trainer.lr_find=true`."""

import copy
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from cnnlab.components import Component
from cnnlab.config.run_plan import RunPlan
from cnnlab.data.loader import ImageLoader
from cnnlab.engine.lr_range_test import FIRST, RangeTest, range_test
from cnnlab.engine.schedule import SCHEDULES
from cnnlab.run.files import FIGURES, RunDirectory
from cnnlab.run.loaders import TrainingData, train_loader
from cnnlab.run.train_state import build_train_state
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.randomness import seed_generators
from cnnlab.visualization.confusion import pixels
from cnnlab.visualization.lr_curve import lr_figure

FIGURE = "lr_find.png"


def find_lr(plan: RunPlan, data: TrainingData, directory: RunDirectory) -> RangeTest:
    """Trains a copy at rising learning rates, from the run's own first batches on, and draws the curve.

    Nothing of the run is touched but torch's generators, which are seeded before its first step.
    """
    constant = Component("schedule", "constant", SCHEDULES["constant"])
    copied = replace(plan, loss=copy.deepcopy(plan.loss), schedule=constant, cycles=[(0, None)])
    seed_generators(plan.seed)
    train_state = build_train_state(with_lr(copied, FIRST))
    with closing(train_loader(plan, data.train, data.normalization)) as loader:
        settings = plan.settings
        found = range_test(train_state, _endless(loader), accumulate=settings.accumulate, clip_norm=settings.clip_norm)
    directory.write_figure(FIGURE, pixels(lr_figure(found.lrs, found.losses, suggestions(found))))
    return found


def suggestions(found: RangeTest) -> dict[str, float]:
    """By their names."""
    return {"valley": found.valley, "steepest": found.steepest}


def _endless(loader: ImageLoader) -> Iterator[Batch]:
    while True:
        yield from loader
        loader.set_epoch(loader.epoch + 1)


def with_lr(plan: RunPlan, lr: float) -> RunPlan:
    """The plan with this `optimizer.lr`, which is then `auto` no longer."""
    return replace(plan, optimizer=plan.optimizer.with_lr(lr), lr_is_auto=False)


def describe_range_test(found: RangeTest, directory: RunDirectory) -> tuple[str, Path]:
    """A sentence with both suggestions, and the path of the figure at its end."""
    path = directory.path / FIGURES / FIGURE
    return (
        f"learning rates from {found.lrs[0]:g} to {found.lrs[-1]:.2g} were tried: {found.valley:.2g} suggested "
        f"(where most of the loss's fall lies behind), {found.steepest:.2g} where it falls most; {path}",
        path,
    )
