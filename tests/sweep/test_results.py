import csv
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cnnlab.sweep.axes import Job
from cnnlab.sweep.objectives import Objective
from cnnlab.sweep.results import (
    Result,
    best_result,
    list_failures,
    pareto_front,
    read_result,
    render_results,
    reported_error,
    write_csv,
)


def job(number: int, **values: str) -> Job:
    return Job(number, (), values or {"seed": str(number)})


def result(number: int, monitor: str | None = "accuracy/val", status: str = "completed", **metrics: float) -> Result:
    """A result with metrics such as `accuracy_val`."""
    by_tag = {name.replace("_", "/"): value for name, value in metrics.items()}
    falls = (monitor or "").startswith("loss")
    return Result(job(number), status, 1.5, "", Path(f"sweep/{number:03d}"), monitor, by_tag, falls)


def write_summary(directory: Path, **content: Any) -> Path:
    directory.mkdir()
    (directory / "summary.json").write_text(json.dumps(content))
    return directory


def text(results: list[Result]) -> list[list[str]]:
    """The words of each line of the table, header first."""
    console = Console(width=300)
    with console.capture() as capture:
        console.print(render_results(results, best=[one.job.number for one in [best_result(results)] if one]))
    return [line.split() for line in capture.get().splitlines() if line.strip() and "──" not in line]


# what a job left


def test_every_metric_of_the_summary_is_read(tmp_path: Path) -> None:
    directory = write_summary(
        tmp_path / "000",
        best={"monitor": "accuracy/val", "step": 3, "epoch": 1, "accuracy/val": 0.9, "loss/val": 0.3, "top5/val": 1.0},
        test={"accuracy": 0.8, "loss": 0.4},
    )
    read = read_result(job(0), "completed", directory, 2.0)
    assert read.metrics == {
        "accuracy/val": 0.9,
        "loss/val": 0.3,
        "top5/val": 1.0,
        "accuracy/test": 0.8,
        "loss/test": 0.4,
    }
    assert (read.monitor, read.directory, read.seconds) == ("accuracy/val", directory, 2.0)


def test_a_run_that_failed_has_no_metrics(tmp_path: Path) -> None:
    read = read_result(job(0), "failed", write_summary(tmp_path / "000", status="failed", error="x"))
    assert (read.metrics, read.monitor) == ({}, None)


def test_a_job_without_a_directory_has_none(tmp_path: Path) -> None:
    assert read_result(job(0), "failed", tmp_path / "000").directory is None


def test_a_line_shows_the_monitored_metric_on_every_split() -> None:
    line = str(result(3, accuracy_val=0.91234, loss_val=0.5, accuracy_test=0.9, loss_test=0.6))
    assert line == "003 seed=3  completed  accuracy/val 0.9123  accuracy/test 0.9000  1.5 s"


def test_a_line_of_a_failure_begins_its_error() -> None:
    line = str(Result(job(1), "failed", 2.0, "2 mistakes in the config:\n  seed: …"))
    assert line == "001 seed=1  failed  2.0 s  2 mistakes in the config:"


# the best


def test_the_highest_accuracy_is_best_and_the_first_of_equals() -> None:
    results = [result(0, accuracy_val=0.8), result(1, accuracy_val=0.9), result(2, accuracy_val=0.9)]
    assert best_result(results) is results[1]


def test_the_lowest_loss_is_best_where_it_is_monitored() -> None:
    results = [
        result(n, "loss/val", loss_val=loss, accuracy_val=1 - loss / 9) for n, loss in enumerate((0.5, 0.2, 0.3))
    ]
    assert best_result(results) is results[1]


def test_jobs_without_metrics_do_not_take_part() -> None:
    results = [result(0, None, "failed"), result(1, accuracy_val=0.1)]
    assert best_result(results) is results[1]


def test_without_a_monitor_in_common_none_is_best() -> None:
    assert best_result([result(0, "accuracy/val", accuracy_val=1), result(1, "loss/val", loss_val=1)]) is None
    assert best_result([result(0, None, accuracy_val=1)]) is None
    assert best_result([result(0, None, "failed")]) is None


def test_a_pruned_trial_is_never_the_best() -> None:
    results = [result(0, status="pruned", accuracy_val=0.9), result(1, accuracy_val=0.8)]
    assert best_result(results, Objective("accuracy/val", True)) is results[1]


def test_an_objective_may_be_a_constant_and_be_minimized() -> None:
    results = [Result(job(n), "completed", constants={"macs": macs}) for n, macs in enumerate((30, 10, 20))]
    assert best_result(results, Objective("macs", False)) is results[1]


def test_the_front_holds_what_nothing_else_is_better_than() -> None:
    points = [(0.9, 5), (0.9, 4), (0.8, 3), (0.7, 3), (0.7, 9), (0.6, 1)]
    results = [
        Result(job(n), "completed", metrics={"accuracy/val": accuracy}, constants={"macs": macs})
        for n, (accuracy, macs) in enumerate(points)
    ]
    failed = Result(job(9), "failed", metrics={"accuracy/val": 1.0}, constants={"macs": 0})
    front = pareto_front([*results, failed], [Objective("accuracy/val", True), Objective("macs", False)])
    assert [one.job.number for one in front] == [1, 2, 5]


