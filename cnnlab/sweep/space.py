"""The search space: Hydra's grammar of values → Optuna's distributions."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from cnnlab.config.hydra_internals import as_override_value, parse_overrides
from cnnlab.runtime.errors import ArgumentError, Complaints, ConfigError, first_line
from cnnlab.sweep.axes import Axes, axis_key, choices, meaning

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

TAGS = {"log"}


@dataclass(frozen=True)
class Dimension:
    """One axis of a search: `element` is its key as given, `++optimizer.lr`; `ends` are values that stand for all."""

    element: str
    text: str
    distribution: "BaseDistribution"
    ends: tuple[str, ...]

    def override(self, value: Any) -> str:
        return f"{self.element}={self.value_text(value)}"

    @staticmethod
    def value_text(value: Any) -> str:
        """A sampled value as it is written on a command line; choices are texts already."""
        return value if isinstance(value, str) else as_override_value(value)

    def parameter(self, value: Any) -> Any:
        """Optuna's value for one from a config, None where the dimension does not hold it."""
        from optuna.distributions import CategoricalDistribution

        if isinstance(self.distribution, CategoricalDistribution):
            return next((text for text in self.ends if meaning(_parsed(text)) == meaning(value)), None)
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        low, high, step = (getattr(self.distribution, name, None) for name in ("low", "high", "step"))
        assert low is not None
        assert high is not None
        outside = not low <= value <= high
        between = step is not None and (Decimal(str(value)) - Decimal(str(low))) % Decimal(str(step)) != 0
        return None if outside or between else type(low)(value)


Space = Mapping[str, Dimension]  # by key


def read_space(axes: Axes) -> Space:
    """Raises `ConfigError` with every complaint about the axes; needs Optuna."""
    complaints = Complaints()
    found: dict[str, Dimension] = {}
    for key, override in axes.varied.items():
        try:
            found[key] = _dimension(override)
        except ConfigError as error:
            complaints.add("", str(error))
    complaints.raise_if_any()
    if not found:
        raise ConfigError(
            "sweep: expected at least one key with several values, such as "
            "optimizer.lr='tag(log, interval(1e-4, 1e-1))', received none"
        )
    return found


def _parsed(text: str) -> Any:
    (override,) = parse_overrides([f"value={text}"])
    return override.value()


def _dimension(override: Override) -> Dimension:
    key, given = axis_key(override), override.get_value_string()
    value: Any = override.value()
    tags = set(getattr(value, "tags", ()))
    if tags - TAGS:
        raise ArgumentError(key, f"expected no tag but log, received {given}")
    if isinstance(value, IntervalSweep):
        return _numeric(override, value.start, value.end, None, "log" in tags)
    if isinstance(value, RangeSweep):
        texts = choices(override)  # refuses an empty one
        numbers = sorted(_parsed(text) for text in texts)
        step = None if len(numbers) == 1 else abs(value.step)
        if "log" in tags:
            if step not in (None, 1):
                raise ArgumentError(key, f"expected a step of 1 beside the tag log, received {given}")
            step = None
        return _numeric(override, numbers[0], numbers[-1], step, "log" in tags)
    if tags:
        raise ArgumentError(key, f"expected an interval or a range for the tag log, received {given}")
    texts = choices(override)
    from optuna.distributions import CategoricalDistribution

    return Dimension(override.get_key_element(), given, CategoricalDistribution(texts), texts)


def _numeric(override: Override, low: Any, high: Any, step: Any, log: bool) -> Dimension:
    """An int's or a float's distribution, both ends included. Raises `ConfigError`."""
    from optuna.distributions import FloatDistribution, IntDistribution

    key, given = axis_key(override), override.get_value_string()
    if low > high or (low == high and isinstance(override.value(), IntervalSweep)):
        raise ArgumentError(key, f"expected the smaller end first, as in interval({high}, {low}), received {given}")
    if log and low <= 0:
        raise ArgumentError(key, f"expected ends > 0 for the tag log, received {given}")
    try:
        distribution = (
            IntDistribution(low, high, log=log, step=step or 1)
            if isinstance(low, int) and isinstance(high, int)
            else FloatDistribution(low, high, log=log, step=step)
        )
    except ValueError as error:  # an end that is not finite
        raise ArgumentError(
            key, f"expected a range that can be searched, received {given}: {first_line(error)}"
        ) from error
    ends = tuple(dict.fromkeys(as_override_value(end) for end in (low, high)))
    return Dimension(override.get_key_element(), given, distribution, ends)
