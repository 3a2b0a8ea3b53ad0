"""Errors that are for people."""

import pytest

from cnnlab.runtime.errors import (
    ArgumentError,
    Complaints,
    ConfigError,
    Interrupted,
    did_you_mean,
    first_line,
    listing,
)


def test_all_complaints_come_in_one_error_in_their_order() -> None:
    complaints = Complaints()
    complaints.add("model.blocks.b", "second letter, first complaint")
    complaints.add("", "letter.a: a complaint that brings its own key")
    with pytest.raises(ConfigError) as caught:
        complaints.raise_if_any()
    assert str(caught.value).splitlines() == [
        "2 mistakes in the config:",
        "  model.blocks.b: second letter, first complaint",
        "  letter.a: a complaint that brings its own key",
    ]


def test_the_same_complaint_is_reported_once() -> None:
    complaints = Complaints()
    complaints.add("seed", "no")
    complaints.add("seed", "no")
    with pytest.raises(ConfigError) as caught:
        complaints.raise_if_any()
    assert str(caught.value) == "seed: no"


def test_no_complaint_raises_nothing() -> None:
    Complaints().raise_if_any()


def test_an_argument_error_is_reported_at_the_argument_s_own_key() -> None:
    complaints = Complaints()
    complaints.add_error("model.blocks.dropout1", ArgumentError("p", "expected less"))
    assert complaints.messages == ["model.blocks.dropout1.p: expected less"]


def test_an_argument_error_without_a_key_is_reported_at_the_argument() -> None:
    complaints = Complaints()
    complaints.add_error("", ArgumentError("p", "expected less"))
    assert complaints.messages == ["p: expected less"]


def test_any_other_error_is_reported_by_its_first_line() -> None:
    complaints = Complaints()
    complaints.add_error("model.blocks.mine", TypeError("cannot\nTraceback and more"))
    assert complaints.messages == ["model.blocks.mine: cannot"]


def test_an_argument_error_by_itself_names_its_argument() -> None:
    error = ArgumentError("p", "expected less")
    assert isinstance(error, ConfigError)
    assert str(error) == "p: expected less"


def test_an_error_without_text_is_reported_by_its_type() -> None:
    assert first_line(NotImplementedError()) == "NotImplementedError"


def test_the_nearest_legal_name_is_offered() -> None:
    assert did_you_mean("epoch", ["epochs", "max_steps"]) == " did you mean 'epochs'?"


def test_nothing_is_offered_where_no_name_is_near() -> None:
    assert did_you_mean("xyz", ["epochs", "max_steps"]) == ""


@pytest.mark.parametrize(("names", "text"), [(["a", 2, "c"], "a, 2, c"), ([], "–")])
def test_a_listing_separates_by_commas(names: list[object], text: str) -> None:
    assert listing(names) == text


def test_an_interruption_exits_as_a_shell_does_after_a_signal() -> None:
    assert Interrupted(15).exit_status == 143  # 128 + SIGTERM


def test_an_interruption_is_not_caught_as_an_exception() -> None:
    assert not issubclass(Interrupted, Exception)
