"""The overrides after `-m`: axes, checked before anything else, and the jobs that they make."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice, product
from typing import Any

from hydra.core.override_parser.types import Override, QuotedString, RangeSweep
from hydra.errors import HydraException

from cnnlab.config.compose import allow_constructor_arguments, as_given
from cnnlab.config.hydra_internals import as_override_value, parse_overrides
from cnnlab.config.naming import slug
from cnnlab.runtime.errors import ArgumentError, Complaints, ConfigError, first_line

MOST_JOBS = 10_000
DIGITS = 8  # of a number that is shown


@dataclass(frozen=True)
class Job:
    """One point of a grid or a trial of a search; `values` are those of the axes, as on a command line."""

    number: int
    overrides: tuple[str, ...]
    values: dict[str, str]
    is_trial: bool = False  # judged by a pruner, and without the test split

    @property
    def name(self) -> str:
        """The name of its directory, such as `003_lr0.01_mlp`."""
        return f"{self.number:03d}_{slug(self.values)}".rstrip("_")

    def __str__(self) -> str:
        return " ".join([f"{self.number:03d}", *(f"{key}={shortened(value)}" for key, value in self.values.items())])


def shortened(value: str, longest: int | None = None) -> str:
    """A value in a cell: a sampled number has up to 17 digits. What is longer than `longest` is cut off."""
    try:
        return value if len(value) <= DIGITS else f"{float(value):.4g}"
    except ValueError:
        return value if longest is None or len(value) <= longest else f"{value[: longest - 1]}…"


@dataclass(frozen=True)
class Axes:
    """The overrides of a command line, those with several values among them, in their order."""

    overrides: tuple[Override, ...]

    @property
    def fixed(self) -> list[str]:
        """What is the same in every job."""
        return [str(one.input_line) for one in self.overrides if not one.is_sweep_override()]

    @property
    def varied(self) -> dict[str, Override]:
        return {axis_key(one): one for one in self.overrides if one.is_sweep_override()}


@dataclass(frozen=True)
class Grid:
    """Every combination of the axes' values, the last axis fastest; other overrides are in every job."""

    axes: dict[str, tuple[str, ...]]
    jobs: tuple[Job, ...]

    def __str__(self) -> str:
        sides = " × ".join(f"{len(values):,} {key}" for key, values in self.axes.items())
        return f"grid: {len(self.jobs):,} job{'s' if len(self.jobs) > 1 else ''}" + (f" = {sides}" if sides else "")


def read_axes(arguments: Sequence[str], space: Mapping[str, str] | None = None) -> Axes:
    """The overrides of a command line, and axes from YAML for keys that it lacks. Raises `ConfigError`."""
    complaints = Complaints()
    given = parse_overrides(arguments)
    _check_keys(given, complaints)
    known = {axis_key(override) for override in given}
    further = [f"{key}={values}" for key, values in (space or {}).items() if key not in known]
    overrides = (*given, *parse_overrides(allow_constructor_arguments(further)))
    for override in overrides[len(given) :]:
        if not override.is_sweep_override():
            value = override.get_value_string()
            complaints.add(
                f"sweep.space.{axis_key(override)}",
                f"expected several values, such as '8,16,32' or 'interval(0, 1)', received {value}",
            )
    complaints.raise_if_any()
    return Axes(overrides)


def read_grid(axes: Axes) -> Grid:
    """Every combination of the axes' values. Raises `ConfigError` with every complaint about them."""
    complaints = Complaints()
    texts: dict[str, tuple[str, ...]] = {}
    columns: list[list[str]] = []  # for each override, what a job can get of it
    for override in axes.overrides:
        if not override.is_sweep_override():
            columns.append([str(override.input_line)])
            continue
        try:
            values = choices(override)
        except ConfigError as error:
            complaints.add("", str(error))
            continue
        texts[axis_key(override)] = values
        columns.append([f"{override.get_key_element()}={value}" for value in values])
    complaints.raise_if_any()
    _check_size(texts)
    points = product(*texts.values())
    jobs = (
        Job(number, overrides, dict(zip(texts, point, strict=True)))
        for number, (overrides, point) in enumerate(zip(product(*columns), points, strict=True))
    )
    return Grid(texts, tuple(jobs))


def axis_key(override: Override) -> str:
    return override.get_key_element().lstrip("+~")


def _check_keys(overrides: Sequence[Override], complaints: Complaints) -> None:
    """The key of an axis may not be given twice: one of the two would be ignored without a message."""
    times = Counter(map(axis_key, overrides))
    for key in {axis_key(override): None for override in overrides if override.is_sweep_override()}:
        if times[key] > 1:
            given = [as_given(str(override.input_line)) for override in overrides if axis_key(override) == key]
            complaints.add(key, f"expected one axis, received {' and '.join(given)}")


def choices(override: Override) -> tuple[str, ...]:
    """The axis's values as they were written. Raises `ConfigError` where it has none, or one twice."""
    key, given = axis_key(override), override.get_value_string()
    if override.is_interval_sweep():
        raise ArgumentError(
            key,
            f"expected values that a grid can go through, such as 0.01,0.1 or range(1,4), or sweep=tpe, which "
            f"searches: received {given}",
        )
    try:
        values: list[Any] = list(islice(_iterate(override), MOST_JOBS + 1))
    except (HydraException, ValueError) as error:  # a range with a step of 0
        raise ArgumentError(key, f"expected values, received {given}: {first_line(error)}") from error
    if not values:
        raise ArgumentError(key, f"expected at least one value, received {given}")
    texts = [text.strip() for text in given.split(",")]
    if "(" in given or "\\" in given or len(texts) != len(values):  # a function, an escape, commas within a value
        texts = [as_override_value(value) for value in values]
    seen: dict[Any, str] = {}
    for value, text in zip(map(meaning, values), texts, strict=True):
        if value in seen:
            again = "comes twice" if seen[value] == text else f"is {seen[value]} again"
            raise ArgumentError(key, f"expected each value once, received {given}: {text} {again}")
        seen[value] = text
    allow_constructor_arguments([f"{key}={text}" for text in texts])  # no number for a group
    return tuple(texts)


def _iterate(override: Override) -> Iterator[Any]:
    """The values of an axis. Hydra's ranges of floats may contain their end, which they are said to exclude."""
    value: Any = override.value()
    if not isinstance(value, RangeSweep) or value.shuffle or isinstance(value.range(), range):
        yield from override.sweep_iterator()
        return
    number, stop, step = (Decimal(str(one)) for one in (value.start, value.stop, value.step))
    if step == 0:
        raise ValueError("its step is 0")
    while number < stop if step > 0 else number > stop:
        yield float(number)
        number += step


def meaning(value: Any) -> Any:
    """Equal for values that denote the same: 1 and 1.0 do, 1 and true, which Python takes for equal, do not."""
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, bool):
        return bool, value
    if isinstance(value, dict):
        return dict, tuple((meaning(key), meaning(inner)) for key, inner in value.items())
    if isinstance(value, list):
        return list, tuple(meaning(inner) for inner in value)
    return value


def _check_size(axes: dict[str, tuple[str, ...]]) -> None:
    size = math.prod(len(values) for values in axes.values())
    if size > MOST_JOBS:
        raise ConfigError(f"{' × '.join(axes)}: expected at most {MOST_JOBS:,} jobs, received {size:,} or more")
