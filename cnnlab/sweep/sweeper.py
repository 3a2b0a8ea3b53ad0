"""`python train.py -m …`: grids and searches. Hydra finds the class through `hydra_plugins/cnnlab_sweeper.py`.

The sweeper reads the axes, checks configs before the first job starts, and reports the results; a launcher runs the
jobs. Ours gives each a fresh process; Hydra's own (`hydra/launcher=basic`) can stand in its place.
"""

import secrets
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, cast

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from cnnlab.config.compose import CONFIGS
from cnnlab.config.explain import explain
from cnnlab.config.hydra_internals import parse_overrides, returned_error
from cnnlab.config.programs import command, given
from cnnlab.config.run_config import differences
from cnnlab.config.saved_config import trusted_names
from cnnlab.config.sections import is_quiet
from cnnlab.run.files import make_sweep_directory
from cnnlab.runtime.errors import ConfigError, Interrupted, TrainingError, listing
from cnnlab.runtime.terminal import print_wrapped, silenced, waiting, wrapped
from cnnlab.sweep.axes import Axes, Job, axis_key, read_axes, read_grid
from cnnlab.sweep.grid import GridRun
from cnnlab.sweep.job_checks import JobChecks
from cnnlab.sweep.launcher import ProcessLauncher, options, overrides_of, status_of
from cnnlab.sweep.objectives import objectives
from cnnlab.sweep.reporting import Report
from cnnlab.sweep.results import Result, list_failures, read_result
from cnnlab.sweep.saved_sweep import SavedSweep, check_trusted, given_to_hydra, without_password
from cnnlab.sweep.search import SearchRun
from cnnlab.sweep.settings import GRID, SweepSettings, read_settings


class SweepRun(Protocol):
    """A grid or a search in its directory: gives out jobs and keeps their results."""

    count: int

    @property
    def done(self) -> int: ...
    def jobs(self) -> Iterable[Job | None]: ...
    def record(self, result: Result) -> None: ...
    def results(self) -> list[Result]: ...
    def close(self) -> None: ...


