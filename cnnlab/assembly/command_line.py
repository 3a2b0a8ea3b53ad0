"""The two commands. Hydra composes; errors are caught here, once, and told in sentences."""

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cnnlab.assembly.compose import CONFIGS, allow_constructor_arguments, compose_job, explain
from cnnlab.runtime.errors import ConfigError, Interrupted, TrainingError

USER_MISTAKE, FAILURE = 2, 1
FULL_ERROR = "HYDRA_FULL_ERROR"


def train() -> None:
    """`python train.py …`: trains, resumes or, with `-m`, sweeps."""
    _command("train", _train_job)


def evaluate() -> None:
    """`python evaluate.py run=RUN …`."""
    _command("evaluate", _evaluate_job)


def _train_job(composed: DictConfig) -> None:
    job = HydraConfig.get()
    overrides = list(job.overrides.task)
    sweep = job.mode is RunMode.MULTIRUN
    if sweep:
        print(f"\njob {job.job.num}: {' '.join(overrides)}", flush=True)
    try:
        config = compose_job(composed, overrides)
        from cnnlab.assembly.training import run_training

        run_training(config, overrides, f"{job.sweep.dir}/{job.job.num:03d}" if sweep else None)
    except (ConfigError, TrainingError) as error:
        if sweep:  # the launcher raises the first of all failures only when every job is done
            print(f"job {job.job.num} failed: {error}", file=sys.stderr, flush=True)
        raise


def _evaluate_job(composed: DictConfig) -> None:
    from cnnlab.assembly.evaluating import run_evaluation

    run_evaluation(composed)


def _command(config_name: str, job: Callable[[DictConfig], None]) -> None:
    """Runs a Hydra application; exits 2 for a user's mistake, 1 for a failure, as the job says otherwise."""
    show_traceback = os.environ.get(FULL_ERROR) == "1"
    os.environ[FULL_ERROR] = "1"  # makes Hydra raise instead of print and exit

    def task(composed: DictConfig) -> None:
        if not show_traceback:  # not for the children of a job
            del os.environ[FULL_ERROR]
        try:
            job(composed)
        finally:
            os.environ[FULL_ERROR] = "1"

    sys.argv[1:] = allow_constructor_arguments(sys.argv[1:])
    application: Any = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(task)
    try:
        application()
    except (CompactHydraException, HydraException, OmegaConfBaseException) as error:
        _exit(USER_MISTAKE, explain(error), show_traceback)
    except ConfigError as error:
        _exit(USER_MISTAKE, str(error), show_traceback)
    except TrainingError as error:
        _exit(FAILURE, str(error), show_traceback)
    except Interrupted as interruption:
        sys.exit(interruption.exit_status)


def _exit(code: int, message: str, show_traceback: bool) -> NoReturn:
    if show_traceback:
        traceback.print_exc()
    print(f"error: {message}" if "\n" not in message else f"errors:\n{message}", file=sys.stderr)
    sys.exit(code)
