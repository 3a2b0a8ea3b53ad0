import io
import sys

import pytest
from rich.table import Table
from screens import HIDE_CURSOR, SHOW_CURSOR, Terminal, on_a_terminal

from cnnlab.runtime import terminal
from cnnlab.runtime.terminal import fitting, stop_waiting, waiting, width, wrapped


def table(text: str) -> Table:
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_row(text)
    return made


def test_the_first_table_that_fits_is_taken_or_the_last() -> None:
    wide, narrow = table("a" * 30), table("a" * 10)
    assert fitting([wide, narrow], 40) is wide
    assert fitting([wide, narrow], 20) is narrow
    assert fitting([wide, narrow], 5) is narrow
    assert fitting([wide, narrow], None) is wide


def test_a_pipe_has_no_width_and_no_spinner(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stdout", pipe)
    assert width() is None
    monkeypatch.setenv("FORCE_COLOR", "1")  # a wish for colors, not for lines drawn again and again
    with waiting("working"):
        print("line")
    assert pipe.getvalue() == "line\n"


def test_a_spinner_is_shown_once_and_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "70")
    assert width() == 70
    with waiting("working"), waiting("inner"):
        print("line")
    text = screen.getvalue()
    assert "working" in text
    assert "inner" not in text
    assert text.rstrip().endswith("\x1b[2K")  # the line of the spinner is cleared
    assert terminal._spinner is None


INTERRUPTED = """
import os, signal, time
from cnnlab.runtime.interrupts import exit_at_interrupt
from cnnlab.runtime.terminal import waiting
with exit_at_interrupt(), waiting("starting"):
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGINT)
"""


def test_an_interrupt_leaves_no_spinner_and_shows_the_cursor() -> None:
    status, shown = on_a_terminal(INTERRUPTED)
    assert status == 130
    assert "starting" in shown
    hidden = shown.rindex(HIDE_CURSOR)
    assert shown[hidden:].endswith(f"\r\x1b[2K{SHOW_CURSOR}")  # the spinner's line is cleared, and nothing follows


def test_what_moves_itself_ends_the_spinner(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    with waiting("working"):
        stop_waiting()
        shown = len(screen.getvalue())
        print("bar")
        assert "bar" in screen.getvalue()[shown:]
        assert "working" not in screen.getvalue()[shown:]


@pytest.mark.parametrize(("quiet", "kind"), [(True, "xterm"), (False, "dumb"), (False, "unknown")])
def test_quiet_commands_and_dumb_terminals_have_no_spinner(
    monkeypatch: pytest.MonkeyPatch, quiet: bool, kind: str
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", kind)
    with waiting("working", quiet=quiet):
        pass
    assert screen.getvalue() == ""


def test_prose_is_wrapped_between_words_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "error: two mistakes:\n  data: expected one-of a, b or c\n  loss: none"
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert wrapped(text) == text
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "22")
    assert wrapped(text).splitlines() == [
        "error: two mistakes:",
        "  data: expected",
        "    one-of a, b or c",
        "  loss: none",
    ]
