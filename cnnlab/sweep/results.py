"""The results of a sweep's jobs: a table for the terminal, the same as CSV, and the failures."""

import csv
import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnlab.config.naming import short_names
from cnnlab.run.files import RunDirectory
from cnnlab.runtime.terminal import fitting
from cnnlab.sweep.axes import Job, shortened
from cnnlab.sweep.objectives import Objective

if TYPE_CHECKING:
    from rich.table import Table

LONGEST = 20  # letters of a value in a narrow table
LAST_BYTES = 1 << 16  # of a log: enough for its error


@dataclass(frozen=True)
class Result:
    """One job's outcome: `status` is `completed`, `pruned`, `failed`, `interrupted`, `running` or `not started`.

    `metrics` are by tag (`accuracy/val`, `loss/test`), `constants` what else an objective may name: parameters, macs,
    seconds of training. `directory` is None where the job made none.
    """

    job: Job
    status: str
    seconds: float | None = None
    error: str = ""
    directory: Path | None = None
    monitor: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    lower_is_better: bool = False
    constants: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line; of the metrics, the monitored one on every split."""
        monitored = (self.monitor or "").partition("/")[0]
        figures = [f"{tag} {value:.4f}" for tag, value in self.metrics.items() if tag.startswith(monitored)]
        seconds = [] if self.seconds is None else [f"{self.seconds:,.1f} s"]
        return "  ".join([str(self.job), self.status, *figures, *seconds, *self.error.splitlines()[:1]])

    def value(self, name: str) -> float | None:
        """The value of an objective, if it was measured."""
        return {**self.constants, **self.metrics}.get(name)


def read_result(job: Job, status: str, directory: Path, seconds: float | None = None, error: str = "") -> Result:
    """The outcome with the figures of the job's `summary.json`."""
    if not directory.is_dir():
        return Result(job, status, seconds, error)
    summary = RunDirectory(directory).read_json("summary.json")
    best = summary.get("best", {})
    metrics = {tag: value for tag, value in best.items() if "/" in tag}
    metrics |= {f"{name}/test": value for name, value in summary.get("test", {}).items()}
    constants: dict[str, float] = {name: summary[name] for name in ("parameters", "macs") if name in summary}
    constants |= {name: value for name, value in summary.get("train", {}).items() if name == "seconds"}
    error = error or str(summary.get("error", ""))
    lower_is_better = bool(best.get("lower_is_better"))
    return Result(job, status, seconds, error, directory, best.get("monitor"), metrics, lower_is_better, constants)


def monitored(results: Sequence[Result]) -> Objective | None:
    """The monitor that the jobs have in common."""
    monitors = {result.monitor for result in results if result.metrics}
    monitor = next(iter(monitors), None)
    if len(monitors) != 1 or monitor is None:
        return None
    lower = any(result.lower_is_better for result in results if monitor in result.metrics)
    return Objective(monitor, not lower)


def best_result(results: Sequence[Result], objective: Objective | None = None) -> Result | None:
    """The best by the objective or the common monitor, the first of equals; a pruned trial is never the best."""
    by = objective or monitored(results)
    if by is None:
        return None
    measured = [(value, result) for result in results if (value := _finite(result, by.name)) is not None]
    ended = [(value, result) for value, result in measured if result.status != "pruned"]
    return max(ended, key=lambda pair: by.sign * pair[0], default=(0.0, None))[1]


def _finite(result: Result, name: str) -> float | None:
    value = result.value(name)
    return value if value is not None and math.isfinite(value) else None


def pareto_front(results: Sequence[Result], objectives: Sequence[Objective]) -> list[Result]:
    """The completed trials that no other is better than in one objective and as good in the others."""
    points = []
    for result in results:
        values = [by.sign * value for by in objectives if (value := _finite(result, by.name)) is not None]
        if result.status == "completed" and len(values) == len(objectives):
            points.append((result, values))

    def dominated(point: list[float]) -> bool:
        return any(all(a >= b for a, b in zip(other, point, strict=True)) and other != point for _, other in points)

    return [result for result, point in points if not dominated(point)]


