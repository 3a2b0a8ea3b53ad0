from pathlib import Path

import pytest

from cnnlab.engine.records import Notice, Record, Started
from cnnlab.observers import OBSERVERS, Observers

STARTED = Started(Path(), 0, 10, None, {}, "")
NOTICE = Notice("something")


class Recorder:
    """Keeps its records."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.closed = 0

    def log(self, record: Record) -> None:
        self.records.append(record)

    def close(self) -> None:
        self.closed += 1


class FullDiskError(Recorder):
    """Fails at every record."""

    def log(self, record: Record) -> None:
        super().log(record)
        raise OSError("No space left on device\nand a second line")


class NeverCloses(Recorder):
    """Fails when it is closed."""

    def close(self) -> None:
        raise RuntimeError("stuck")


def test_every_observer_gets_every_record() -> None:
    first, second = Recorder(), Recorder()
    observers = Observers([first, second])
    observers.log(STARTED)
    observers.log(NOTICE)
    assert first.records == second.records == [STARTED, NOTICE]


def test_every_observer_is_closed() -> None:
    first, second = Recorder(), Recorder()
    Observers([first, second]).close()
    assert (first.closed, second.closed) == (1, 1)


def test_the_others_continue_after_one_that_fails() -> None:
    after = Recorder()
    observers = Observers([FullDiskError(), after])
    observers.log(STARTED)
    observers.log(NOTICE)
    assert after.records == [STARTED, NOTICE]


def test_one_that_failed_gets_no_further_record() -> None:
    failing = FullDiskError()
    observers = Observers([failing])
    observers.log(STARTED)
    observers.log(NOTICE)
    assert failing.records == [STARTED]


def test_one_that_fails_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    observers = Observers([FullDiskError()])
    observers.log(STARTED)
    observers.log(NOTICE)
    observers.close()
    captured = capsys.readouterr()
    assert captured.err.count("FullDiskError") == 1
    assert captured.err.startswith("warning: ")
    assert captured.err.endswith("OSError: No space left on device\n")
    assert captured.out == ""


def test_one_that_cannot_be_closed_does_not_keep_the_others_open(capsys: pytest.CaptureFixture[str]) -> None:
    after = Recorder()
    Observers([NeverCloses(), after]).close()
    assert after.closed == 1
    assert "NeverCloses" in capsys.readouterr().err


def test_one_that_failed_is_closed_all_the_same() -> None:
    failing = FullDiskError()
    observers = Observers([failing])
    observers.log(STARTED)
    observers.close()
    assert failing.closed == 1


def test_yaml_names_console_tensorboard_and_json_lines() -> None:
    assert set(OBSERVERS) >= {"console", "tensorboard", "json_lines"}