# table and CSV


def test_the_table_has_values_and_results() -> None:
    results = [
        result(0, accuracy_val=0.5, accuracy_test=0.25),
        result(1, accuracy_val=0.75, accuracy_test=0.5),
        Result(job(2), "failed"),
    ]
    assert text(results) == [
        ["number", "status", "seed", "accuracy/val", "accuracy/test", "seconds", "directory"],
        ["0", "completed", "0", "0.5000", "0.2500", "1.5", "sweep/000"],
        ["1*", "completed", "1", "0.7500", "0.5000", "1.5", "sweep/001"],
        ["2", "failed", "2", "–"],
    ]


def test_metrics_of_the_test_split_stand_last() -> None:
    assert text([result(0, accuracy_val=1, accuracy_test=1), result(1, accuracy_val=1, loss_val=2)])[0][3:6] == [
        "accuracy/val",
        "loss/val",
        "accuracy/test",
    ]


def test_a_value_with_brackets_is_no_markup() -> None:
    assert text([Result(job(0, **{"data.x": "[red]"}), "completed")])[1][2] == "[red]"


def test_the_csv_is_the_table_with_every_digit(tmp_path: Path) -> None:
    value = 0.1 + 0.2
    first = Result(
        job(0, block="{type:relu,inplace:true}"), "completed", 1.23456, "", Path("s/000"), "m/val", {"m/val": value}
    )
    write_csv([first, Result(job(1, block="gelu"), "failed", error="no place")], tmp_path / "sweep.csv")
    with (tmp_path / "sweep.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["number", "status", "block", "m/val", "seconds", "directory", "error"],
            ["0", "completed", "{type:relu,inplace:true}", "0.30000000000000004", "1.235", "s/000", ""],
            ["1", "failed", "gelu", "", "", "", "no place"],
        ]


# errors


@pytest.mark.parametrize(
    ("log", "error"),
    [
        ("fine\n", ""),
        ("error: one\n", "one"),
        ("error: first\nmore\nerror: last\n", "last"),
        ("error: 2 mistakes:\n  seed: x\n  name: y\nbye\n", "2 mistakes:\n  seed: x\n  name: y"),
        ("the error: of others\n", ""),
    ],
)
def test_the_last_error_of_a_log_is_found(tmp_path: Path, log: str, error: str) -> None:
    (tmp_path / "000.log").write_text(log)
    assert reported_error(tmp_path / "000.log") == error


def test_the_error_of_a_long_and_broken_log_is_found(tmp_path: Path) -> None:
    (tmp_path / "000.log").write_bytes(b"\xff\xfe" * 100_000 + b"\nerror: here\n")
    assert reported_error(tmp_path / "000.log") == "here"


def test_failures_are_listed_with_their_errors() -> None:
    results = [result(0), Result(job(1), "failed", 1.0, "2 mistakes:\n  seed: x"), Result(job(2), "not started")]
    assert list_failures(results) == (
        "2 of 3 jobs did not complete:\n  001 seed=1: failed: 2 mistakes:\n    seed: x\n  002 seed=2: not started"
    )


def test_nothing_is_listed_where_all_completed() -> None:
    assert list_failures([result(0)]) == ""


def test_a_narrow_terminal_gets_fewer_columns() -> None:
    results = [result(number, accuracy_val=0.9, loss_val=0.1, accuracy_test=0.8) for number in range(2)]
    seen = [[str(column.header) for column in render_results(results, width).columns] for width in range(120, 10, -1)]
    assert list(dict.fromkeys(map(tuple, seen))) == [
        ("number", "status", "seed", "accuracy/val", "loss/val", "accuracy/test", "seconds", "directory"),
        ("number", "status", "seed", "accuracy/val", "loss/val", "accuracy/test", "seconds"),
        ("number", "status", "seed", "accuracy/val", "loss/val", "accuracy/test"),
        ("number", "status", "seed", "accuracy/val", "accuracy/test"),
        ("number", "seed", "accuracy/val", "accuracy/test"),
        ("number", "seed", "accuracy/test"),
        ("number", "job", "accuracy/test"),
    ]


def test_a_narrow_terminal_gets_short_keys_and_values() -> None:
    keys = {"model.blocks.conv1.p": "1", "model.blocks.conv2.p": "2", "data.augment": "{flip: horizontal_flip, a: b}"}
    table = render_results([Result(job(1, **keys), "failed")], 60)
    assert [str(column.header) for column in table.columns] == ["number", "status", "conv1.p", "conv2.p", "augment"]
    assert list(table.columns[4].cells) == ["{flip: horizontal_f…"]


def test_a_job_that_failed_first_takes_no_column_from_the_others() -> None:
    results = [Result(job(0), "failed"), result(1, accuracy_val=0.9, loss_val=0.1, accuracy_test=0.8)]
    titles = [str(column.header) for column in render_results(results, 60).columns]
    assert titles == ["number", "status", "seed", "accuracy/val", "accuracy/test"]
