import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.table import Table
from screens import HIDE_CURSOR, SHOW_CURSOR, Terminal, on_a_terminal

from cnnlab.runtime import terminal
from cnnlab.runtime.terminal import fitting, print_command, print_written, stop_waiting, waiting, width, wrapped


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
    monkeypatch.setenv("FORCE_COLOR", "1")  # a wish for colours, not for lines drawn again and again
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
    os.kill(os.getpid(), signal.NAME)
"""


@pytest.mark.parametrize(("name", "expected"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_leaves_no_spinner_and_shows_the_cursor(name: str, expected: int) -> None:
    status, shown = on_a_terminal(INTERRUPTED.replace("NAME", name))
    assert status == expected
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
    assert wrapped(text, io.StringIO()) == text
    monkeypatch.setenv("COLUMNS", "22")
    assert wrapped(text, Terminal()).splitlines() == [
        "error: two mistakes:",
        "  data: expected",
        "    one-of a, b or c",
        "  loss: none",
    ]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("000 lr=0.1  completed  accuracy 0.5  5.7 s", ["000 lr=0.1  completed", "  accuracy 0.5  5.7 s"]),
        ("table: runs/digits/sweep_2/sweep.csv", ["table:", "runs/digits/sweep_2/sweep.csv"]),  # too wide
        ("table: runs/a b/sweep_2.csv", ["table:", "  runs/a b/sweep_2.csv"]),
        ("\nan end\n", ["", "an end", ""]),
        ("東京東京東京 京都京都", ["東京東京東京", "  京都京都"]),  # 12 + 1 + 8 columns
        ("  one two three four five", ["  one two three four", "    five"]),
    ],
)
def test_columns_and_words_and_paths_stay_whole(monkeypatch: pytest.MonkeyPatch, text: str, lines: list[str]) -> None:
    monkeypatch.setenv("COLUMNS", "22" if text.isascii() else "20")
    assert wrapped(text, Terminal(), ["runs/a b/sweep_2.csv"]).split("\n") == lines


def on_a_screen(monkeypatch: pytest.MonkeyPatch, columns: int, show: Callable[[], None]) -> list[str]:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", str(columns))
    show()
    return screen.getvalue().splitlines()


def test_a_command_that_is_too_wide_is_continued_as_a_shell_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def show() -> None:
        print_command("resume", "python train.py", "resume=runs/1")

    assert on_a_screen(monkeypatch, 80, show) == ["  resume     python train.py resume=runs/1"]
    monkeypatch.setattr("os.name", "posix")
    assert on_a_screen(monkeypatch, 40, show) == ["  resume     python train.py \\", "    resume=runs/1"]


def test_files_are_listed_by_name_where_their_paths_are_too_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    def show() -> None:
        print_written(Path("runs/1"), [Path("runs/1/a.json"), Path("runs/1/figures/b.png")])

    whole = ["written to runs/1/a.json", "           runs/1/figures/b.png"]
    assert on_a_screen(monkeypatch, 80, show) == whole
    assert on_a_screen(monkeypatch, 30, show) == ["written to runs/1", "  a.json", "  figures/b.png"]
