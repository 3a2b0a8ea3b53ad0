"""Checks of plain values."""

import math
from typing import Any

import pytest

from cnnlab.runtime.checks import int_or_pair, integer, number, one_of
from cnnlab.runtime.errors import ArgumentError


@pytest.mark.parametrize(("value", "minimum", "maximum"), [(1, 1, None), (3, 0, 3)])
def test_an_integer_within_its_limits_is_returned(value: int, minimum: int, maximum: int | None) -> None:
    assert integer("count", value, minimum, maximum) == value


@pytest.mark.parametrize("value", [0, 4, 1.0, True, None])
def test_what_is_no_integer_within_its_limits_is_refused(value: Any) -> None:
    with pytest.raises(ArgumentError) as caught:
        integer("count", value, 1, 3)
    assert caught.value.argument == "count"
    assert caught.value.message == f"expected a whole number from 1 to 3, received {value!r}"
    with pytest.raises(ArgumentError, match="count: expected a whole number ≥ 5, received"):
        integer("count", value, 5)


@pytest.mark.parametrize(("value", "pair"), [(3, (3, 3)), ((3, 5), (3, 5)), ([3, 5], (3, 5))])
def test_a_number_or_a_pair_becomes_a_pair(value: Any, pair: tuple[int, int]) -> None:
    assert int_or_pair("kernel_size", value, 1) == pair


@pytest.mark.parametrize("value", [0, (1, 0), (1,), "33", None, (True, 1)])
def test_what_is_no_pair_of_integers_is_refused(value: Any) -> None:
    with pytest.raises(ArgumentError) as caught:
        int_or_pair("kernel_size", value, 1)
    assert caught.value.argument == "kernel_size"


@pytest.mark.parametrize(
    ("value", "limits"), [(-1e9, {}), (1, {"maximum": 1}), (0.999, {"minimum": 0, "maximum": 1, "open_maximum": True})]
)
def test_a_number_in_its_interval_is_returned_as_a_float(value: float, limits: dict[str, Any]) -> None:
    accepted = number("p", value, **limits)
    assert accepted == value
    assert isinstance(accepted, float)


@pytest.mark.parametrize(
    ("value", "limits", "expected"),
    [
        (math.nan, {}, "a number that is finite"),
        (10**400, {}, "a number that is finite"),  # no float holds it
        (True, {}, "a number that is finite"),
        (-0.1, {"minimum": 0}, "a number ≥ 0"),
        (0, {"minimum": 0, "open_minimum": True}, "a number > 0"),
        (1.1, {"minimum": 0, "maximum": 1}, "a number in [0, 1]"),
        (1, {"minimum": 0, "maximum": 1, "open_maximum": True}, "a number in [0, 1)"),
        (0, {"minimum": 0, "maximum": 1, "open_minimum": True}, "a number in (0, 1]"),
    ],
)
def test_a_number_outside_its_interval_is_refused_with_the_interval(
    value: Any, limits: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ArgumentError) as caught:
        number("p", value, **limits)
    assert caught.value.message == f"expected {expected}, received {value!r}"


@pytest.mark.parametrize(("value", "nearest"), [("fan_inn", "; did you mean 'fan_in'?"), (7, "")])
def test_a_value_that_is_not_legal_is_refused_with_the_legal_ones_and_the_nearest(value: Any, nearest: str) -> None:
    assert one_of("mode", "fan_in", ("fan_in", "fan_out")) == "fan_in"
    with pytest.raises(ArgumentError) as caught:
        one_of("mode", value, ("fan_in", "fan_out"))
    assert caught.value.message == f"expected one of fan_in, fan_out, received {value!r}{nearest}"
