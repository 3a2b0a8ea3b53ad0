"""A search that is run: trials of an Optuna study, each a job, by one process or several."""

import contextlib
import math
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnlab.run.files import RunDirectory
from cnnlab.runtime.errors import listing
from cnnlab.runtime.terminal import print_wrapped
from cnnlab.sweep import optuna_internals as internals
from cnnlab.sweep.axes import Job
from cnnlab.sweep.job_checks import JobChecks
from cnnlab.sweep.launcher import status_of
from cnnlab.sweep.objectives import Objective
from cnnlab.sweep.results import Result, read_result
from cnnlab.sweep.settings import SweepSettings
from cnnlab.sweep.space import Space
from cnnlab.sweep.study import build_sampler, quiet
from cnnlab.sweep.trial import COST

if TYPE_CHECKING:
    import optuna

WORKERS, CLAIMS = "workers", ".claims.lock"
OUTCOME, OWNER, SURPLUS = "outcome", "owner", "surplus"  # attributes of trials
ENDED = ("completed", "pruned", "failed")


class Workers:
    """The processes that work in a sweep's directory: each holds a lock, which the system releases when it ends."""

    def __init__(self, folder: Path) -> None:
        from filelock import FileLock

        self.folder = folder / WORKERS
        self.folder.mkdir(exist_ok=True)
        self.name = secrets.token_hex(4)
        self._own = FileLock(self.folder / self.name, thread_local=False)
        self._own.acquire()

    def is_alive(self, name: str) -> bool:
        from filelock import FileLock, Timeout

        if name == self.name:
            return True
        path = self.folder / Path(name).name
        if not path.exists():
            return False
        try:
            with FileLock(path).acquire(blocking=False):
                return False
        except Timeout:
            return True

    def leave(self) -> None:
        self._own.release()
        with contextlib.suppress(OSError):
            (self.folder / self.name).unlink(missing_ok=True)


