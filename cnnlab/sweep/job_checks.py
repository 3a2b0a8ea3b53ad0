"""`python train.py -m …`: plain grids. Hydra finds both classes through `hydra_plugins/cnnlab_grid.py`.

The sweeper makes jobs of the axes, checks every one before the first starts, and reports the results; a
launcher runs them. Ours gives each a fresh process; Hydra's own (`hydra/launcher=basic`) can stand in its place.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import MissingConfigException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cnnlab.config.compose import CONFIGS, compose_job
from cnnlab.config.explain import COMPOSITION_ERRORS, explain
from cnnlab.config.full_error import environment_of_jobs
from cnnlab.config.hydra_internals import command_line_parser, hydra_config, returned_error
from cnnlab.config.programs import command, given
from cnnlab.config.saved_config import resolved, trusted_names
from cnnlab.run.files import RunDirectory, make_sweep_directory
from cnnlab.runtime.checks import integer
from cnnlab.runtime.errors import ConfigError, Interrupted, TrainingError
from cnnlab.runtime.terminal import print_table, waiting, width
from cnnlab.sweep.axes import Grid, Job, read_grid
from cnnlab.sweep.processes import THREADS, Ended, Processes, Task, gpus_to_share, shared_threads
from cnnlab.sweep.results import (
    Result,
    best_result,
    list_failures,
    read_result,
    render_results,
    reported_error,
    write_csv,
)

NOT_FOR_JOBS = ("hydra.mode", "hydra.launcher", "hydra.sweeper", "hydra/launcher", "hydra/sweeper")


class GridSweeper(Sweeper):
    """Every combination of the axes' values, checked as a whole before the first job starts."""

    config: DictConfig
    launcher: Launcher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.loader = hydra_context.config_loader
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Raises `ConfigError` before anything is written, `TrainingError` where a job did not complete."""
        grid = read_grid(arguments)
        print(grid, flush=True)
        with waiting("checking the jobs"):
            refusals = _refusals(grid, self.loader, self.config)
        folder = self._make_folder()
        print(f"results in {folder}", flush=True)
        refused = [Result(job, "failed", error=refusals[job.number]) for job in grid.jobs if job.number in refusals]
        for result in refused:
            print(result)
        launched, stopped_by = self._launch([job for job in grid.jobs if job.number not in refusals], folder)
        results = sorted([*refused, *launched], key=lambda result: result.job.number)
        _show(results, folder)
        failures = list_failures(results)
        if stopped_by is not None:
            if failures:
                print(f"interrupted: {failures}", file=sys.stderr)
            raise Interrupted(stopped_by)
        if failures:
            raise TrainingError(failures)

    def _make_folder(self) -> Path:
        """The sweep's directory, which other launchers and their jobs take from the config."""
        folder = make_sweep_directory(Path(self.config.hydra.sweep.dir))
        self.config.hydra.sweep.dir = str(folder)
        self.config.hydra.overrides.hydra.append(f"hydra.sweep.dir={_quoted(folder)}")
        return folder

    def _launch(self, jobs: Sequence[Job], folder: Path) -> tuple[list[Result], int | None]:
        """The results of the jobs, and the signal that stopped them, if one did."""
        if isinstance(self.launcher, ProcessLauncher):
            return self.launcher.run(jobs, folder)
        try:
            returned = self.launcher.launch([_overrides(job, folder) for job in jobs], initial_job_idx=0)
        except Interrupted as interruption:
            return [_found(job, folder) for job in jobs], interruption.exit_status - 128
        return [_returned(job, folder, one) for job, one in zip(jobs, returned, strict=True)], None


