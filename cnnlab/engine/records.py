"""What the trainer tells. Observers read these; none of them steers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Started:
    """The run begins, or goes on behind `step`: the first record that every observer gets.

    `hyperparameters` is the config, flattened to plain values; `model_table` the layer table as text.
    """

    directory: Path
    step: int
    total_steps: int | None
    epochs: int | None
    hyperparameters: dict[str, Any]
    model_table: str


@dataclass(frozen=True)
class Metrics:
    """Numbers of one split at one step (an optimizer update, counted from 1) in one epoch (from 1).

    `final` marks what was measured once, after the end of training.
    """

    step: int
    epoch: int
    split: str
    values: dict[str, float]
    final: bool = False


@dataclass(frozen=True)
class Notice:
    """One sentence for the person at the terminal."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The run is over. `metrics` are its last figures by tag, such as `accuracy/test`."""

    metrics: dict[str, float]


Record = Started | Metrics | Notice | Finished