class SearchRun:
    """The trials of a study, asked for one at a time. `sweep` names this directory's sweep among those of a storage.

    `first` holds the values of the config as it stands, which the first trial takes.
    """

    def __init__(
        self,
        study: "optuna.Study",
        sweep: str,
        folder: Path,
        settings: SweepSettings,
        space: Space,
        objectives: Sequence[Objective],
        fixed: Sequence[str],
        first: Mapping[str, Any],
        checks: JobChecks,
    ) -> None:
        from filelock import FileLock

        assert settings.n_trials is not None
        self.study = study
        self.sweep = sweep
        self.folder = folder
        self.settings = settings
        self.count = settings.n_trials
        self.space = space
        self.objectives = objectives
        self.fixed = fixed
        self.first = first
        self.checks = checks
        self.workers = Workers(folder)
        self._claims = FileLock(folder / CLAIMS, thread_local=False)
        self._started = time.monotonic()
        self._interrupted: dict[int, Result] = {}

    # trials

    @property
    def done(self) -> int:
        return sum(trial.state.is_finished() for trial in self._trials())

    @quiet
    def _trials(self) -> list["optuna.trial.FrozenTrial"]:
        trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if not trial.user_attrs.get(SURPLUS)][: self.count]

    def jobs(self) -> Iterator[Job | None]:
        """Trials that a killed process left, then new ones; None while only a run that outlived its sweep is left."""
        while True:
            with self._claims:
                trial, may_come = self._left_behind()
                if trial is None and not self._is_late():
                    trial = self._new()
            if trial is None and not may_come:
                return
            if trial is None:
                yield None
                continue
            job = self._job(trial)
            result = self._known_result(trial, job)
            if result is None:
                yield job
            else:
                self.record(result)
                print_wrapped(result, flush=True)

    def _is_late(self) -> bool:
        timeout = self.settings.timeout
        return timeout is not None and time.monotonic() - self._started > timeout

    def _left_behind(self) -> tuple["optuna.trial.FrozenTrial | None", bool]:
        """A trial whose process was killed, now ours, and whether there is one whose run has not ended yet."""
        may_come = False
        for trial in self._trials():
            owner = trial.user_attrs.get(OWNER) or {}
            if trial.state.is_finished() or owner.get("sweep") != self.sweep or self.workers.is_alive(owner["worker"]):
                continue
            trial = self._complete(trial.number)
            if RunDirectory(self.folder / self._job(trial).name).is_locked():
                may_come = True
                continue
            internals.set_attribute(self.study, trial.number, OWNER, self._owner())
            return trial, False
        return None, may_come

    def _owner(self) -> dict[str, str]:
        return {"sweep": self.sweep, "worker": self.workers.name}

    @quiet
    def _new(self) -> "optuna.trial.FrozenTrial | None":
        """The next trial, owned by this process from its first moment; None where there are enough."""
        from optuna.trial import TrialState

        if len(self._trials()) >= self.count:
            return None
        number = internals.new_trial(self.study, {OWNER: self._owner()})
        if number not in [trial.number for trial in self._trials()]:  # another machine was faster
            internals.set_attribute(self.study, number, SURPLUS, True)
            self.study.tell(number, state=TrialState.FAIL)
            return None
        return self._complete(number)

    @quiet
    def _complete(self, number: int) -> "optuna.trial.FrozenTrial":
        """A trial with a value for each key of the space: those that it has stay."""
        from cnnlab.runtime.randomness import derive

        seed = derive(self.settings.seed, "trial", number) % 2**32
        self.study.sampler = build_sampler(self.settings, seed, len(self.objectives) > 1)
        distributions = {key: dimension.distribution for key, dimension in self.space.items()}
        return internals.suggest(self.study, number, distributions, self.first if number == 0 else {})

    def _job(self, trial: "optuna.trial.FrozenTrial") -> Job:
        known = {key: one for key, one in self.space.items() if key in trial.params}  # all, but for a kill between two
        texts = {key: one.value_text(trial.params[key]) for key, one in known.items()}
        own = [self.space[key].override(text) for key, text in texts.items()]
        return Job(trial.number, (*self.fixed, *own), texts, is_trial=True)

    # results

    def _known_result(self, trial: "optuna.trial.FrozenTrial", job: Job) -> Result | None:
        """The result of a trial that needs no process: its config is refused, or its run ended before a kill."""
        place = self.folder / job.name
        if OUTCOME in trial.user_attrs:
            return self._read(trial, job)
        if not place.is_dir():
            refusal = self.checks.refusal(job)
            if refusal is not None:
                return Result(job, "failed", error=refusal)
            beyond = self.checks.beyond(job, self.settings.budget)
            return None if beyond is None else Result(job, "pruned", error=beyond)
        status = status_of(place) if (place / "summary.json").is_file() else ""
        if status not in ENDED:
            return None
        return read_result(job, status, place)

    @quiet
    def record(self, result: Result) -> None:
        """Tells the study. A trial that was interrupted stays open, and continues when the sweep is resumed."""
        from optuna.trial import TrialState

        number = result.job.number
        if result.status not in ENDED:
            self._interrupted[number] = result
            return
        result = self._with_cost(result)
        values = [float(math.nan if (value := result.value(by.name)) is None else value) for by in self.objectives]
        if result.status == "completed" and not all(map(math.isfinite, values)):
            result = _failed(result, f"expected finite numbers for {listing(self.settings.metric)}, received {values}")
        internals.set_attribute(self.study, number, OUTCOME, _outcome(result))
        if result.status == "completed":
            self.study.tell(number, values, skip_if_finished=True)
        else:
            state = TrialState.PRUNED if result.status == "pruned" else TrialState.FAIL
            self.study.tell(number, state=state, skip_if_finished=True)

    def _with_cost(self, result: Result) -> Result:
        """With what the trial measured of its step, which the study keeps."""
        cost = internals.stored_trial(self.study, result.job.number).user_attrs.get(COST, {})
        return replace(result, constants={**result.constants, **cost}) if cost else result

    def results(self) -> list[Result]:
        """One for each trial so far, in their order."""
        return [self._read(trial, self._job(trial)) for trial in self._trials()]

    def _read(self, trial: "optuna.trial.FrozenTrial", job: Job) -> Result:
        place = self.folder / job.name
        outcome = trial.user_attrs.get(OUTCOME)
        if outcome is None:
            found = self._interrupted.get(trial.number)
            owner = trial.user_attrs.get(OWNER) or {}
            alive = owner.get("sweep") != self.sweep or self.workers.is_alive(owner["worker"])
            return found or read_result(job, "running" if alive else "interrupted", place)
        if not place.is_dir() and outcome["directory"]:
            place = Path(outcome["directory"])
        if place.is_dir():
            result = read_result(job, outcome["status"], place, outcome["seconds"], outcome["error"])
            return self._with_cost(result)
        return Result(  # of another machine
            job,
            outcome["status"],
            outcome["seconds"],
            outcome["error"],
            Path(outcome["directory"]) if outcome["directory"] else None,
            outcome["monitor"],
            outcome["metrics"],
            outcome["lower_is_better"],
            outcome["constants"],
        )

    def is_running(self) -> bool:
        """Whether some process runs a trial."""
        return any(result.status == "running" for result in self.results())

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Held by one process of this directory at a time."""
        with self._claims:
            yield

    def close(self) -> None:
        self.workers.leave()


def _failed(result: Result, error: str) -> Result:
    return Result(result.job, "failed", result.seconds, error, result.directory)


def _outcome(result: Result) -> dict[str, Any]:
    """What a storage holds of a result: plain JSON."""
    return {
        "status": result.status,
        "seconds": result.seconds,
        "error": result.error,
        "directory": None if result.directory is None else str(result.directory),
        "monitor": result.monitor,
        "metrics": dict(result.metrics),
        "lower_is_better": result.lower_is_better,
        "constants": dict(result.constants),
    }
