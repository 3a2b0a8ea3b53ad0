"""Checks of plain values, used by the constructors that take them. Each returns the value it accepted."""

import math
import sys
from typing import Any

from cnnlab.runtime.errors import ArgumentError, did_you_mean, listing


def integer(argument: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """An int of at least `minimum` (a bool is none). Raises `ArgumentError`."""
    legal = isinstance(value, int) and not isinstance(value, bool) and value >= minimum
    if not legal or (maximum is not None and value > maximum):
        limits = f"≥ {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        raise ArgumentError(argument, f"expected a whole number {limits}, received {value!r}")
    return int(value)


def int_or_pair(argument: str, value: Any, minimum: int, maximum: int | None = None) -> tuple[int, int]:
    """An int, or a pair of ints (height, width), each from `minimum` to `maximum`. Raises `ArgumentError`."""
    values = (value, value) if isinstance(value, int) else value
    if not isinstance(values, list | tuple) or len(values) != 2:
        raise ArgumentError(argument, f"expected a whole number or a pair [height, width], received {value!r}")
    height, width = (integer(argument, side, minimum, maximum) for side in values)
    return height, width


def number(
    argument: str,
    value: Any,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    *,
    open_minimum: bool = False,
    open_maximum: bool = False,
) -> float:
    """A finite number in the interval; `open_…` leaves its end out. Raises `ArgumentError`."""
    legal = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if legal:
        legal = value > minimum if open_minimum else value >= minimum
    if legal:
        legal = value < maximum if open_maximum else value <= maximum
    if not legal:
        raise ArgumentError(
            argument,
            f"expected a number{_interval(minimum, maximum, open_minimum, open_maximum)}, received {value!r}",
        )
    return float(value)


def one_of(argument: str, value: Any, legal: tuple[Any, ...]) -> Any:
    """One of the `legal` values. Raises `ArgumentError` with the nearest."""
    if value not in legal:
        raise ArgumentError(
            argument,
            f"expected one of {listing(legal)}, received {value!r};{did_you_mean(value, legal)}".rstrip(";"),
        )
    return value


def _interval(minimum: float, maximum: float, open_minimum: bool, open_maximum: bool) -> str:
    if minimum == -math.inf and maximum == math.inf:
        return " that is finite"
    if maximum == math.inf:
        return f" {'>' if open_minimum else '≥'} {minimum:g}"
    left, right = "(" if open_minimum else "[", ")" if open_maximum else "]"
    return f" in {left}{minimum:g}, {maximum:g}{right}"
