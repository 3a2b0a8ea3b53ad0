from pathlib import Path

import pytest

from cnnlab.engine.records import Notice, Record, Started
from cnnlab.observers import Observers

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


def test_one_that_fails_is_reported_once_and_closed_and_the_others_continue(capsys: pytest.CaptureFixture[str]) -> None:
    failing, after = FullDiskError(), Recorder()
    observers = Observers([failing, after])
    observers.log(STARTED)
    observers.log(NOTICE)
    observers.close()
    assert (failing.records, failing.closed) == ([STARTED], 1)
    assert (after.records, after.closed) == ([STARTED, NOTICE], 1)
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
