import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cnnlab.runtime.errors import ConfigError
from cnnlab.sweep import optuna_internals as internals
from cnnlab.sweep.saved_sweep import without_password
from cnnlab.sweep.search import Workers
from cnnlab.sweep.study import build_pruner, cut_torn_line, open_storage, open_study

optuna = pytest.importorskip("optuna")


def study(folder: Path, space: Mapping[str, str] | None = None, metric: str = "accuracy/val") -> Any:
    storage = open_storage(None, folder)
    return open_study(storage, "s", ["maximize"], build_pruner(None), space or {"seed": "1,2"}, [metric])


@pytest.mark.parametrize(("content", "kept"), [(b"a\nb\n", b"a\nb\n"), (b"a\nbc", b"a\n"), (b"abc", b""), (b"", b"")])
def test_a_line_that_a_kill_tore_is_cut(tmp_path: Path, content: bytes, kept: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    cut_torn_line(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == kept


def test_a_long_torn_line_is_cut(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a\n" + b"b" * 10_000)
    cut_torn_line(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"a\n"


def test_a_torn_journal_loses_nothing_that_comes_after(tmp_path: Path) -> None:
    first = internals.new_trial(study(tmp_path), {"owner": "a"})
    with (tmp_path / "study.jsonl").open("ab") as file:
        file.write(b'{"op_code":4,"worker')
    second = internals.new_trial(study(tmp_path), {"owner": "b"})
    assert [trial.number for trial in study(tmp_path).get_trials()] == [first, second] == [0, 1]
    assert [trial.user_attrs["owner"] for trial in study(tmp_path).get_trials()] == ["a", "b"]


HOLDS = """
import sys, time
from pathlib import Path
from cnnlab.sweep.search import Workers
from cnnlab.sweep.study import _journal_lock
workers = Workers(Path(sys.argv[1]))
_journal_lock(Path(sys.argv[1]) / "study.jsonl").acquire()
print(workers.name, flush=True)
time.sleep(600)
"""


def test_what_a_killed_process_held_is_free(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    name = process.stdout.readline().strip()
    own = Workers(tmp_path)
    assert own.is_alive(name)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not own.is_alive(name)
    started = time.monotonic()
    study(tmp_path)  # takes the journal's lock
    assert time.monotonic() - started < 5
    own.leave()
    assert not Workers(tmp_path).is_alive(own.name)


def test_a_study_with_another_space_or_metric_is_not_joined(tmp_path: Path) -> None:
    study(tmp_path)
    study(tmp_path)
    with pytest.raises(ConfigError, match=r"sweep\.study: 's' is in this storage with another space"):
        study(tmp_path, {"seed": "1,2,3"})
    with pytest.raises(ConfigError, match=r"with another metric: expected .'accuracy/val'., received .'loss/val'"):
        study(tmp_path, metric="loss/val")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        ("postgresql+psycopg2://me:se:c@ret@host:5/db", "postgresql+psycopg2://me:***@host:5/db"),
        ("sweep.storage=mysql://:secret@host/db", "sweep.storage=mysql://:***@host/db"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("sqlite:///sweep.db", "sqlite:///sweep.db"),
    ],
)
def test_a_password_is_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_a_storage_that_cannot_be_reached_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        open_storage("nosuchdatabase://me:secret@host/db", tmp_path)
    assert "nosuchdatabase://me:***@host/db cannot be reached" in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("name", ["median", "percentile", "successive_halving", "hyperband"])
def test_a_pruner_goes_by_its_name(name: str) -> None:
    assert name.replace("_", "") in type(build_pruner(name)).__name__.lower()


def test_a_pruners_argument_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"sweep\.pruner\.warmup: median has no argument 'warmup'"):
        build_pruner({"type": "median", "warmup": 3})
    with pytest.raises(ConfigError, match=r"sweep\.pruner: .*between 0 and 100"):
        build_pruner({"type": "percentile", "percentile": 101.0})
