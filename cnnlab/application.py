"""A command as a Hydra application: Hydra composes, a job runs, and errors are caught here, once."""

import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cnnlab.config.command_line import CommandLine
from cnnlab.config.compose import CONFIGS, allow_constructor_arguments, as_given, compose_job
from cnnlab.config.explain import COMPOSITION_ERRORS, explain
from cnnlab.config.full_error import FULL_ERROR, show_traceback
from cnnlab.config.programs import command
from cnnlab.config.run_config import RunConfig
from cnnlab.config.saved_config import resolved
from cnnlab.config.sections import is_quiet
from cnnlab.runtime.errors import ConfigError, Interrupted, TrainingError, did_you_mean, listing
from cnnlab.runtime.interrupts import exit_at_interrupt
from cnnlab.runtime.ranks import is_first, world_size
from cnnlab.runtime.terminal import waiting, wrapped
from cnnlab.sweep.saved_sweep import resumed_sweep, without_password
from cnnlab.sweep.trial import running_trial
from cnnlab.version import __version__

USER_MISTAKE, FAILURE = 2, 1
BROKEN_PIPE = 128 + 13  # SIGPIPE, which Windows does not have
EXIT_STATUSES = {
    0: "done",
    FAILURE: "a failure, such as a full disk or a non-finite loss; of a grid: a job did not complete",
    USER_MISTAKE: "a mistake in the command or its config; nothing was written",
    128 + signal.SIGINT: "Ctrl-C: the run has saved and can be resumed",
    BROKEN_PIPE: "whoever read the output has left, as `| head` does",
    128 + signal.SIGTERM: "SIGTERM: the run has saved and can be resumed",
    128 + getattr(signal, "SIGUSR1", 10): "SIGUSR1, as batch systems send it: the same",  # Windows has none
}
USER_MISTAKES = (ConfigError, HydraException, OmegaConfBaseException)


Task = Callable[[DictConfig], None]


class _JobFailedError(BaseException):
    """Carries a job's error past Hydra, which would print a line of its own about any `Exception`."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


SHOW = ("--cfg", "-c", "--resolve", "--package", "-p")


def run_command(name: str) -> None:
    """Runs `train` or `evaluate`; exits 2 for a user's mistake, 1 for a failure, 128 + n after signal n."""
    line = CommandLine.read(sys.argv[1:])
    if line.has("--version"):
        from importlib.metadata import version  # what no other command waits for

        print(f"cnnlab {__version__}, torch {version('torch')}")
        return
    if world_size() > 1 and line.has("-m", "--multirun"):
        reason = f"-m: a sweep starts processes of its own, and torchrun has started {world_size()} already"
        _print_error(ConfigError(f"{reason}: expected {command(name)} -m … without torchrun, or one run"))
        sys.exit(USER_MISTAKE)
    task = TASKS[name]
    if line.value("--cfg", "-c") == "job" and not line.has("-m", "--multirun"):
        task, line = _show_task(name, line), line.without(*SHOW)
    _run_application(name, task, line)


def _train_job(composed: DictConfig) -> None:
    overrides = _task_overrides()
    _check_no_sweep(overrides)
    config = RunConfig(compose_job(composed, overrides), tuple(overrides))
    with exit_at_interrupt(), waiting("starting", quiet=is_quiet(config.values.get("observers")) or not is_first()):
        from cnnlab.run.training import run_training
    run_training(config, running_trial(os.environ))


def _check_no_sweep(overrides: Sequence[str]) -> None:
    """Raises `ConfigError` for keys of a sweep in a command that makes one run."""
    for override in overrides:
        if as_given(override).partition("=")[0].partition(".")[0] == "sweep":
            raise ConfigError(
                f"sweep: a single run has none: expected -m beside it, as in {command('train')} -m sweep=tpe …, "
                f"received {as_given(override)}"
            )


def _task_overrides() -> list[str]:
    """This job's overrides, their interpolations unresolved."""
    overrides = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    assert isinstance(overrides, list)
    return [str(override) for override in overrides]


def _evaluate_job(composed: DictConfig) -> None:
    with exit_at_interrupt(), waiting("starting", quiet=not is_first()):
        from cnnlab.inference.evaluate_command import run_evaluation
    if composed.get("compare") and OmegaConf.is_missing(composed, "run"):
        composed.run = None
    run_evaluation(resolved(composed))


