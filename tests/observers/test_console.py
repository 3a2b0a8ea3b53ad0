import io
from pathlib import Path

import pytest
import rich.console

from cnnlab.engine.records import Finished, Metrics, Notice, Started
from cnnlab.observers.console import Console
from cnnlab.runtime.errors import ArgumentError

STARTED = Started(Path("runs/some"), 0, 60, 3, {}, "")
TRAIN = Metrics(20, 1, "train", {"loss": 1.25, "accuracy": 0.5, "images_per_second": 12345.6})
VAL = Metrics(20, 1, "val", {"loss": 1.5, "accuracy": 0.625})


def console(*, terminal: bool, interval: float = 10.0) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    observer = Console(interval)
    observer.console = rich.console.Console(file=text, force_terminal=terminal, width=120, highlight=False)
    return observer, text


def test_a_measurement_is_one_plain_line_without_a_terminal() -> None:
    observer, text = console(terminal=False)
    observer.log(STARTED)
    observer.log(VAL)
    observer.close()
    assert text.getvalue().splitlines()[-1].split() == [
        "epoch",
        "1/3",
        "step",
        "20/60",
        "val",
        "loss",
        "1.5000",
        "accuracy",
        "0.6250",
    ]
    assert "\x1b" not in text.getvalue()


def test_training_figures_wait_for_the_interval_without_a_terminal() -> None:
    observer, text = console(terminal=False, interval=3600)
    observer.log(STARTED)
    observer.log(TRAIN)
    assert "1.2500" not in text.getvalue()


def test_training_figures_come_as_a_line_once_the_interval_is_over() -> None:
    observer, text = console(terminal=False, interval=0)
    observer.log(STARTED)
    observer.log(TRAIN)
    assert "train  loss 1.2500  accuracy 0.5000  12,346 images/s" in text.getvalue()


def test_a_terminal_shows_loss_accuracy_and_speed_beside_a_bar() -> None:
    observer, text = console(terminal=True)
    observer.log(STARTED)
    observer.log(TRAIN)
    observer.close()
    assert "loss 1.2500  accuracy 0.5000  12,346 images/s" in text.getvalue()
    assert "━" in text.getvalue()


def test_a_measurement_stays_above_the_bar_on_a_terminal() -> None:
    observer, text = console(terminal=True)
    observer.log(STARTED)
    observer.log(VAL)
    observer.close()
    assert "val    loss 1.5000  accuracy 0.6250" in text.getvalue()


@pytest.mark.parametrize("end", ["close", "finished"])
def test_the_terminal_is_given_back_at_the_end(end: str) -> None:
    observer, text = console(terminal=True)
    observer.log(STARTED)
    if end == "close":
        observer.close()
    else:
        observer.log(Finished({}))
    assert text.getvalue().endswith("\x1b[?25h")  # shows the cursor, which the bar had hidden


def test_the_steps_have_no_total_where_only_time_ends_the_run() -> None:
    observer, text = console(terminal=False)
    observer.log(Started(Path("runs/some"), 0, None, None, {}, ""))
    observer.log(VAL)
    assert "epoch 1  step 20  val" in text.getvalue()


def test_the_run_is_named_at_its_start() -> None:
    observer, text = console(terminal=False)
    observer.log(Started(Path("runs/[some]"), 7, 60, 3, {}, ""))
    assert text.getvalue() == "run: runs/[some], resuming after step 7\n"


def test_a_notice_is_shown_as_it_is() -> None:
    observer, text = console(terminal=False)
    observer.log(Notice("accuracy [val] has not improved"))
    assert text.getvalue() == "accuracy [val] has not improved\n"


def test_a_negative_interval_is_refused() -> None:
    with pytest.raises(ArgumentError, match="interval: expected a number ≥ 0, received -1"):
        Console(-1)
