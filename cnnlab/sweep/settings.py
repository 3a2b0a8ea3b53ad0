"""The section `sweep` of a config, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from cnnlab.runtime.checks import integer, number
from cnnlab.runtime.errors import ArgumentError, Complaints, ConfigError, did_you_mean, listing, no_such_key

GRID = "grid"
DIRECTIONS = ("maximize", "minimize")
SIZES, MEASURED = ("parameters", "macs"), ("ms", "memory")
LIMITED = (*SIZES, *MEASURED)


@dataclass(frozen=True)
class SweepSettings:
    """The keys of `configs/sweep/base.yaml`; `metric` and `direction` are tuples, empty where YAML says null."""

    sampler: Any
    n_trials: int | None
    timeout: float | None
    seed: int
    metric: tuple[str, ...]
    direction: tuple[str, ...]
    pruner: Any
    budget: Mapping[str, float | None]
    storage: str | None
    study: str
    space: Mapping[str, str]

    @property
    def is_grid(self) -> bool:
        return self.sampler in (GRID, {"type": GRID})


def read_settings(section: Any) -> SweepSettings:
    """Raises `ConfigError` with every complaint about the section."""
    if not isinstance(section, Mapping):
        raise ConfigError(f"sweep: expected a mapping, received {section!r}")
    complaints = Complaints()
    names = [field.name for field in fields(SweepSettings)]
    for key in section:
        if key not in names:
            complaints.add(f"sweep.{key}", no_such_key(key, names))
    complaints.raise_if_any()
    missing = [name for name in names if name not in section]
    if missing:
        raise ConfigError(f"sweep.{missing[0]}: it is missing; expected all of {listing(names)}")
    settings = SweepSettings(
        **{**section, "metric": _names(section["metric"]), "direction": _names(section["direction"])}
    )
    for check in (_check_space, _check_directions, _check_budget, _check_grid if settings.is_grid else _check_search):
        check(settings, complaints)
    complaints.raise_if_any()
    return settings


def _names(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)


def _check_space(settings: SweepSettings, complaints: Complaints) -> None:
    if not isinstance(settings.space, Mapping):
        complaints.add("sweep.space", f"expected a mapping of key → values, received {settings.space!r}")
        return
    for key, values in settings.space.items():
        if not isinstance(values, str):
            complaints.add(
                f"sweep.space.{key}",
                f"expected text as after -m, such as '8,16,32' or 'interval(0, 1)', received {values!r}",
            )


def _check_directions(settings: SweepSettings, complaints: Complaints) -> None:
    for direction in settings.direction:
        if direction not in DIRECTIONS:
            near = did_you_mean(direction, DIRECTIONS)
            complaints.add(
                "sweep.direction", f"expected {' or '.join(DIRECTIONS)}, received {direction!r};{near}".rstrip(";")
            )
    for name in settings.metric:
        if not isinstance(name, str):
            complaints.add("sweep.metric", f"expected names, received {name!r}")
    if len(set(settings.metric)) < len(settings.metric):
        complaints.add("sweep.metric", f"expected each metric once, received {listing(settings.metric)}")
    objectives = len(settings.metric) or 1
    if settings.direction and len(settings.direction) != objectives:
        complaints.add(
            "sweep.direction",
            f"expected one for each metric, {objectives} here, or null, received {listing(settings.direction)}",
        )


def _check_budget(settings: SweepSettings, complaints: Complaints) -> None:
    if not isinstance(settings.budget, Mapping):
        complaints.add("sweep.budget", f"expected a mapping of {listing(LIMITED)}, received {settings.budget!r}")
        return
    for name, limit in settings.budget.items():
        if name not in LIMITED:
            complaints.add(f"sweep.budget.{name}", no_such_key(name, LIMITED))
        elif limit is not None:
            try:
                integer(name, limit, 1) if name in SIZES else number(name, limit, 0, open_minimum=True)
            except ArgumentError as error:
                complaints.add_error("sweep.budget", error)
    if settings.is_grid and any(limit is not None for limit in settings.budget.values()):
        complaints.add("sweep.budget", "a grid runs every combination: expected a search such as sweep=tpe beside it")


def _check_search(settings: SweepSettings, complaints: Complaints) -> None:
    checks = [
        lambda: integer("n_trials", settings.n_trials, 1),
        lambda: integer("seed", settings.seed, 0),
        lambda: None if settings.timeout is None else number("timeout", settings.timeout, 0, open_minimum=True),
    ]
    for check in checks:
        try:
            check()
        except ArgumentError as error:
            complaints.add_error("sweep", error)
    if settings.storage is not None and not isinstance(settings.storage, str):
        complaints.add("sweep.storage", f"expected a URL or null, received {settings.storage!r}")
    if not isinstance(settings.study, str) or not settings.study:
        complaints.add("sweep.study", f"expected a name, received {settings.study!r}")
    if settings.pruner is not None and len(settings.metric) > 1:
        complaints.add(
            "sweep.pruner",
            f"expected null beside several metrics, which trials are not compared by while they run, received "
            f"{settings.pruner!r} and {listing(settings.metric)}",
        )


def _check_grid(settings: SweepSettings, complaints: Complaints) -> None:
    """What only a search has is refused, not ignored."""
    for name in ("n_trials", "timeout", "pruner", "storage"):
        value = getattr(settings, name)
        if value is not None:
            complaints.add(
                f"sweep.{name}",
                f"a grid runs every combination to its end: expected null, or a search such as sweep=tpe, received "
                f"{value!r}",
            )
    if len(settings.metric) > 1:
        complaints.add("sweep.metric", f"expected one for a grid, received {listing(settings.metric)}")
