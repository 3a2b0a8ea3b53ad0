"""What a sweep shows and writes: table, `sweep.csv`, the best as a command and as YAML."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cnnlab.config.programs import command
from cnnlab.runtime.terminal import print_command, print_table, print_wrapped, width
from cnnlab.sweep.best import again, write_experiment
from cnnlab.sweep.objectives import Objective
from cnnlab.sweep.results import Result, best_result, monitored, pareto_front, render_results, write_csv
from cnnlab.sweep.seeds import configurations, render_seeds

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

    def show(self, choices: Callable[[Sequence[str]], Mapping[str, Any]], options: Mapping[str, str]) -> None:
        """Prints the table, the best and where the results are.

        `choices` are a job's choices of groups, `options` the command's, which the best needs again.
        """
        results = self.run.results()
        if not results:
            return
        best = self._best_of(results)
        shown = [by.name for by in self.objectives]
        print()
        print_table(render_results(results, width(), [result.job.number for result in best], shown))
        by = self.objectives or tuple(filter(None, [monitored(results)]))
        for one in by:
            self._show_seeds(results, one)
        for result in best:
            print_wrapped(f"* best by {' and '.join(one.name for one in by)}: {result.directory}", result.directory)
        if len(best) == 1:
            print_command("again", command("train"), again(best[0].job, options))
            if best[0].directory is not None and best[0].directory.is_dir():
                experiment = write_experiment(best[0], choices(best[0].job.overrides), self.folder)
                print_command("or", command("train"), experiment)
        self.write()
        print_wrapped(f"table: {self.folder / CSV}", self.folder / CSV, flush=True)

    def _show_seeds(self, results: Sequence[Result], by: Objective) -> None:
        found = configurations(results, by.name)
        if any(len(one.by_run) > 1 for one in found):
            print_table(render_seeds(found, by.name, results[0].job.values))
