"""All that is Optuna's: storages, samplers, pruners, and a study of trials that survives any kill.

Optuna is imported in functions alone: whoever does not search needs none of it.
"""

import functools
import importlib.util
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from cnnlab.runtime.errors import Complaints, ConfigError, first_line
from cnnlab.sweep.saved_sweep import without_password
from cnnlab.sweep.settings import SweepSettings

if TYPE_CHECKING:
    import optuna

    from cnnlab.components import Component

JOURNAL = "study.jsonl"
PATIENCE = 30  # seconds, with a database that other processes use
_AT_ONCE = re.compile("already exists|is locked|unique|duplicate", re.IGNORECASE)  # two processes make the tables
Function = TypeVar("Function", bound=Callable[..., Any])


def check_optuna() -> None:
    """Raises `ConfigError` where Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("sweep: a search needs Optuna: pip install 'cnnlab[sweep]'")


def quiet(function: Function) -> Function:
    """Optuna's progress and its warnings about experimental features are not for our users."""

    @functools.wraps(function)
    def wrapper(*arguments: Any, **named: Any) -> Any:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return function(*arguments, **named)

    return cast(Function, wrapper)


# storages


def open_storage(url: str | None, folder: Path) -> "optuna.storages.BaseStorage":
    """The storage at an URL, or the journal in the sweep's directory. Raises `ConfigError` where it is out of reach."""
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if url is None:
        path = folder / JOURNAL
        return JournalStorage(JournalFileBackend(str(path), lock_obj=_journal_lock(path)))
    patient = {"connect_args": {"timeout": PATIENCE}} if url.startswith("sqlite") else {}
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return RDBStorage(url, engine_kwargs={"pool_pre_ping": True, **patient})
        except Exception as error:  # of SQLAlchemy's, of the database's driver, or a driver that is missing
            if _AT_ONCE.search(str(error)) and time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            if isinstance(error, ImportError):
                raise ConfigError(
                    f"sweep.storage: {without_password(url)} needs the driver of its database, such as "
                    "pip install 'psycopg[binary]' for PostgreSQL"
                ) from None
            reason = without_password(first_line(error)).rstrip(".")
            raise ConfigError(
                f"sweep.storage: {without_password(url)} cannot be reached: {reason}; expected an URL of Optuna's, "
                "such as sqlite:///sweep.db or postgresql://user@host/database"
            ) from None


def _journal_lock(path: Path) -> Any:
    """A lock that the system releases when its process is killed, unlike the files that Optuna's own locks leave.

    Whoever gets it removes what a killed writer left of a line: the next line would be lost with it.
    """
    from filelock import FileLock
    from optuna.storages.journal import JournalFileOpenLock

    class JournalLock(JournalFileOpenLock):
        def __init__(self) -> None:
            super().__init__(str(path))
            self.lock = FileLock(f"{path}.lock", thread_local=False)

        def acquire(self) -> bool:
            self.lock.acquire()
            cut_torn_line(path)
            return True

        def release(self) -> None:
            self.lock.release()

    return JournalLock()