class GridOrSearch(Sweeper):
    """Every combination of the axes' values, or trials of a search; `resume` is the directory of one to continue."""

    config: DictConfig
    launcher: Launcher

    def __init__(self, resume: str | None = None) -> None:
        self.saved = None if resume is None else SavedSweep.read(Path(resume))
        self.resumed = None if resume is None else Path(resume)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.loader = hydra_context.config_loader
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Raises `ConfigError` before anything is written, `TrainingError` where a job did not complete."""
        with silenced(is_quiet(self.config.get("observers"))):
            self._sweep(arguments)

    def _sweep(self, arguments: Sequence[str]) -> None:
        settings = read_settings(OmegaConf.to_container(self.config.sweep, resolve=True))
        if self.resumed is not None:
            check_trusted(settings, trusted_names(OmegaConf.to_container(self.config.trust)), self.resumed)
        axes = read_axes(_without_sweep(arguments), settings.space)
        again = None if self.resumed is None else f"{command('train')} {given('resume', self.resumed)}"
        checks = JobChecks(self.loader, self.config, again)
        if settings.is_grid:
            self._run_grid(axes, settings, checks, arguments)
        else:
            self._search(axes, settings, checks, arguments)

    def _run_grid(self, axes: Axes, settings: SweepSettings, checks: JobChecks, arguments: Sequence[str]) -> None:
        grid = read_grid(axes)
        print_wrapped(grid, flush=True)
        with waiting("checking the jobs"):
            refusals = checks.refusals(grid.jobs)
            sound = next(job for job in grid.jobs if job.number not in refusals)
            wanted = objectives(settings, checks.plan(sound.overrides)) if settings.metric else ()
        folder = self._folder(self._to_save(axes, settings, checks, arguments))
        run = GridRun(grid, folder)
        report = Report(run, folder, wanted)
        try:
            for number, refusal in refusals.items():
                if run.results()[number].status != "failed":
                    result = Result(grid.jobs[number], "failed", error=refusal)
                    run.record(result)
                    print_wrapped(result)
            stopped_by = self._run(run, folder, report)
            report.show(checks.choices, options())
            results = run.results()
        finally:
            run.close()
        self._end(results, stopped_by, folder)

    def _search(self, axes: Axes, settings: SweepSettings, checks: JobChecks, arguments: Sequence[str]) -> None:
        from cnnlab.sweep.figures import FIGURES, draw_figures
        from cnnlab.sweep.preparing import prepare_search

        search = prepare_search(axes, settings, checks)
        print_wrapped(search, flush=True)
        settings = search.settings
        folder = self._folder(self._to_save(axes, settings, checks, arguments))
        run = search.open(folder, SavedSweep.read(folder).sweep["id"])
        report = Report(run, folder, search.objectives)
        try:
            stopped_by = self._run(run, folder, report)
            if stopped_by is None:
                stopped_by = self._measure_test(run, report, checks)
            report.show(checks.choices, options())
            drawn = draw_figures(run.study, search.objectives, folder)
            print_wrapped(f"figures: {listing(drawn)} in {folder / FIGURES}", folder / FIGURES, flush=True)
            results = run.results()
        finally:
            run.close()
        self._end_search(results, stopped_by, folder)

    def _to_save(self, axes: Axes, settings: SweepSettings, checks: JobChecks, arguments: Sequence[str]) -> SavedSweep:
        """What `sweep.yaml` gets, without passwords."""
        hydra = [str(one) for one in self.config.hydra.overrides.hydra]
        storage = settings.storage and without_password(settings.storage)
        return SavedSweep(
            options(),
            tuple(one for one in hydra if not one.startswith(("hydra.mode", "hydra.sweeper.resume"))),
            tuple(without_password(one) for one in arguments if not one.startswith("trust=")),
            {**asdict(replace(settings, storage=storage)), "id": secrets.token_hex(4)},
            {key: one.get_value_string() for key, one in axes.varied.items()},
            checks.compose(axes.fixed).config_yaml(),
        )

    def _folder(self, new: SavedSweep) -> Path:
        """The sweep's directory, which other launchers and their jobs take from the config."""
        if self.resumed is None:
            folder = make_sweep_directory(Path(self.config.hydra.sweep.dir))
            new.write(folder)
        else:
            folder = self.resumed
            assert self.saved
            _check_same(self.saved, new, folder)
            replace(new, sweep={**new.sweep, "id": self.saved.sweep["id"]}).write(folder)
        self.config.hydra.sweep.dir = str(folder)
        self.config.hydra.overrides.hydra.append(given_to_hydra("hydra.sweep.dir", folder))
        print_wrapped(f"results in {folder}", folder, flush=True)
        return folder

    def _run(self, run: SweepRun, folder: Path, report: Report) -> int | None:
        """Runs the jobs that are left. Returns the signal that stopped them, if one did."""

        def ended(result: Result) -> None:
            run.record(result)
            report.write()

        report.write()
        return self._run_jobs(run.jobs(), run.count, folder, ended, run.done)

    def _run_jobs(
        self, jobs: Iterable[Job | None], count: int, folder: Path, ended: Callable[[Result], None], done: int = 0
    ) -> int | None:
        """By our launcher some at a time; by another a grid's at once, and a search's in batches."""
        if isinstance(self.launcher, ProcessLauncher):
            return self.launcher.run(jobs, count, folder, ended, done)
        coming = filter(None, jobs)
        at_once = count if self.config.sweep.sampler == GRID else self._trials_at_once(count)
        while batch := list(islice(coming, at_once)):
            stopped_by = self._launch(batch, folder, ended)
            if stopped_by is not None:
                return stopped_by
        return None

    def _trials_at_once(self, count: int) -> int:
        """As many as submitit's `array_parallelism`, in four batches or more: later trials learn from earlier ones."""
        return max(1, min(self.config.hydra.launcher.get("array_parallelism", 1), count // 4))

    def _launch(self, jobs: Sequence[Job], folder: Path, ended: Callable[[Result], None]) -> int | None:
        try:
            returned = self.launcher.launch([overrides_of(job, folder) for job in jobs], initial_job_idx=0)
        except Interrupted as interruption:
            for job in jobs:
                if (folder / job.name).is_dir():
                    ended(read_result(job, status_of(folder / job.name), folder / job.name))
            return interruption.exit_status - 128
        for job, one in zip(jobs, returned, strict=True):
            ended(_returned(job, folder, one))
        return None

    def _measure_test(self, run: SearchRun, report: Report, checks: JobChecks) -> int | None:
        """Measures the test split for the best trials, each of which is resumed as a run of its own for that."""
        with run.alone():
            if run.is_running():
                print_wrapped("trials of other processes are running: the last of them measures the test split")
                return None
            for result in report.best():
                stopped_by = self._measure_test_of(result, report, checks)
                if stopped_by is not None:
                    return stopped_by
        return None

    def _measure_test_of(self, result: Result, report: Report, checks: JobChecks) -> int | None:
        job, place = replace(result.job, is_trial=False), result.directory
        if place is None or any(tag.endswith("/test") for tag in result.metrics):
            return None
        if "test" not in checks.plan(job.overrides).spec.counts:
            return None
        if not place.is_dir():
            resuming = f"{command('train')} {given('resume', place)}"
            print_wrapped(f"{place} is on another machine: {resuming} measures the test split", place, resuming)
            return None
        print_wrapped(f"measuring the test split with the best, {place.name}", flush=True)
        return self._run_jobs([job], 1, place.parent, lambda result: report.write())

    def _end(self, results: Sequence[Result], stopped_by: int | None, folder: Path) -> None:
        failures = list_failures(results)
        if stopped_by is not None:
            _print_interruption(failures, folder)
            raise Interrupted(stopped_by)
        if failures:
            raise TrainingError(failures)

    def _end_search(self, results: Sequence[Result], stopped_by: int | None, folder: Path) -> None:
        """A search has succeeded where one trial has: others may fail."""
        failures = list_failures(results)
        if stopped_by is not None:
            _print_interruption(failures, folder)
            raise Interrupted(stopped_by)
        if results and not any(result.status in ("completed", "pruned") for result in results):
            raise TrainingError(failures)
        if failures:
            print(wrapped(f"note: {failures}", sys.stderr), file=sys.stderr)


def _print_interruption(failures: str, folder: Path) -> None:
    """To stderr, which a quiet sweep has, too."""
    resume = f"{command('train')} {given('resume', folder)}"
    text = f"interrupted{': ' if failures else ''}{failures}\n  resume     {resume}"
    print(wrapped(text, sys.stderr, [resume]), file=sys.stderr, flush=True)


def _without_sweep(arguments: Sequence[str]) -> list[str]:
    """The overrides of the jobs. Raises `ConfigError` where the sweep itself would vary."""
    kept = []
    for override in parse_overrides(arguments):
        key = axis_key(override)
        if key.partition(".")[0] != "sweep":
            kept.append(str(override.input_line))
        elif override.is_sweep_override():
            raise ConfigError(f"{key}: expected one value, received {override.get_value_string()}")
    return kept


def _check_same(saved: SavedSweep, new: SavedSweep, folder: Path) -> None:
    """Raises `ConfigError` where YAML has changed since: the rest of the sweep would be another."""
    for name, (then, now) in _differences(saved, new).items():
        raise ConfigError(
            f"resume: {folder} was started with another {name}: expected {then}, received {now}; a new sweep "
            "starts without resume"
        )


def _differences(saved: SavedSweep, new: SavedSweep) -> dict[str, tuple[Any, Any]]:
    """Keys of the sweep and of the config with their values then and now, where they differ."""
    kept = ("sampler", "seed", "metric", "direction", "pruner", "study")
    sweeps = {f"sweep.{key}": (_listed(saved.sweep.get(key)), _listed(new.sweep.get(key))) for key in kept}
    then, now = (cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(one.config))) for one in (saved, new))
    pairs = {"space": (saved.space, new.space), **sweeps}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]} | differences(then, now)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _returned(job: Job, folder: Path, returned: JobReturn) -> Result:
    """The result of a job of another launcher."""
    place = folder / job.name
    if returned.status is JobStatus.COMPLETED:
        return read_result(job, status_of(place), place)
    return read_result(job, "failed", place, error=explain(returned_error(returned), CONFIGS))
