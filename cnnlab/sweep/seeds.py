"""Configurations that were run with several seeds or folds: means, and paired differences with their intervals."""

import math
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cnnlab.config.naming import short_names
from cnnlab.sweep.axes import shortened
from cnnlab.sweep.results import Result

if TYPE_CHECKING:
    from rich.table import Table

REPEATED = {"seed": "seeds", "data.fold": "folds"}  # axes whose values repeat a configuration, in the plural
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Configuration:
    """What varies beside seed and fold, and the metric of each run by its seed, its fold, or both."""

    values: dict[str, str]
    by_run: dict[tuple[str, ...], float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.by_run.values())

    @property
    def deviation(self) -> float:
        """The sample's standard deviation; not a number for a single run."""
        return statistics.stdev(self.by_run.values()) if len(self.by_run) > 1 else math.nan


def configurations(results: Sequence[Result], metric: str) -> list[Configuration]:
    """Those of completed jobs in their order; empty where neither seed nor fold varies."""
    found: dict[tuple[tuple[str, str], ...], Configuration] = {}
    for result in results:
        value, given = result.value(metric), result.job.values
        run = tuple(given[key] for key in REPEATED if key in given)
        if not run or result.status != "completed" or value is None:
            continue
        values = {key: text for key, text in given.items() if key not in REPEATED}
        one = found.setdefault(tuple(values.items()), Configuration(values, {}))
        one.by_run[run] = value
    return list(found.values())


def paired_difference(first: Configuration, other: Configuration) -> tuple[float, float] | None:
    """The mean difference over the runs that both have, and half of its 95 % t-interval; None below two runs.

    With n differences of standard deviation s the half is t(0.975, n − 1) · s / √n (Student, "The probable error of a
    mean", Biometrika 6, 1908).
    """
    from scipy.special import stdtrit

    differences = [value - first.by_run[run] for run, value in other.by_run.items() if run in first.by_run]
    if len(differences) < 2:
        return None
    quantile = float(stdtrit(len(differences) - 1, (1 + CONFIDENCE) / 2))
    return statistics.fmean(differences), quantile * statistics.stdev(differences) / math.sqrt(len(differences))


def describe_difference(first: Configuration, other: Configuration) -> str:
    """`+0.0123 ± 0.0045`, or in words where every pair is equal or there are too few."""
    found = paired_difference(first, other)
    if found is None:
        return "too few pairs"
    if found == (0.0, 0.0):
        return "no difference"
    return f"{found[0]:+.4f} ± {found[1]:.4f}"


def render_seeds(found: Sequence[Configuration], metric: str, axes: Collection[str]) -> "Table":
    """A row for each configuration, compared with the first; `axes` are the keys that the sweep varies."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in short_names(found[0].values).values():
        table.add_column(name, no_wrap=True)
    table.add_column(" × ".join(plural for key, plural in REPEATED.items() if key in axes), justify="right")
    table.add_column(f"{metric}, mean ± sd", justify="right", no_wrap=True)
    if len(found) > 1:
        table.add_column("difference to the first, 95 %", justify="right", no_wrap=True)
    for number, one in enumerate(found):
        difference = [describe_difference(found[0], one) if number else ""] if len(found) > 1 else []
        deviation = "" if math.isnan(one.deviation) else f" ± {one.deviation:.4f}"
        values = [escape(shortened(value)) for value in one.values.values()]
        table.add_row(*values, str(len(one.by_run)), f"{one.mean:.4f}{deviation}", *difference)
    return table
