"""What a sweep shows and writes: table, `sweep.csv`, the best as a command and as YAML."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cnnlab.runtime.terminal import print_table, width
from cnnlab.sweep.objectives import Objective
from cnnlab.sweep.results import Result, best_result, monitored, pareto_front, render_results, write_csv

CSV = "sweep.csv"


class Ran(Protocol):
    def results(self) -> list[Result]: ...


class Report:
    """Of a grid or a search in its directory, by its objectives, or by the jobs' monitor where there are none."""

    def __init__(self, run: Ran, folder: Path, objectives: Sequence[Objective]) -> None:
        self.run = run
        self.folder = folder
        self.objectives = objectives

    def best(self) -> list[Result]:
        """The best, or the Pareto front of several objectives."""
        return self._best_of(self.run.results())

    def _best_of(self, results: Sequence[Result]) -> list[Result]:
        if len(self.objectives) > 1:
            return pareto_front(results, self.objectives)
        best = best_result(results, self.objectives[0] if self.objectives else None)
        return [best] if best else []

    def write(self) -> None:
        """Rewrites `sweep.csv`."""
        write_csv(self.run.results(), self.folder / CSV, [by.name for by in self.objectives])

    def show(self) -> None:
        """Prints the table, the best and where the results are."""
        results = self.run.results()
        if not results:
            return
        best = self._best_of(results)
        shown = [by.name for by in self.objectives]
        print()
        print_table(render_results(results, width(), [result.job.number for result in best], shown))
        by = self.objectives or tuple(filter(None, [monitored(results)]))
        for result in best:
            print(f"* best by {' and '.join(one.name for one in by)}: {result.directory}")
        self.write()
        print(f"table: {self.folder / CSV}", flush=True)
