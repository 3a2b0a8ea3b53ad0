"""Repeats kills, damage and attacks as often as promised and writes `docs/reliability.md`: see `make torture`.

Each test that has passed is kept in `docs/reliability.json` as soon as it ends and is not repeated until the package
changes: a call that is stopped continues with what is missing.
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS, PAGE = (REPOSITORY / "docs" / name for name in ("reliability.json", "reliability.md"))
INTRODUCTION = """# Reliability

What a run survives, counted. `make torture` repeats all of it on your machine and writes this page; `make torture
ARGS='F1 F4'` repeats two figures. `make test` has every line of it at a small count.

"The same end" means the same bits: weights, averaged weights, optimizer, schedule, generators, metric log. Each kill
is a SIGKILL of a fresh process, and each resume is another.

"""
NOT_PROMISED = """
Not promised: the same bits on other hardware, with other versions or another number of threads, or on CUDA without
`trainer.deterministic=true`; safety of YAML that you run yourself; disks that report a write as durable before it is.
"""


@dataclass(frozen=True)
class Figure:
    """What is counted, and how many of it have to pass."""

    what: str
    target: int
    unit: str = ""
    alone: bool = False  # without a second test beside it: it measures time, or takes every core itself


FIGURES = {
    "F1": Figure("A run that is killed at a random moment and resumed has the same end", 100, "kills"),
    "F2": Figure("A kill at each stage of writing a checkpoint leaves a whole one", 250, "kills"),
    "F3": Figure("One to ten kills within one epoch: the same end", 10, "runs"),
    "F4": Figure("A flipped byte or a truncation in any file of a checkpoint is noticed", 500, "damages"),
    "F5": Figure("Each part of the saved state, left out, is an error that names it", 1, "parts"),
    "F6": Figure("0, 1 and 2 loader workers: the same end", 3, "runs"),
    "F7": Figure(
        "Either of two ranks is killed, and the job continues by itself to the same end", 20, "kills", alone=True
    ),
    "sweeps": Figure(
        "A grid or a search is killed at random times: none of its trials is lost or doubled", 84, "kills"
    ),
    "F8": Figure("SIGTERM or SIGINT to a durable checkpoint, 99th percentile below 10 s", 100, "signals", alone=True),
    "fuzz": Figure(
        "Random damage to any file of a run: one sentence and status 2, or the same end; what is changed and sealed "
        "again: one sentence, or a completed run",
        500,
        "changes",
    ),
    "attacks": Figure("Attacks, edits and faults, listed below", 1, "tests"),
}

Results = dict[str, dict[str, Any]]  # by figure


def main() -> None:
    parser = argparse.ArgumentParser(prog="make torture", description=__doc__)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"of {', '.join(FIGURES)}; all without")
    chosen = parser.parse_args().figures or list(FIGURES)
    unknown = sorted(set(chosen) - set(FIGURES))
    if unknown:
        parser.error(f"expected figures of {', '.join(FIGURES)}, received {', '.join(unknown)}")
    os.environ["CNNLAB_TORTURE"] = "1"
    os.chdir(REPOSITORY)
    recorder = Recorder()
    alone = [name for name in chosen if FIGURES[name].alone]
    statuses = [
        repeat(names, recorder, workers)
        for names, workers in ((alone, "0"), ([name for name in chosen if name not in alone], "auto"))
        if names
    ]
    recorder.write()
    sys.exit(max(statuses))


def repeat(names: Iterable[str], recorder: "Recorder", workers: str) -> int:
    """Runs the tests of the figures that have not passed yet; returns pytest's exit status."""
    import pytest

    expression = " or ".join(f"torture(figure='{name}')" for name in names)
    passed = [f"--deselect={test}" for name in names for test in recorder.passed(name)]
    status = int(pytest.main(["-q", "-n", workers, "-m", expression, *passed], plugins=[recorder]))
    return 0 if status == pytest.ExitCode.NO_TESTS_COLLECTED else status  # all have passed before


