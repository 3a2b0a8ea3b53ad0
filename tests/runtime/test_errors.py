"""Errors for users."""

import pytest

from cnnlab.runtime.errors import (
    ArgumentError,
    Complaints,
    ConfigError,
    Interrupted,
    did_you_mean,
    listing,
    no_such_key,
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


def test_the_same_complaint_is_reported_once_and_none_raises_nothing() -> None:
    complaints = Complaints()
    complaints.raise_if_any()
    complaints.add("seed", "no")
    complaints.add("seed", "no")
    with pytest.raises(ConfigError) as caught:
        complaints.raise_if_any()
    assert str(caught.value) == "seed: no"


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        ("model.blocks.dropout1", ArgumentError("p", "expected less"), "model.blocks.dropout1.p: expected less"),
        ("", ArgumentError("p", "expected less"), "p: expected less"),
        ("model.blocks.mine", TypeError("cannot\nTraceback and more"), "model.blocks.mine: cannot"),
        ("model.blocks.mine", NotImplementedError(), "model.blocks.mine: NotImplementedError"),
    ],
)
def test_an_error_is_reported_by_its_first_line_at_its_own_key(key: str, error: Exception, message: str) -> None:
    complaints = Complaints()
    complaints.add_error(key, error)
    assert complaints.messages == [message]


def test_the_nearest_legal_name_is_offered_where_one_is_near_and_names_are_listed() -> None:
    assert did_you_mean("epoch", ["epochs", "max_steps"]) == " did you mean 'epochs'?"
    assert did_you_mean("xyz", ["epochs", "max_steps"]) == ""
    assert (listing(["a", 2]), listing([])) == ("a, 2", "–")
    assert no_such_key("epoch", []) == "there is no such key: nothing can be set here"


def test_an_interruption_exits_as_a_shell_does_after_a_signal_and_is_no_exception() -> None:
    assert Interrupted(15).exit_status == 143  # 128 + SIGTERM
    assert not issubclass(Interrupted, Exception)