class ProcessLauncher(Launcher):
    """Runs each job in a fresh process, `n_jobs` at a time: one, or one for each GPU, where it is null."""

    def __init__(self, n_jobs: int | None) -> None:
        self.n_jobs = n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Raises `ConfigError` for an `n_jobs` that is no number of jobs."""
        if self.n_jobs is not None:
            integer("hydra.launcher.n_jobs", self.n_jobs, 1)
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """For Hydra's other sweepers, which read a `JobReturn` for each job."""
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        jobs = [Job(initial_job_idx + place, tuple(given), {}) for place, given in enumerate(job_overrides)]
        results, stopped_by = self.run(jobs, folder)
        if stopped_by is not None:
            raise Interrupted(stopped_by)
        return [_job_return(result) for result in results]

    def run(self, jobs: Sequence[Job], folder: Path) -> tuple[list[Result], int | None]:
        """The results of the jobs, and the signal that stopped them, if one did."""
        results = {job.number: Result(job, "not started") for job in jobs}
        processes = self.processes(len(jobs))
        console = Console(highlight=False, soft_wrap=True)
        with _progress(console) as progress:
            task = progress.add_task("", total=len(jobs), running=0)

            def ended(number: int, how: Ended) -> None:
                results[number] = _ended(results[number].job, folder, how)
                console.print(str(results[number]), markup=False)
                progress.advance(task)

            processes.run(
                {job.number: self._task(job, folder) for job in jobs},
                ended,
                lambda: progress.update(task, running=len(processes.running)),
            )
        return list(results.values()), processes.stopped_by

    def processes(self, jobs: int) -> Processes:
        """Prints how many run at a time, and how the cores and GPUs are shared."""
        import torch  # it is there by now: the configs were checked

        from cnnlab.runtime.device import cpu_count

        gpus = gpus_to_share(os.environ, torch.cuda.device_count())
        at_once = min(self.n_jobs or len(gpus) or 1, jobs)
        threads = shared_threads(os.environ, cpu_count(), at_once)
        each = f", OMP_NUM_THREADS={threads[THREADS[0]]}" if threads else ""
        on = f", on GPUs {','.join(gpus)}" if gpus else ""
        print(f"{at_once} at a time{each}{on}", flush=True)
        return Processes(at_once, gpus, {**environment_of_jobs(), **threads, "PYTHONUNBUFFERED": "1"})

    def _task(self, job: Job, folder: Path) -> Task:
        """The command of one job: this interpreter and import path, the user's flags and Hydra's overrides."""
        program = f"import sys; sys.path[:] = {sys.path!r}; from cnnlab.cli import train; train()"
        given = command_line_parser().parse_args()
        flags = {"path": given.config_path, "name": given.config_name, "dir": given.config_dir}
        hydra = [str(one) for one in self.config.hydra.overrides.hydra]
        command = [
            *(sys.executable, "-c", program),
            *(f"--config-{flag}={value}" for flag, value in flags.items() if value is not None),
            *(one for one in hydra if not one.lstrip("+~").startswith(NOT_FOR_JOBS)),
            *_overrides(job, folder),
        ]
        return Task(command, _log(job, folder))


def _overrides(job: Job, folder: Path) -> list[str]:
    return [*job.overrides, f"run_dir={_quoted(folder / job.name)}"]


def _quoted(path: Path) -> str:
    return QuotedString(str(path), Quote.single).with_quotes()


def _log(job: Job, folder: Path) -> Path:
    return folder / f"{job.name}.log"


