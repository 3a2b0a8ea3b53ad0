"""The results of a grid's jobs: a table for the terminal, the same as CSV, and the failures."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnlab.run.files import RunDirectory
from cnnlab.runtime.terminal import fitting
from cnnlab.sweep.axes import Job

if TYPE_CHECKING:
    from rich.table import Table

SHORT, LONGEST = 20, 1000  # letters of a value in the table
LAST_BYTES = 1 << 16  # of a log: enough for its error


@dataclass(frozen=True)
class Result:
    """One job's outcome: `status` is `completed`, `failed`, `interrupted` or `not started`.

    `metrics` are by tag (`accuracy/val`, `loss/test`); `directory` is None where the job made none.
    """

    job: Job
    status: str
    seconds: float | None = None
    error: str = ""
    directory: Path | None = None
    monitor: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    lower_is_better: bool = False

    def __str__(self) -> str:
        """One line; of the metrics, the monitored one on every split."""
        monitored = (self.monitor or "").partition("/")[0]
        figures = [f"{tag} {value:.4f}" for tag, value in self.metrics.items() if tag.startswith(monitored)]
        seconds = [] if self.seconds is None else [f"{self.seconds:,.1f} s"]
        return "  ".join([str(self.job), self.status, *figures, *seconds, *self.error.splitlines()[:1]])


def read_result(job: Job, status: str, directory: Path, seconds: float | None = None, error: str = "") -> Result:
    """The outcome with the figures of the job's `summary.json`."""
    if not directory.is_dir():
        return Result(job, status, seconds, error)
    summary = RunDirectory(directory).read_json("summary.json")
    best = summary.get("best", {})
    metrics = {tag: value for tag, value in best.items() if "/" in tag}
    metrics |= {f"{name}/test": value for name, value in summary.get("test", {}).items()}
    lower_is_better = bool(best.get("lower_is_better"))
    return Result(job, status, seconds, error, directory, best.get("monitor"), metrics, lower_is_better)


def best_result(results: Sequence[Result]) -> Result | None:
    """The best by the monitor, the first of equals; None where the jobs have no monitor in common."""
    monitors = {result.monitor for result in results if result.metrics}
    monitor = next(iter(monitors), None)
    if len(monitors) != 1 or monitor is None:
        return None
    measured = [result for result in results if monitor in result.metrics]
    sign = -1 if any(result.lower_is_better for result in measured) else 1
    return max(measured, key=lambda result: sign * result.metrics[monitor], default=None)


def render_results(results: Sequence[Result], columns: int | None = None) -> "Table":
    """A row for each job, the best one marked with `*`; for a terminal with so many columns where they are given.

    A narrow one gets no directories and seconds, then short names of keys and short values, then the monitored metric
    alone, then no status, then no values of the axes.
    """
    every = _tags(results)
    monitor = next((result.monitor for result in results if result.monitor), "")  # a job that failed has none
    monitored = [tag for tag in every if tag.partition("/")[0] == monitor.partition("/")[0]] or every
    variants = (
        (every, ("status", "seconds", "directory"), LONGEST),
        (every, ("status", "seconds"), LONGEST),
        (every, ("status",), LONGEST),
        (every, ("status",), SHORT),
        (monitored, ("status",), SHORT),
        (monitored, (), SHORT),
        (monitored[-1:], (), SHORT),
        (monitored[-1:], (), SHORT // 2),
        (monitored, ("status",), 0),
        (monitored[-1:], (), 0),
    )
    return fitting((_table(results, *variant) for variant in variants), columns)


def _short_names(keys: Sequence[str]) -> list[str]:
    """Each key's last parts, as many as tell it from the others: `conv1.p` and `conv2.p`, but `lr`."""
    names = []
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        names.append(next((end for end in ends if sum(f".{one}".endswith(f".{end}") for one in keys) == 1), key))
    return names


def _table(results: Sequence[Result], tags: Sequence[str], shown: Sequence[str], longest: int) -> "Table":
    """With values of at most so many letters; shorter than `LONGEST`, the keys are short, too; 0 leaves them out."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    best = best_result(results)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    keys = list(results[0].job.values)
    names = (_short_names(keys) if longest < LONGEST else keys) if longest else []
    status, last = [name for name in shown if name == "status"], [name for name in shown if name != "status"]
    for title in ("job", *names, *status, *tags, *last):
        is_number = title in (*tags, "seconds")
        table.add_column(title, justify="right" if is_number else "left", no_wrap=True)
    for result in results:
        mark = "*" if result is best else ""
        metrics = [f"{result.metrics[tag]:.4f}" if tag in result.metrics else "" for tag in tags]
        seconds = "" if result.seconds is None else f"{result.seconds:,.1f}"
        values = [escape(_shortened(value, longest)) for value in result.job.values.values()] if longest else []
        style = "bold" if mark else "red" if result.status == "failed" else None
        further = {"seconds": seconds, "directory": escape(str(result.directory or "–"))}
        ends = [further[name] for name in last]
        table.add_row(f"{result.job.name}{mark}", *values, *[result.status] * len(status), *metrics, *ends, style=style)
    return table


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def write_csv(results: Sequence[Result], path: Path) -> None:
    """The table's columns, the figures unrounded."""
    tags = _tags(results)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_header(results, tags))
        for result in results:
            metrics = [result.metrics.get(tag, "") for tag in tags]
            seconds = "" if result.seconds is None else round(result.seconds, 3)
            row: list[Any] = [result.job.name, *result.job.values.values(), result.status, *metrics, seconds]
            writer.writerow([*row, result.directory or ""])


def _tags(results: Sequence[Result]) -> list[str]:
    """Every metric that a job has, those of the test split last."""
    found = {tag: None for result in results for tag in result.metrics}
    return sorted(found, key=lambda tag: tag.endswith("/test"))


def _header(results: Sequence[Result], tags: Sequence[str]) -> list[str]:
    return ["job", *results[0].job.values, "status", *tags, "seconds", "directory"]


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
    open_ends = [result for result in results if result.status != "completed"]
    if not open_ends:
        return ""
    failures = [f"{result.job}: {result.status}{': ' if result.error else ''}{result.error}" for result in open_ends]
    counted = f"{len(open_ends)} of {len(results)} jobs did not complete"
    return "\n  ".join([f"{counted}:", *(line.replace("\n", "\n  ") for line in failures)])
