"""`resume=latest` and `resume=auto`, from composing to a resumed run."""

from pathlib import Path

import pytest
from commands import ok, run
from fast_run import read_json, train_fast

from cnnlab.cli import train

pytestmark = pytest.mark.usefixtures("in_tmp_path")


def refusal(*overrides: str) -> str:
    answer = run(train, *overrides)
    assert answer.code == 2
    return answer.err


def test_latest_is_the_greatest_name_with_a_checkpoint() -> None:
    ok(train_fast("run_dir=runs/digits/2026-01-01_00-00-00_aaaa"))
    ok(train_fast("run_dir=runs/digits/2026-01-02_00-00-00_aaaa"))
    Path("runs/digits/2026-01-03_00-00-00_aaaa/checkpoints").mkdir(parents=True)  # killed before its first one
    answer = ok(run(train, "resume=latest"))
    assert "2026-01-02_00-00-00_aaaa is complete" in answer.out
    assert "name=fast" not in answer.err


def test_latest_looks_under_the_name() -> None:
    assert "latest finds no run with a checkpoint" in refusal("resume=latest")
    ok(train_fast("run_dir=runs/mine/2026-01-01"))
    assert "runs/mine/2026-01-01 is complete" in ok(run(train, "resume=latest", "name=mine")).out


def test_auto_starts_a_run_and_then_continues_it_with_the_same_command() -> None:
    command = ("resume=auto", "run_dir=run", "trainer.watch_every=2")
    ok(train_fast(*command))
    assert read_json(Path("run/summary.json"))["status"] == "completed"
    Path("run/summary.json").unlink()
    answer = ok(train_fast(*command))
    assert "resuming after step 6" in answer.out
    assert "run is complete" in ok(train_fast(*command)).out


def test_auto_keeps_what_the_run_was_started_with() -> None:
    ok(train_fast("resume=auto", "run_dir=run"))
    answer = train_fast("resume=auto", "run_dir=run", "optimizer.lr=0.5")
    assert answer.code == 2
    assert "optimizer.lr: the run was started with 0.05" in answer.err


def test_auto_needs_a_place_and_takes_an_empty_one() -> None:
    assert "expected run_dir=PATH" in refusal("resume=auto")
    Path("run").mkdir()
    Path("run/.lock").touch()
    ok(train_fast("resume=auto", "run_dir=run"))
    Path("other").mkdir()
    Path("other/notes.txt").touch()
    assert "exists" in train_fast("resume=auto", "run_dir=other").err
    assert Path("other/notes.txt").exists()
