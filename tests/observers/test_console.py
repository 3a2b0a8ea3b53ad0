import io
import re
from pathlib import Path

import pytest
import rich.console
from screens import Terminal

from cnnlab.engine.records import Finished, Metrics, Notice, Record, Started
from cnnlab.observers.console import Console
from cnnlab.runtime.errors import ArgumentError

STARTED = Started(Path("runs/some"), 0, 60, 3, {}, "")
TRAIN = Metrics(20, 1, "train", {"loss": 1.25, "accuracy": 0.5, "images_per_second": 12345.6})
VAL = Metrics(20, 1, "val", {"loss": 1.5, "accuracy": 0.625})


def console(
    *records: Record,
    terminal: bool = False,
    interval: float = 10.0,
    close: bool = True,
    width: int = 120,
    **environment: str,
) -> str:
    """What the console prints of the records after a start."""
    text = Terminal() if terminal else io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ({"TERM": "xterm"} | environment).items():
            patch.setenv(name, value)
        observer = Console(interval)
        observer.console = rich.console.Console(file=text, width=width, highlight=False)
        for record in records:
            observer.log(record)
        if close:
            observer.close()
    return text.getvalue()


def test_a_measurement_is_one_plain_line_without_a_terminal() -> None:
    printed = console(STARTED, VAL)
    line = "epoch 1/3 step 20/60 val loss 1.5000 accuracy 0.6250"
    assert printed.splitlines()[-1].split() == line.split()
    assert "\x1b" not in printed


def test_training_figures_wait_for_the_interval_without_a_terminal() -> None:
    assert "1.2500" not in console(STARTED, TRAIN, interval=3600)
    line = "train  loss 1.2500  accuracy 0.5000  12,346 images/s"
    assert line in console(STARTED, TRAIN, interval=0)


def test_a_terminal_shows_training_figures_beside_a_bar_and_measurements_above_it() -> None:
    shown = console(STARTED, TRAIN, VAL, terminal=True)
    assert "loss 1.2500  accuracy 0.5000  12,346 images/s" in shown
    assert "━" in shown
    assert "val    loss 1.5000  accuracy 0.6250" in shown


@pytest.mark.parametrize(("terminal", "environment"), [(False, {"FORCE_COLOR": "1"}), (True, {"TERM": "dumb"})])
def test_where_nothing_can_be_redrawn_there_are_plain_lines(terminal: bool, environment: dict[str, str]) -> None:
    shown = console(STARTED, TRAIN, VAL, terminal=terminal, interval=0, **environment)
    assert [line.split()[0] for line in shown.splitlines()] == ["run:", "epoch", "epoch"]
    assert "\x1b" not in shown


def test_there_are_no_colours_where_none_are_wanted() -> None:
    for environment, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        shown = console(STARTED, TRAIN, VAL, Notice("slow"), terminal=True, **environment)
        assert ("\x1b[33m" in shown) is coloured  # the notice's yellow
        codes = {code for codes in re.findall(r"\x1b\[([\d;]*)m", shown) for code in codes.split(";")}
        assert bool({code for code in codes if code[:1] in ("3", "4", "9") and len(code) > 1}) is coloured


def test_the_terminal_is_given_back_at_the_end() -> None:
    shows_the_cursor = "\x1b[?25h"  # which the bar had hidden
    assert console(STARTED, terminal=True).endswith(shows_the_cursor)
    assert console(STARTED, Finished({}), terminal=True, close=False).endswith(shows_the_cursor)


def test_numbers_below_each_other_are_as_wide_as_their_total() -> None:
    started = Started(Path("runs/some"), 0, 1200, 30, {}, "")
    line = "epoch  1/30  step   20/1200  val    loss 1.5000  accuracy 0.6250"
    assert console(started, VAL).splitlines()[-1] == line


def test_lines_are_broken_between_columns() -> None:
    shown = console(STARTED, VAL, Notice("a sentence with many words"), terminal=True, TERM="dumb", COLUMNS="40")
    assert shown.splitlines()[1:] == [
        "epoch 1/3  step 20/60  val",
        "  loss 1.5000  accuracy 0.6250",
        "a sentence with many words",
    ]


def test_the_steps_have_no_total_where_only_time_ends_the_run() -> None:
    assert "epoch 1  step 20  val" in console(Started(Path("runs/some"), 0, None, None, {}, ""), VAL)


def test_names_and_notices_are_printed_as_they_are() -> None:
    started = Started(Path("runs/[some]"), 7, 60, 3, {}, "")
    printed = console(started, Notice("accuracy [val] has not improved"))
    assert printed == "run: runs/[some], resuming after step 7\naccuracy [val] has not improved\n"


def test_a_negative_interval_is_refused() -> None:
    with pytest.raises(ArgumentError, match="interval: expected a number ≥ 0, received -1"):
        Console(-1)


def test_a_bar_leaves_room_for_what_a_terminal_echoes_of_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    shown = console(STARTED, TRAIN, terminal=True)
    (bar,) = [line for line in re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown).splitlines() if "━" in line][-1:]
    assert len(bar.rstrip("\n")) <= 60 - len("^C")
    assert "images/s" not in console(STARTED, TRAIN, terminal=True, width=70)