class Recorder:
    """A plugin of pytest that keeps the outcome of each test, with what it measured."""

    def __init__(self) -> None:
        self.results: Results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        self.code = digest_of_package()

    def passed(self, figure: str) -> list[str]:
        """The tests that need no repetition."""
        known = self.results.get(figure, {})
        if known.get("code") != self.code:
            return []
        return [test for test, outcome in known["tests"].items() if outcome["passed"]]

    def pytest_runtest_logreport(self, report: Any) -> None:
        properties = dict(report.user_properties)
        figure = properties.pop("figure", None)
        if figure is None or not (report.when == "call" or report.failed) or report.skipped:
            return
        known = self.results.get(figure, {})
        if known.get("code") != self.code:
            known = {"code": self.code, "tests": {}}
        known |= {"machine": machine(), "date": time.strftime("%Y-%m-%d")}
        known["tests"][report.nodeid] = {"passed": report.passed, **properties}
        self.results[figure] = known
        self.write()

    def write(self) -> None:
        RESULTS.write_text(json.dumps(self.results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        PAGE.write_text(page(self.results), encoding="utf-8")


def digest_of_package() -> str:
    """What the tests ran: the code and the configs."""
    digest = hashlib.sha256()
    for path in sorted([*REPOSITORY.glob("cnnlab/**/*.py"), *REPOSITORY.glob("configs/**/*.yaml")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def machine() -> str:
    import torch

    import cnnlab

    versions = f"cnnlab {cnnlab.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}; {versions}"


def page(results: Results) -> str:
    rows = [
        f"| {name} | {figure.what} | {wanted(figure)} | {measured(name, results)} |" for name, figure in FIGURES.items()
    ]
    table = "\n".join(["| | promise | at least | measured |", "|---|---|---|---|", *rows])
    return INTRODUCTION + table + "\n" + NOT_PROMISED + attacks(results) + machines(results)


def wanted(figure: Figure) -> str:
    return f"{f'{figure.target:,}' if figure.target > 1 else 'all'} {figure.unit}"


def measured(name: str, results: Results) -> str:
    """How many passed of how many, and what was measured beside that."""
    if name not in results:
        return "–"
    outcomes = list(results[name]["tests"].values())
    passed, all_ = (sum(map(count, chosen)) for chosen in ([one for one in outcomes if one["passed"]], outcomes))
    text = f"{passed:,} of {all_:,}"
    seconds = sorted(one["seconds"] for one in outcomes if "seconds" in one)
    if len(seconds) > 1:
        largest = statistics.quantiles(seconds, n=100)[98]
        text += f"; median {statistics.median(seconds):.2f} s, 99th percentile {largest:.2f} s"
    codes = Counter(code for one in outcomes for code in one.get("codes", ()))
    if codes:
        text += f"; {codes[2]} refused, {codes[0]} completed"
    return text


def count(outcome: dict[str, Any]) -> int:
    """What one test counts: the kills or damages in it, or itself."""
    codes = outcome.get("codes")
    return len(codes) if codes is not None else int(outcome.get("count", 1))


def attacks(results: Results) -> str:
    """A line for each test, named by what it shows."""
    if "attacks" not in results:
        return ""
    variants: dict[str, list[bool]] = {}
    for test, outcome in sorted(results["attacks"]["tests"].items()):
        name = test.split("::")[-1].split("[")[0].removeprefix("test_").replace("_", " ")
        variants.setdefault(name[:1].upper() + name[1:], []).append(outcome["passed"])
    rows = [f"| {name} | {sum(passed)} of {len(passed)} |" for name, passed in variants.items()]
    return "\n".join(["\n## Attacks, edits and faults\n", "| what happens | variants passed |", "|---|---|", *rows, ""])


def machines(results: Results) -> str:
    """Where and when each figure was measured."""
    by_place: dict[str, list[str]] = {}
    for name in FIGURES:
        if name in results:
            by_place.setdefault(f"{results[name]['date']}, {results[name]['machine']}", []).append(name)
    lines = [f"- {', '.join(names)}: {place}" for place, names in by_place.items()]
    return "\n".join(["\n## Measured\n", *lines, ""]) if lines else ""


if __name__ == "__main__":
    main()