def render_results(
    results: Sequence[Result], columns: int | None = None, best: Collection[int] = (), shown: Sequence[str] = ()
) -> "Table":
    """A row for each job, those numbered in `best` marked with `*`; for a terminal with so many columns.

    `shown` are the metrics that matter most. A narrow terminal gets no directories and seconds, then long values cut
    off, then these metrics alone, then no status, then the job's name in place of the axes.
    """
    every = _tags(results, shown)
    first = (monitored(results) or Objective("", True)).name.partition("/")[0]
    wanted = list(shown) or [tag for tag in every if tag.partition("/")[0] == first] or every
    variants = (
        (every, ("status", "seconds", "directory")),
        (every, ("status", "seconds")),
        (every, ("status",)),
        (every, ("status", "cut")),
        (wanted, ("status", "cut")),
        (wanted, ("cut",)),
        (wanted[-1:], ("cut",)),
        (wanted[-1:], ("name",)),
    )
    return fitting((_table(results, tags, further, set(best)) for tags, further in variants), columns)


def _table(results: Sequence[Result], tags: Sequence[str], shown: Sequence[str], best: Collection[int]) -> "Table":
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    names = short_names(results[0].job.values)
    by_name = "name" in shown  # in place of a column for each axis
    longest = LONGEST if "cut" in shown else None
    table.add_column("number", no_wrap=True)
    for title in [*(["status"] if "status" in shown else []), *(["job"] if by_name else names.values())]:
        table.add_column(title, no_wrap=True)
    for title in [*tags, *(["seconds"] if "seconds" in shown else [])]:
        table.add_column(title, justify="right", no_wrap=True)
    if "directory" in shown:
        table.add_column("directory", no_wrap=True)
    for result in results:
        mark = "*" if result.job.number in best else ""
        style = "bold" if mark else "red" if result.status == "failed" else None
        values = [escape(shortened(value, longest)) for value in result.job.values.values()]
        further = {
            "seconds": "" if result.seconds is None else f"{result.seconds:,.1f}",
            "directory": escape(str(result.directory or "–")),
        }
        table.add_row(
            f"{result.job.number}{mark}",
            *([result.status] if "status" in shown else []),
            *([result.job.name] if by_name else values),
            *(_figure(result.value(tag)) for tag in tags),
            *(text for name, text in further.items() if name in shown),
            style=style,
        )
    return table


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def write_csv(results: Sequence[Result], path: Path, shown: Sequence[str] = ()) -> None:
    """The table with all digits, and the error of each job that failed. Raises `TrainingError` for a full disk."""
    tags = _tags(results, shown)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    varied = results[0].job.values if results else {}
    writer.writerow(["number", "status", *varied, *tags, "seconds", "directory", "error"])
    for result in results:
        values = [result.value(tag) for tag in tags]
        seconds = "" if result.seconds is None else round(result.seconds, 3)
        row: list[Any] = [result.job.number, result.status, *result.job.values.values()]
        row += ["" if value is None else value for value in values]
        writer.writerow([*row, seconds, result.directory or "", result.error])
    RunDirectory(path.parent).write_text(path.name, text.getvalue())


def _tags(results: Sequence[Result], shown: Sequence[str] = ()) -> list[str]:
    """Every metric that a job has, and the constants that are shown; those of the test split last."""
    found = {tag: None for result in results for tag in result.metrics}
    found |= {name: None for name in shown if any(result.value(name) is not None for result in results)}
    return sorted((tag for tag in found if tag != "seconds"), key=lambda tag: tag.endswith("/test"))


def reported_error(log: Path) -> str:
    """The last `error: …` of a log with the lines that belong to it, or nothing."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LAST_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if not starts:
        return ""
    first, *rest = lines[starts[-1] :]
    belonging = []
    for line in rest:
        if not line.startswith("  "):
            break
        belonging.append(line)
    return "\n".join([first.removeprefix("error: "), *belonging])


def list_failures(results: Sequence[Result]) -> str:
    """How many jobs did not complete, and why each of them; empty where all did."""
    open_ends = [result for result in results if result.status not in ("completed", "pruned", "running")]
    if not open_ends:
        return ""
    failures = [f"{result.job}: {result.status}{': ' if result.error else ''}{result.error}" for result in open_ends]
    counted = f"{len(open_ends)} of {len(results)} jobs did not complete"
    return "\n  ".join([f"{counted}:", *(line.replace("\n", "\n  ") for line in failures)])