def cut_torn_line(path: Path) -> None:
    """Cuts a file to its last whole line."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        content_end = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 4096)
            file.seek(start)
            last = file.read(end - start).rfind(b"\n")
            if last >= 0:
                end = start + last + 1
                break
            end = start
        if end < content_end:
            file.truncate(end)


# samplers and pruners


def build_sampler(settings: SweepSettings, seed: int, several: bool) -> "optuna.samplers.BaseSampler":
    """The sampler of one trial, which has a seed of its own: a resumed search draws what it would have drawn."""
    from optuna import samplers

    component = _bind(settings.sampler, "sampler", _samplers(), samplers.BaseSampler, ("seed",))
    if component.factory is samplers.QMCSampler:  # one sequence for all trials; choices, which it lacks, are drawn
        return component.build(seed=settings.seed, independent_sampler=samplers.RandomSampler(seed))
    if component.factory is samplers.CmaEsSampler:
        if several:
            raise ConfigError("sweep.sampler: cmaes takes one metric: expected tpe, random, qmc or gp for several")
        if importlib.util.find_spec("cmaes") is None:
            raise ConfigError("sweep.sampler: cmaes needs the package of that name: pip install 'cnnlab[sweep]'")
    provided: dict[str, Any] = {"seed": seed} if "seed" in component.parameters else {}
    if component.factory is samplers.TPESampler and "constant_liar" not in component.arguments:
        provided["constant_liar"] = True  # trials that run side by side keep apart
    return component.build(**provided)


def _samplers() -> dict[str, Callable[..., Any]]:
    from optuna import samplers

    return {
        "tpe": samplers.TPESampler,
        "random": samplers.RandomSampler,
        "qmc": samplers.QMCSampler,
        "cmaes": samplers.CmaEsSampler,
        "gp": samplers.GPSampler,
    }


def build_pruner(spec: Any) -> "optuna.pruners.BasePruner":
    """Raises `ConfigError` for an unknown one and for arguments that it does not take."""
    from optuna import pruners

    if spec is None:
        return pruners.NopPruner()
    return _bind(spec, "pruner", _pruners(), pruners.BasePruner).build()


def _pruners() -> dict[str, Callable[..., Any]]:
    from optuna import pruners

    def percentile(
        percentile: float = 25.0, n_startup_trials: int = 5, n_warmup_steps: int = 0, interval_steps: int = 1
    ) -> pruners.PercentilePruner:
        return pruners.PercentilePruner(percentile, n_startup_trials, n_warmup_steps, interval_steps)

    return {
        "median": pruners.MedianPruner,
        "percentile": percentile,
        "successive_halving": pruners.SuccessiveHalvingPruner,
        "hyperband": pruners.HyperbandPruner,
    }


def _bind(spec: Any, noun: str, table: Mapping[str, Any], base: type, withheld: Sequence[str] = ()) -> "Component":
    """A spec bound to the class that it names. Raises `ConfigError`."""
    from cnnlab.components import Registry, bind

    complaints = Complaints()
    registry = Registry(noun, table, base, (f"optuna.{noun}s",))
    component = bind(spec, f"sweep.{noun}", registry, complaints, withheld=withheld)
    complaints.raise_if_any()
    assert component is not None
    return component


# studies


def open_study(
    storage: "optuna.storages.BaseStorage",
    name: str,
    directions: Sequence[Any],
    pruner: "optuna.pruners.BasePruner",
    space: Mapping[str, str],
    metrics: Sequence[str],
) -> "optuna.Study":
    """The study of this name, made where there is none. Raises `ConfigError` where it is another search's."""
    import optuna

    found = optuna.create_study(
        storage=storage, study_name=name, directions=list(directions), pruner=pruner, load_if_exists=True
    )
    wanted = {"space": dict(space), "metric": list(metrics), "direction": list(directions)}
    recorded = {key: found.user_attrs.get(key) for key in wanted}
    if recorded["space"] is None:
        for key, value in reversed(wanted.items()):  # the space last: where it is, the others are
            found.set_user_attr(key, value)
    elif recorded != wanted:
        differing = next(key for key in wanted if recorded[key] != wanted[key])
        raise ConfigError(
            f"sweep.study: {name!r} is in this storage with another {differing}: expected {recorded[differing]}, "
            f"received {wanted[differing]}; another sweep.study is a search of its own"
        )
    return found


def join_study(
    storage: "optuna.storages.BaseStorage", name: str, pruner: "optuna.pruners.BasePruner"
) -> "optuna.Study":
    """An existing study, for a trial that runs in it."""
    import optuna

    return optuna.load_study(study_name=name, storage=storage, pruner=pruner)


@contextmanager
def unreachable_is_an_error(url: str | None) -> Iterator[None]:
    """What a database raises becomes a `ConfigError` without its password."""
    from optuna.exceptions import StorageInternalError

    try:
        yield
    except StorageInternalError as error:
        raise ConfigError(
            f"sweep.storage: {without_password(str(url))} failed: {without_password(first_line(error))}"
        ) from None