def _show_job(name: str, line: CommandLine, composed: DictConfig) -> None:
    """Prints the config as the job would have it; that of a run with every key that can be set."""
    config = composed
    if name == "train":
        config = compose_job(composed, _task_overrides())
        sweep = composed.get("sweep")
        with exit_at_interrupt():
            from cnnlab.config.defaults import with_defaults
        config = with_defaults(config)
        if config.get("resume") is None:
            config.sweep = sweep
    shown = _select(config, line.value("--package", "-p"))
    is_section = OmegaConf.is_config(shown)
    print(OmegaConf.to_yaml(shown, resolve=line.has("--resolve")).rstrip() if is_section else shown)


def _select(config: DictConfig, package: str | None) -> Any:
    """The section or the value that `--package` names. Raises `ConfigError`."""
    if package is None:
        return config
    missing = object()
    found = OmegaConf.select(config, package, default=missing)
    if found is missing:
        near = did_you_mean(package, map(str, config))
        raise ConfigError(f"--package: there is no {package!r};{near} expected one of {listing(config)}")
    return found


# functions of this module: a launcher may pickle them for another machine


def _train_task(composed: DictConfig) -> None:
    _run_job(_train_job, composed)


def _evaluate_task(composed: DictConfig) -> None:
    _run_job(_evaluate_job, composed)


def _show_task(name: str, line: CommandLine) -> Task:
    def task(composed: DictConfig) -> None:
        _run_job(partial(_show_job, name, line), composed)

    return task


TASKS: dict[str, Task] = {"train": _train_task, "evaluate": _evaluate_task}


def _run_job(job: Task, composed: DictConfig) -> None:
    """A job's error goes past Hydra; where the next job follows in this process, it is printed here."""
    if not show_traceback.get():  # not for the children of a job
        os.environ.pop(FULL_ERROR, None)
    try:
        job(composed)
    except Exception as error:
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            _print_error(error)
            raise
        raise _JobFailedError(error) from error
    finally:
        os.environ[FULL_ERROR] = "1"


def _run_application(config_name: str, task: Task, line: CommandLine) -> None:
    show_traceback.set(os.environ.get(FULL_ERROR) == "1")
    os.environ[FULL_ERROR] = "1"  # makes Hydra raise instead of print and exit
    failures: list[Exception] = []
    if isinstance(sys.stdout, io.TextIOWrapper):
        # errors as stderr has them: names of files need not be UTF-8; a pipe on Windows would not be UTF-8 at all
        sys.stdout.reconfigure(encoding="utf-8" if os.name == "nt" else None, errors="backslashreplace")
    sys.path.append(os.getcwd())  # the user's own classes lie where the command is given
    application: Any = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(task)
    try:
        if config_name == "train":
            line = resumed_sweep(line)
        overrides = tuple(allow_constructor_arguments(line.overrides))
        sys.argv[1:] = replace(line, overrides=overrides).arguments()
        application()
    except _JobFailedError as failed:
        failures.append(failed.error)
        if isinstance(failures[0], BrokenPipeError):  # the reader of our output has left, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(BROKEN_PIPE)
        _print_error(failures[0])
    except (*COMPOSITION_ERRORS, TrainingError) as error:
        known = isinstance(error, ConfigError | TrainingError)
        failures.append(error if known else ConfigError(explain(error, CONFIGS)))
        _print_error(failures[-1])
    except Interrupted as interruption:
        sys.exit(interruption.exit_status)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    finally:
        if not show_traceback.get():
            os.environ.pop(FULL_ERROR, None)
    if failures:
        sys.exit(USER_MISTAKE if isinstance(failures[0], USER_MISTAKES) else FAILURE)


def _print_error(error: Exception) -> None:
    """One message for a user's mistake; a traceback for ours, or with HYDRA_FULL_ERROR=1. One rank prints it."""
    if world_size() > 1:
        from cnnlab.runtime.distributed import is_first_to_report  # imports torch

        if not is_first_to_report():
            return
    if show_traceback.get() or not isinstance(error, (*USER_MISTAKES, TrainingError)):
        traceback.print_exception(error)
    text = wrapped(f"error: {without_password(explain(error, CONFIGS))}", sys.stderr)
    print(text, file=sys.stderr, flush=True)
