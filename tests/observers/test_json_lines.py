import json
import math
from pathlib import Path
from typing import Any

import pytest

from cnnlab.engine.records import Contribution, Descent, Metrics, Notice, Record, Started
from cnnlab.observers.json_lines import NAME, WATCHED, JSONLines


def started(directory: Path, step: int = 0) -> Started:
    return Started(directory, step, 10, None, {}, "")


def train(step: int) -> Metrics:
    return Metrics(step, 1, "train", {"loss": 1 / step, "accuracy": 0.5})


def read(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / NAME).read_text().splitlines()]


def log(directory: Path, *records: Record, step: int = 0) -> list[dict[str, Any]]:
    """The lines of a directory's file after a run that starts at `step` and logs the records."""
    observer = JSONLines()
    for record in (started(directory, step), *records):
        observer.log(record)
    observer.close()
    return read(directory)


def test_each_measurement_is_a_line_with_all_bits(tmp_path: Path) -> None:
    lines = log(
        tmp_path,
        train(3),
        Notice("something"),
        Metrics(3, 1, "val", {"loss": 0.1 + 0.2, "accuracy": 0.75}),
        Metrics(3, 1, "test", {"loss": 0.25}, final=True),
    )
    assert lines == [
        {"step": 3, "epoch": 1, "split": "train", "loss": 1 / 3, "accuracy": 0.5},
        {"step": 3, "epoch": 1, "split": "val", "loss": 0.1 + 0.2, "accuracy": 0.75},
        {"step": 3, "epoch": 1, "split": "test", "final": True, "loss": 0.25},
    ]


def test_a_line_is_out_of_the_process_before_the_next_step(tmp_path: Path) -> None:
    observer = JSONLines()
    observer.log(started(tmp_path))
    observer.log(train(1))
    assert len(read(tmp_path)) == 1
    observer.close()


def test_a_resumed_run_cuts_later_and_final_lines_and_appends(tmp_path: Path) -> None:
    lines = [f'{{"step": {step}}}' for step in range(1, 6)] + ['{"step": 2, "final": true}']
    (tmp_path / NAME).write_text("\n".join(lines) + "\n")
    assert [entry["step"] for entry in log(tmp_path, train(7), step=3)] == [1, 2, 3, 7]


@pytest.mark.parametrize("torn", ['{"step": 2, "loss": 0.', "{", "2\n", "{}\n"])
def test_a_line_that_is_torn_or_no_record_is_dropped(tmp_path: Path, torn: str) -> None:
    (tmp_path / NAME).write_text('{"step": 1}\n' + torn)
    assert log(tmp_path, step=3) == [{"step": 1}]
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def descent(step: int) -> Descent:
    contributions = [Contribution("conv1.weight[0, 0, 1, 2]", 0.5, -0.25)]
    return Descent(
        step, 1, 8, 0.5, -0.25, -0.375, 6, 1, {"conv1": 2.0}, {"conv1": 0.01}, {"relu1": 0.5}, {}, {}, contributions
    )


def watch(directory: Path, start: int, *steps: int) -> None:
    observer = JSONLines()
    observer.log(Started(directory, start, 10, None, {}, "", watched=True))
    for step in steps:
        observer.log(descent(step))
    observer.close()


def test_a_watched_update_is_a_line_of_a_file_of_its_own(tmp_path: Path) -> None:
    assert log(tmp_path) == []
    assert not (tmp_path / WATCHED).exists()
    watch(tmp_path, 0, 4)
    assert read(tmp_path) == []
    (line,) = [json.loads(text) for text in (tmp_path / WATCHED).read_text().splitlines()]
    assert line["loss_change"] == -0.25
    assert line["gradient_norm"] == {"conv1": 2.0}
    assert line["contributions"] == [{"name": "conv1.weight[0, 0, 1, 2]", "weight": 0.5, "gradient": -0.25}]


def test_a_resumed_run_cuts_the_watched_updates_too(tmp_path: Path) -> None:
    watch(tmp_path, 0, 2, 4, 6)
    watch(tmp_path, 4, 8)
    assert [json.loads(text)["step"] for text in (tmp_path / WATCHED).read_text().splitlines()] == [2, 4, 8]


def test_numbers_that_json_has_not_are_null(tmp_path: Path) -> None:
    log(tmp_path, Metrics(1, 1, "train", {"loss": math.nan, "gradient_norm": math.inf, "accuracy": 0.5}))
    parsed = json.loads((tmp_path / NAME).read_text(), parse_constant=pytest.fail)
    assert (parsed["loss"], parsed["gradient_norm"], parsed["accuracy"]) == (None, None, 0.5)