def _progress(console: Console) -> Progress:
    """One line under those of the jobs, where there is a terminal."""
    return Progress(
        BarColumn(bar_width=30),
        TextColumn("{task.completed:.0f} of {task.total:.0f} jobs done, {task.fields[running]} running"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _ended(job: Job, folder: Path, how: Ended) -> Result:
    """The result of a process of this launcher."""
    directory, log = folder / job.name, _log(job, folder)
    error = how.remark
    if how.status == "failed":
        error = reported_error(log) or f"{how.remark}, see {log}"
    elif how.status == "interrupted" and directory.is_dir():
        error = f"{how.remark}; {given('resume', directory)} continues it"
    return read_result(job, how.status, directory, how.seconds, error)


def _found(job: Job, folder: Path) -> Result:
    """The result of a job whose launcher returned nothing."""
    directory = folder / job.name
    return read_result(job, RunDirectory(directory).read_json("summary.json").get("status", "not started"), directory)


def _returned(job: Job, folder: Path, returned: JobReturn) -> Result:
    """The result of a job of another launcher."""
    if returned.status is JobStatus.COMPLETED:
        return read_result(job, "completed", folder / job.name)
    return read_result(job, "failed", folder / job.name, error=explain(returned_error(returned), CONFIGS))


def _job_return(result: Result) -> JobReturn:
    returned = JobReturn(overrides=result.job.overrides)
    returned.status = JobStatus.COMPLETED if result.status == "completed" else JobStatus.FAILED
    returned.return_value = None if result.status == "completed" else TrainingError(result.error)
    return returned


def _refusals(grid: Grid, loader: ConfigLoader, config: DictConfig) -> dict[int, str]:
    """The mistakes in the jobs' configs, by number. Raises `ConfigError` where no job is without one.

    All are composed before the first is checked: what Hydra refuses is reported without waiting for torch.
    """
    composed: dict[int, DictConfig] = {}
    refusals: dict[int, str] = {}
    for job in grid.jobs:
        try:
            composed[job.number] = loader.load_sweep_config(config, list(job.overrides))
            _check_place(composed[job.number])
        except MissingConfigException:  # an axis names a file that is not there
            raise
        except COMPOSITION_ERRORS as error:
            refusals[job.number] = explain(error, CONFIGS)
    _raise_if_all_are_refused(grid, refusals)
    sources: set[str] = set()
    for number, one in composed.items():
        try:
            _check_job(one, grid.jobs[number].overrides, sources)
        except COMPOSITION_ERRORS as error:
            refusals[number] = explain(error, CONFIGS)
    _raise_if_all_are_refused(grid, refusals)
    return refusals


def _raise_if_all_are_refused(grid: Grid, refusals: Mapping[int, str]) -> None:
    if len(refusals) < len(grid.jobs):
        return
    messages = list(dict.fromkeys(refusals.values()))
    if len(messages) == 1:
        raise ConfigError(messages[0])
    refused = [f"{job}: {refusals[job.number]}".replace("\n", "\n  ") for job in grid.jobs]
    raise ConfigError("\n  ".join(["no job of the grid can run:", *refused]))


def _check_place(config: DictConfig) -> None:
    """Raises `ConfigError` for keys that name the directory of a single run."""
    if config.resume is not None:
        raise ConfigError(
            f"resume: a grid starts new runs: expected no resume beside -m, received {config.resume}; each of a "
            f"grid's runs is resumed by itself, with {command('train')} resume=RUN"
        )
    if config.run_dir is not None:
        raise ConfigError(
            f"run_dir: it would be the same for every job of a grid: expected hydra.sweep.dir=PATH, which gets a "
            f"directory for each, received run_dir={config.run_dir}"
        )


def _check_job(config: DictConfig, overrides: Sequence[str], sources: set[str]) -> None:
    """Raises `ConfigError` for what the job itself would refuse; `sources` holds the data already found."""
    from cnnlab.components import Trust
    from cnnlab.config.check import check_config
    from cnnlab.run.train_state import check_machine

    with hydra_config(config):
        task = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        content = resolved(compose_job(task, overrides))
    trusted_names(content["trust"])
    plan = check_config(content, Trust())
    if plan.settings.max_steps != 0:
        check_machine(plan)
    if plan.settings.max_steps != 0 and repr(content["data"]) not in sources:
        plan.source.check()  # here, once: where images have to be downloaded, the jobs would all do it
        sources.add(repr(content["data"]))


def _show(results: Sequence[Result], folder: Path) -> None:
    """Prints the table, the best job and where the results are."""
    print()
    print_table(render_results(results, width()))
    best = best_result(results)
    if best:
        print(f"* best by {best.monitor}: {best.directory}")
    write_csv(results, folder / "sweep.csv")
    print(f"table: {folder / 'sweep.csv'}", flush=True)
