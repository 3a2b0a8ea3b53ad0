"""The launcher of `python train.py -m …`: each job in a fresh process, some at a time."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from cnnlab.config.full_error import environment_of_jobs
from cnnlab.config.hydra_internals import command_line_parser
from cnnlab.config.programs import given
from cnnlab.config.sections import is_quiet
from cnnlab.run.files import RunDirectory
from cnnlab.runtime.checks import integer
from cnnlab.runtime.errors import Interrupted, TrainingError
from cnnlab.runtime.terminal import is_live, print_wrapped, silenced, wrapped
from cnnlab.sweep.axes import Job
from cnnlab.sweep.processes import THREADS, Ended, Processes, Task, gpus_to_share, shared_threads
from cnnlab.sweep.results import Result, read_result, reported_error
from cnnlab.sweep.saved_sweep import given_to_hydra
from cnnlab.sweep.trial import environment_override
from cnnlab.sweep.worker import starter

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

A_DAY = 24 * 3600.0  # seconds: what a job takes is averaged over all of them
NOT_FOR_JOBS = ("hydra.mode", "hydra.launcher", "hydra.sweeper", "hydra/launcher", "hydra/sweeper")
FLAGS = {"config-path": "config_path", "config-name": "config_name", "config-dir": "config_dir"}


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
        results: dict[int, Result] = {}
        with silenced(is_quiet(self.config.get("observers"))):
            stopped_by = self.run(jobs, len(jobs), folder, lambda result: results.update({result.job.number: result}))
        if stopped_by is not None:
            raise Interrupted(stopped_by)
        return [_job_return(results[job.number]) for job in jobs]

    def run(
        self, jobs: Iterable[Job | None], count: int, folder: Path, ended: Callable[[Result], None], done: int = 0
    ) -> int | None:
        """Runs jobs as they come, of `count` in all, `done` of them before. Returns the signal that stopped it.

        `ended` gets each result. None in place of a job means that there is none yet.
        """
        from rich.console import Console

        processes = self.processes(count - done)
        console = Console(highlight=False, soft_wrap=True)
        started: dict[int, Job] = {}

        def tasks() -> Iterator[tuple[int, Task] | None]:
            for job in jobs:
                if job is not None:
                    started[job.number] = job
                yield None if job is None else (job.number, self._task(job, folder))

        with starter(processes.environment, count - done) as start, _progress(console) as progress:
            task = progress.add_task("", total=count, completed=done, running=0)

            def report(number: int, how: Ended) -> None:
                result = _ended(started[number], folder, how)
                ended(result)
                progress.advance(task)
                left = "" if is_live(sys.stdout) else time_left(progress)
                console.print(wrapped(f"{result}{left}", console.file), markup=False)

            processes.run(tasks(), report, lambda: progress.update(task, running=len(processes.running)), start)
        return processes.stopped_by

    def processes(self, jobs: int) -> Processes:
        """Prints how many run at a time, and how the cores and GPUs are shared."""
        import torch  # it is there by now: the configs were checked

        from cnnlab.runtime.device import cpu_count

        gpus = gpus_to_share(os.environ, torch.cuda.device_count())
        at_once = max(1, min(self.n_jobs or len(gpus) or 1, jobs))
        threads = shared_threads(os.environ, cpu_count(), at_once)
        each = f", OMP_NUM_THREADS={threads[THREADS[0]]}" if threads else ""
        on = f", on GPUs {','.join(gpus)}" if gpus else ""
        print_wrapped(f"{at_once} at a time{each}{on}", flush=True)
        return Processes(at_once, gpus, {**environment_of_jobs(), **threads, "PYTHONUNBUFFERED": "1"})

    def _task(self, job: Job, folder: Path) -> Task:
        """The command of one job: this interpreter and import path, the user's flags and Hydra's overrides."""
        program = f"import sys; sys.path[:] = {sys.path!r}; from cnnlab.cli import train; train()"
        hydra = [str(one) for one in self.config.hydra.overrides.hydra]
        command = [
            *(sys.executable, "-c", program),
            *(f"--{flag}={value}" for flag, value in options().items()),
            *(one for one in hydra if not one.lstrip("+~").startswith(NOT_FOR_JOBS)),
            *overrides_of(job, folder),
        ]
        return Task(command, folder / f"{job.name}.log")


def options() -> dict[str, str]:
    """The options of this command that its jobs need, too, by their flags."""
    given = vars(command_line_parser().parse_args())
    return {flag: str(given[name]) for flag, name in FLAGS.items() if given[name] is not None}


def overrides_of(job: Job, folder: Path) -> list[str]:
    """A job's overrides with its directory: one that is there already is continued."""
    directory = folder / job.name
    resume = ["resume=auto"] if directory.exists() else []
    trial = [environment_override(folder, job.number)] if job.is_trial else []
    return [*job.overrides, given_to_hydra("run_dir", directory), *resume, *trial]


def _progress(console: "Console") -> "Progress":
    """One line under those of the jobs, where there is a terminal that redraws it."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return Progress(
        BarColumn(bar_width=30),
        TextColumn("{task.completed:.0f} of {task.total:.0f} done, {task.fields[running]} running,"),
        TimeElapsedColumn(),
        TextColumn("gone,"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        speed_estimate_period=A_DAY,
        transient=True,
        disable=not is_live(sys.stdout),
    )


def time_left(progress: "Progress") -> str:
    """How many jobs are done and about how long the others take, for a log; nothing after the last."""
    (task,) = progress.tasks
    seconds = task.time_remaining
    if task.finished or seconds is None:
        return ""
    return f"  ({task.completed:.0f} of {task.total:.0f} done, about {timedelta(seconds=round(seconds))} left)"


def _ended(job: Job, folder: Path, how: Ended) -> Result:
    """The result of a process of this launcher."""
    directory, log = folder / job.name, folder / f"{job.name}.log"
    status, error = how.status, how.remark
    if status == "failed":
        error = reported_error(log) or f"{how.remark}, see {log}"
    elif status == "interrupted" and directory.is_dir():
        error = f"{how.remark}; {given('resume', directory)} continues it"
    elif status == "completed":
        status = status_of(directory)
    return read_result(job, status, directory, how.seconds, error)


def status_of(directory: Path) -> str:
    """How a process that succeeded ended its run; without a summary it had nothing to train."""
    return str(RunDirectory(directory).read_json("summary.json").get("status", "completed"))


def _job_return(result: Result) -> JobReturn:
    returned = JobReturn(overrides=result.job.overrides)
    returned.status = JobStatus.COMPLETED if result.status == "completed" else JobStatus.FAILED
    returned.return_value = None if result.status == "completed" else TrainingError(result.error)
    return returned
