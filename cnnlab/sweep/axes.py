"""The overrides after `-m`: axes, checked before anything else, and the jobs that they make."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException

from cnnlab.config.compose import allow_constructor_arguments, as_given
from cnnlab.config.hydra_internals import as_override_value, parse_overrides
from cnnlab.runtime.errors import ArgumentError, Complaints, ConfigError, first_line

MOST_JOBS = 10_000


@dataclass(frozen=True)
class Job:
    """One point of the grid; `values` are those of the axes, as on a command line."""

    number: int
    overrides: tuple[str, ...]
    values: dict[str, str]

    @property
    def name(self) -> str:
        """The name of its directory."""
        return f"{self.number:03d}"

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.values.items())])


@dataclass(frozen=True)
class Grid:
    """Every combination of the axes' values, the last axis fastest; other overrides are in every job."""

    axes: dict[str, tuple[str, ...]]
    jobs: tuple[Job, ...]

    def __str__(self) -> str:
        sides = " × ".join(f"{len(values):,} {key}" for key, values in self.axes.items())
        return f"grid: {len(self.jobs):,} job{'s' if len(self.jobs) > 1 else ''}" + (f" = {sides}" if sides else "")


def read_grid(arguments: Sequence[str]) -> Grid:
    """The grid of a command line's overrides. Raises `ConfigError` with every complaint about its axes."""
    complaints = Complaints()
    overrides = parse_overrides(arguments)
    _check_keys(overrides, complaints)
    axes: dict[str, tuple[str, ...]] = {}
    columns: list[list[str]] = []  # for each override, what a job can get of it
    for override in overrides:
        if not override.is_sweep_override():
            columns.append([str(override.input_line)])
            continue
        try:
            values = _values(override)
            allow_constructor_arguments([f"{_key(override)}={value}" for value in values])  # no number for a group
        except ConfigError as error:
            complaints.add("", str(error))
            continue
        axes[_key(override)] = values
        columns.append([f"{override.get_key_element()}={value}" for value in values])
    complaints.raise_if_any()
    _check_size(axes)
    points = product(*axes.values())
    jobs = (
        Job(number, overrides, dict(zip(axes, point, strict=True)))
        for number, (overrides, point) in enumerate(zip(product(*columns), points, strict=True))
    )
    return Grid(axes, tuple(jobs))


def _key(override: Override) -> str:
    return override.get_key_element().lstrip("+~")


def _check_keys(overrides: Sequence[Override], complaints: Complaints) -> None:
    """The key of an axis may not be given twice: one of the two would be ignored without a message."""
    times = Counter(map(_key, overrides))
    for key in {_key(override): None for override in overrides if override.is_sweep_override()}:
        if times[key] > 1:
            given = [as_given(str(override.input_line)) for override in overrides if _key(override) == key]
            complaints.add(key, f"expected one axis, received {' and '.join(given)}")


def _values(override: Override) -> tuple[str, ...]:
    """The axis's values as they were written. Raises `ConfigError` where it has none, or one twice."""
    key, given = _key(override), override.get_value_string()
    if override.is_interval_sweep():
        raise ArgumentError(
            key, f"expected values that a grid can go through, such as 0.01,0.1 or range(1,4), received {given}"
        )
    try:
        values: list[Any] = list(islice(override.sweep_iterator(), MOST_JOBS + 1))
    except (HydraException, ValueError) as error:  # a range with a step of 0
        raise ArgumentError(key, f"expected values, received {given}: {first_line(error)}") from error
    if not values:
        raise ArgumentError(key, f"expected at least one value, received {given}")
    texts = [text.strip() for text in given.split(",")]
    if "(" in given or "\\" in given or len(texts) != len(values):  # a function, an escape, commas within a value
        texts = [as_override_value(value) for value in values]
    seen: dict[Any, str] = {}
    for value, text in zip(map(_meaning, values), texts, strict=True):
        if value in seen:
            again = "comes twice" if seen[value] == text else f"is {seen[value]} again"
            raise ArgumentError(key, f"expected each value once, received {given}: {text} {again}")
        seen[value] = text
    return tuple(texts)


def _meaning(value: Any) -> Any:
    """Equal for values that denote the same: 1 and 1.0 do, 1 and true, which Python takes for equal, do not."""
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, bool):
        return bool, value
    if isinstance(value, dict):
        return dict, tuple((_meaning(key), _meaning(inner)) for key, inner in value.items())
    if isinstance(value, list):
        return list, tuple(_meaning(inner) for inner in value)
    return value


def _check_size(axes: dict[str, tuple[str, ...]]) -> None:
    size = math.prod(len(values) for values in axes.values())
    if size > MOST_JOBS:
        raise ConfigError(f"{' × '.join(axes)}: expected at most {MOST_JOBS:,} jobs, received {size:,} or more")
