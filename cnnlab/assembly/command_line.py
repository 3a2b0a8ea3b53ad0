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
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cnnlab.assembly.compose import CONFIGS, allow_constructor_arguments, compose_job, explain
from cnnlab.runtime.errors import ConfigError, Interrupted, TrainingError

USER_MISTAKE, FAILURE = 2, 1
USER_MISTAKES = (ConfigError, HydraException, OmegaConfBaseException)
FULL_ERROR = "HYDRA_FULL_ERROR"


class _JobFailedError(BaseException):
    """Carries a job's error past Hydra, which would print a line of its own about any `Exception`."""


def train() -> None:
    """`python train.py …`: trains, resumes or, with `-m`, sweeps."""
    _command("train", _train_job)


def evaluate() -> None:
    """`python evaluate.py run=RUN …`."""
    _command("evaluate", _evaluate_job)


def _train_job(composed: DictConfig) -> None:
    job = HydraConfig.get()
    overrides = list(job.overrides.task)
    config = compose_job(composed, overrides)
    from cnnlab.assembly.training import run_training

    run_training(config, overrides, f"{job.sweep.dir}/{job.job.num:03d}" if _sweeping() else None)


def _evaluate_job(composed: DictConfig) -> None:
    from cnnlab.assembly.evaluating import run_evaluation

    run_evaluation(composed)


def _sweeping() -> bool:
    return HydraConfig.get().mode is RunMode.MULTIRUN


def _command(config_name: str, job: Callable[[DictConfig], None]) -> None:
    """Runs a Hydra application; exits 2 for a user's mistake, 1 for a failure, 128 + n after signal n."""
    show_traceback = os.environ.get(FULL_ERROR) == "1"
    os.environ[FULL_ERROR] = "1"  # makes Hydra raise instead of print and exit
    failures: list[Exception] = []

    def task(composed: DictConfig) -> None:
        if _sweeping():
            number = HydraConfig.get().job.num
            print(f"\njob {number}: {' '.join(HydraConfig.get().overrides.task)}", flush=True)
        if not show_traceback:  # not for the children of a job
            del os.environ[FULL_ERROR]
        try:
            job(composed)
        except Exception as error:
            failures.append(error)
            if not _sweeping():
                raise _JobFailedError from error
            print(f"job {HydraConfig.get().job.num} failed: ", end="", file=sys.stderr)
            _tell(error, show_traceback)  # and on to the next job
        finally:
            os.environ[FULL_ERROR] = "1"

    sys.path.append(os.getcwd())  # the user's own classes lie where the command is given
    sys.argv[1:] = allow_constructor_arguments(sys.argv[1:])
    application: Any = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(task)
    try:
        application()
    except _JobFailedError:
        _tell(failures[0], show_traceback)
    except (HydraException, OmegaConfBaseException) as error:
        failures.append(error)
        _tell(error, show_traceback)
    except Interrupted as interruption:
        sys.exit(interruption.exit_status)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    finally:
        if not show_traceback:
            os.environ.pop(FULL_ERROR, None)
    if failures:
        sys.exit(USER_MISTAKE if isinstance(failures[0], USER_MISTAKES) else FAILURE)


def _tell(error: Exception, show_traceback: bool) -> None:
    """A sentence for what a person can mend; a traceback for what only we can, or where it is asked for."""
    if show_traceback or not isinstance(error, (*USER_MISTAKES, TrainingError)):
        traceback.print_exception(error)
    composing = isinstance(error, HydraException | OmegaConfBaseException)
    print(f"error: {explain(error) if composing else error}", file=sys.stderr, flush=True)
