"""The two commands. Hydra composes; errors are caught here, once, and told in sentences."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cnnlab.config.compose import CONFIGS, allow_constructor_arguments, compose_job
from cnnlab.config.explain import COMPOSITION_ERRORS, explain
from cnnlab.config.full_error import FULL_ERROR, show_traceback
from cnnlab.config.saved_config import resolved
from cnnlab.runtime.errors import ConfigError, Interrupted, TrainingError

USER_MISTAKE, FAILURE = 2, 1
USER_MISTAKES = (ConfigError, HydraException, OmegaConfBaseException)


class _JobFailedError(BaseException):
    """Carries a job's error past Hydra, which would print a line of its own about any `Exception`."""


def train() -> None:
    """`python train.py …`: trains, resumes or, with `-m`, sweeps."""
    _command("train", _train_job)


def evaluate() -> None:
    """`python evaluate.py run=RUN …`."""
    _command("evaluate", _evaluate_job)


def _train_job(composed: DictConfig) -> None:
    overrides = _task_overrides()
    config = compose_job(composed, overrides)
    from cnnlab.config.run_config import RunConfig
    from cnnlab.run.training import run_training

    run_training(RunConfig(config, tuple(overrides)))


def _task_overrides() -> list[str]:
    """This job's overrides, their interpolations unresolved."""
    overrides = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    assert isinstance(overrides, list)
    return [str(override) for override in overrides]


def _evaluate_job(composed: DictConfig) -> None:
    from cnnlab.inference.evaluate_command import run_evaluation

    run_evaluation(resolved(composed))


def _command(config_name: str, job: Callable[[DictConfig], None]) -> None:
    """Runs a Hydra application; exits 2 for a user's mistake, 1 for a failure, 128 + n after signal n."""
    show_traceback.set(os.environ.get(FULL_ERROR) == "1")
    os.environ[FULL_ERROR] = "1"  # makes Hydra raise instead of print and exit
    failures: list[Exception] = []

    def task(composed: DictConfig) -> None:
        if not show_traceback.get():  # not for the children of a job
            del os.environ[FULL_ERROR]
        try:
            job(composed)
        except Exception as error:
            if HydraConfig.get().mode is RunMode.MULTIRUN:  # in this process, one job after another: on to the next
                _print_error(error)
                raise
            failures.append(error)
            raise _JobFailedError from error
        finally:
            os.environ[FULL_ERROR] = "1"

    sys.path.append(os.getcwd())  # the user's own classes lie where the command is given
    flags = [argument for argument in sys.argv[1:] if argument in ("-m", "--multirun")]
    rest = [argument for argument in sys.argv[1:] if argument not in flags]
    application: Any = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(task)
    try:
        sys.argv[1:] = flags + allow_constructor_arguments(rest)  # argparse takes no override behind a flag
        application()
    except _JobFailedError:
        if isinstance(failures[0], BrokenPipeError):  # whoever read our words has left, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)
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
    """A sentence for what a person can mend; a traceback for what only we can, or where it is asked for."""
    if show_traceback.get() or not isinstance(error, (*USER_MISTAKES, TrainingError)):
        traceback.print_exception(error)
    print(f"error: {explain(error, CONFIGS)}", file=sys.stderr, flush=True)
