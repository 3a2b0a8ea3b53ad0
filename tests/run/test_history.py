"""What a run measured, as columns."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

import cnnlab
from cnnlab.runtime.errors import ConfigError


def write(folder: Path, *lines: dict[str, Any], end: str = "") -> Path:
    (folder / "config.yaml").write_text("name: run\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + end)
    return folder


def measured(step: int, split: str, **values: Any) -> dict[str, Any]:
    return {"step": step, "epoch": 1, "split": split, **values}


def test_there_is_a_row_for_each_step_and_a_column_for_each_tag(tmp_path: Path) -> None:
    run = write(
        tmp_path,
        measured(2, "train", loss=1.5, lr=0.1),
        measured(4, "train", loss=None, lr=0.2),
        measured(4, "val", loss=1.0, accuracy=0.5, f1=0.25),
        measured(4, "test", final=True, loss=0.75),
    )
    history = cnnlab.history(run)
    assert history.pop("loss/train")[0] == 1.5
    for tag, second in (("loss/val", 1.0), ("accuracy/val", 0.5), ("f1/val", 0.25), ("loss/test", 0.75)):
        first, last = history.pop(tag)
        assert math.isnan(first)
        assert last == second
    assert history == {"step": [2, 4], "epoch": [1, 1], "lr": [0.1, 0.2]}


def test_the_rows_of_one_split_have_no_gaps(tmp_path: Path) -> None:
    run = write(tmp_path, measured(1, "train", loss=3.0), measured(2, "val", loss=2.0), measured(3, "val", loss=1.0))
    assert cnnlab.history(run, "val") == {"step": [2, 3], "epoch": [1, 1], "loss/val": [2.0, 1.0]}


def test_a_line_that_a_kill_cut_short_is_left_out_and_a_damaged_one_refused(tmp_path: Path) -> None:
    run = write(tmp_path, measured(1, "val", loss=3.0), end='{"step": 2, "ep')
    assert cnnlab.history(run)["step"] == [1]
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ConfigError, match=r"metrics\.jsonl: line 1: expected a measurement"):
        cnnlab.history(run)


def test_a_run_without_measurements_has_two_empty_columns(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: run\n")
    assert cnnlab.history(tmp_path) == {"step": [], "epoch": []}


def test_what_is_no_run_or_no_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a run's directory"):
        cnnlab.history(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="did you mean 'val'"):
        cnnlab.history(write(tmp_path), "vall")
