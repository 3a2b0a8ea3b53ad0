"""A run that is a trial: its own process asks the study whether it is hopeless."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cnnlab.sweep.optuna_internals import open_trial, set_attribute, stored_trial
from cnnlab.sweep.saved_sweep import SavedSweep, quoted
from cnnlab.sweep.settings import MEASURED

if TYPE_CHECKING:
    import optuna

TRIAL = "CNNLAB_TRIAL"  # NUMBER:SWEEP, in the environment of a job
COST = "cost"  # attribute of a trial: what its training step takes
STORAGE = "CNNLAB_SWEEP_STORAGE"  # its URL, with the password that is written nowhere


def environment_override(folder: Path, number: int) -> str:
    """The override by which Hydra tells a job, by whatever launcher, that it is a trial."""
    return f"+hydra.job.env_set.{TRIAL}={quoted(f'{number}:{folder}')}"


def running_trial(environment: Mapping[str, str]) -> "RunningTrial | None":
    """The trial that this process is, if it is one."""
    number, separator, folder = environment.get(TRIAL, "").partition(":")
    return RunningTrial(Path(folder), int(number)) if separator else None


class RunningTrial:
    """Judges a run by the metric and the pruner of its sweep."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder = folder
        self.number = number
        self.settings = SavedSweep.read(folder).sweep
        self._trial: optuna.Trial | None = None

    def is_hopeless(self, validation: int, values: Mapping[str, float]) -> bool:
        """Whether the pruner ends the run after so many validations, the last of which measured `values`."""
        if self.settings["pruner"] is None:
            return False
        from cnnlab.sweep.study import quiet

        return quiet(self._judge)(validation, values)

    def beyond(self, measure: Callable[[], Mapping[str, float]]) -> str | None:
        """A sentence where a training step takes more than the sweep's budget; measured once, and kept in the study."""
        limits = {name: limit for name in MEASURED if (limit := self.settings["budget"].get(name)) is not None}
        if not limits and not set(MEASURED) & set(self.settings["metric"]):
            return None
        from cnnlab.sweep.study import quiet

        cost = quiet(self._cost)(measure)
        for name, limit in limits.items():
            if cost[name] > limit:
                unit = "ms" if name == "ms" else "MB"
                return f"beyond sweep.budget.{name}={limit:,}: a training step takes {cost[name]:,.4g} {unit}"
        return None

    def _cost(self, measure: Callable[[], Mapping[str, float]]) -> Mapping[str, float]:
        study = self._open().study
        recorded = stored_trial(study, self.number).user_attrs.get(COST)
        if recorded is None:
            recorded = dict(measure())
            set_attribute(study, self.number, COST, recorded)
        return recorded

    def _judge(self, validation: int, values: Mapping[str, float]) -> bool:
        trial = self._open()
        if (
            validation not in stored_trial(trial.study, self.number).intermediate_values
        ):  # a resumed run measures again what was not yet saved
            trial.report(values[self.settings["metric"][0]], validation)
        return trial.should_prune()

    def _open(self) -> "optuna.Trial":
        """The trial in the study, looked up once."""
        if self._trial is None:
            from cnnlab.sweep.study import build_pruner, join_study, open_storage

            in_folder = self.settings["storage"] is None
            storage = open_storage(None if in_folder else os.environ.get(STORAGE), self.folder)
            study = join_study(storage, self.settings["study"], build_pruner(self.settings["pruner"]))
            self._trial = open_trial(study, self.number)
        return self._trial
