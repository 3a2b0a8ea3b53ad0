"""Arithmetic in arguments: what it gives, where it may stand, and what is refused."""

from typing import Any, Literal

import pytest

from cnnlab.network.arithmetic import Expression, calculated, find_expressions, texts, waits
from cnnlab.runtime.errors import ConfigError

IMAGE, FEATURES = (6, 8, 10), (120,)
KNOWN = {"classes": 10, "index": 2}


def result(text: Any, hint: Any = int, shape: tuple[int, ...] = IMAGE) -> Any:
    return calculated(find_expressions(text, hint, KNOWN), shape)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6 * in_channels", 36),
        ("in_channels", 6),
        ("height * width - 1", 79),
        ("-(in_channels - 10) // 3", 1),  # 4 // 3
        ("-7 // 2 + index", -2),  # rounds down, as in Python
        ("(classes + index) * 2", 24),
        ("in_channels / 2", 3),
        ("0.1 * 30 * index", 6),  # exact: 0.1 · 3 is not 0.3 in binary
    ],
)
def test_what_arithmetic_gives(text: str, expected: int) -> None:
    value = result(text)
    assert value == expected
    assert type(value) is int


def test_features_have_their_own_name() -> None:
    assert result("in_features // 7", shape=FEATURES) == 17


def test_a_fraction_stands_where_a_float_may() -> None:
    assert result("0.1 * index / 17", float) == pytest.approx(0.2 / 17, rel=1e-15)


def test_a_list_has_arithmetic_in_its_items() -> None:
    value = find_expressions(["height", 1, "width // 2"], int | tuple[int, int], KNOWN)
    assert (calculated(value, IMAGE), texts(value)) == ((8, 1, 5), "[height, 1, width // 2]")


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("same", int | str),
        ("height", int | str),
        ("rows-first", int | str),
        ("in_channels // 2", str),
        ("in_channels // 2", Literal["a"]),
        ("3 - 4", Any),
        ("rows", Any),
        ("two", int),
        ("2", int),
        ("-2", int),
        ("in_channels // 2", bool),
        (7, int),
        (None, int | None),
        ([1, 2], tuple[int, int]),
    ],
    ids=str,
)
def test_what_may_be_a_plain_value_stays_one(value: Any, hint: Any) -> None:
    expected = tuple(value) if isinstance(value, list) else value
    assert find_expressions(value, hint, KNOWN) == expected


@pytest.mark.parametrize("hint", [int | str, Any, int | None, float, tuple[int, ...]], ids=str)
def test_arithmetic_is_found_beside_other_types(hint: Any) -> None:
    assert isinstance(find_expressions("in_channels // 2", hint, KNOWN), Expression)


def test_only_sizes_wait_for_the_incoming_shape() -> None:
    assert waits(find_expressions(["2 * index", "height"], tuple[int, int], KNOWN))
    assert not waits(find_expressions(["2 * index", "classes"], tuple[int, int], KNOWN))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("in_channels / 4", "in_channels / 4 is 1.5 for in_channels = 6: expected a whole number; // rounds down"),
        ("in_channels // (index - 2)", r"divides by 0 for in_channels = 6, index = 2"),
        ("6 * in_chanels", "there is no name 'in_chanels'; did you mean 'in_channels'\\? expected one of in_channels"),
        ("in_chanels", "there is no name 'in_chanels'; did you mean 'in_channels'\\?"),
        ("in_features", "an image of 6×8×10 reaches it, without 'in_features': expected in_channels, height, width"),
        ("in_channels ** 2", r"expected arithmetic of numbers, names, \+ - \* // / and parentheses, received"),
        ("in_channels.bit_length() + 1", r"received 'in_channels.bit_length\(\)'"),
        ("in_channels + True", "received 'True'"),
        ("6 *", r"expected arithmetic such as 6 \* in_channels, received '6 \*'"),
        ("2in_channels", "expected arithmetic such as"),
        ("1" * 200 + "*in_channels", "expected arithmetic of at most 100 characters, received 212"),
        ("9" * 80 + "*in_channels", "is beyond ±1e"),
        ("(" * 45 + "height" + ")" * 44, "expected arithmetic such as"),
    ],
)
def test_arithmetic_without_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        result(text)


def test_a_name_that_is_unknown_at_this_place_is_refused() -> None:
    with pytest.raises(ConfigError, match="'index' counts repetitions from 0: expected it within blocks that 'repeat'"):
        find_expressions("8 * index", int, {})
    with pytest.raises(ConfigError, match="120 features reach it, without 'height': expected in_features"):
        result("height", shape=FEATURES)
