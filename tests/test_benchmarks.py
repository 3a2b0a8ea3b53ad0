"""How is measured, that contestants do the same work, and that what is claimed follows from what was measured."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from measuring import Contestant, check_same_work, measure, run_once, seconds_until, summary_of
from report import (
    BEGIN,
    END,
    GROWTH,
    README,
    RESULTS,
    growth_figure,
    read_results,
    report,
    speed_rows,
    speed_tables,
    with_table,
)
from run import main, name_folders_absolutely, with_overrides
from setting import build
from suites import BENCHMARKS, CONFIGS, CONTESTANTS, Benchmark

import cnnlab
from cnnlab.components import Trust
from cnnlab.config.check import check_config
from cnnlab.config.run_plan import RunPlan
from cnnlab.config.saved_config import resolved


def contestant(name: str, code: str, **more: object) -> Contestant:
    return Contestant(name, (sys.executable, "-c", code), **more)


def test_the_table_of_the_readme_follows_from_the_results() -> None:
    assert README.read_text().split(BEGIN)[1].split(END)[0] == speed_tables()


@pytest.mark.parametrize("readme", sorted(RESULTS.rglob("README.md")), ids=str)
def test_the_tables_of_the_results_follow_from_the_results(readme: Path) -> None:
    assert readme.read_text(encoding="utf-8") == report(read_results(readme.parent))


def result(**microseconds: float) -> dict[str, Any]:
    """Of contestants in this order, each measured once."""
    contestants = [contestant(name, "") for name in microseconds]
    machine = {"cpu": "CPU", "cores": 2, "threads": 1, "load": 0.5}
    return {
        "machine": machine,
        "repeats": 1,
        "contestants": summary_of(contestants, [[{"step_us": value}] for value in microseconds.values()]),
    }


def test_a_row_gives_how_many_times_the_first_contestants_figure_each_needs() -> None:
    measured = {"loop": 400, "cnnlab": 200, "Lightning": 1000, "Lightning, 2 workers": 900}
    rows = speed_rows("CPU", {"tiny": result(**measured)})
    assert rows == [["784-30-10 sigmoid, a step of 10 images, CPU", "400 µs", "–", "2.25 ×", "–", "**0.50 ×**"]]


def test_a_new_table_takes_the_place_of_the_old_one_alone() -> None:
    assert with_table(f"a\n{BEGIN}old\n{END}\nb", "new\n") == f"a\n{BEGIN}new\n{END}\nb"


def test_growth_has_a_panel_with_each_contestants_medians_for_each_axis() -> None:
    rates = {"A": 100.0, "B": 300.0, "C": 500.0, "D": 700.0}
    entries = [
        {"name": name, "at": at, "runs": [{"images_per_second": rate}], "median": {"images_per_second": rate}}
        for name, rate in rates.items()
        for at in (8, 32)
    ]
    panels = growth_figure({name: {"contestants": entries} for name in GROWTH}).axes
    assert [(panel.get_title(), panel.get_xlabel()) for panel in panels] == list(GROWTH.values())
    lines = {line.get_label(): line.get_xydata().tolist() for line in panels[0].get_lines()}
    assert lines == {name: [[8, rate], [32, rate]] for name, rate in rates.items()}


def test_every_result_is_of_a_benchmark() -> None:
    assert {path.stem for path in RESULTS.rglob("*.json")} <= set(BENCHMARKS)


def test_contestants_take_turns_in_fresh_processes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = "import os; print('{}', os.getpid(), file=open({!r}, 'a'))"
    measure([contestant(name, code.format(name, str(log))) for name in "AB"], repeats=3)
    names, processes = zip(*(line.split() for line in log.read_text().splitlines()), strict=True)
    assert "".join(names) == "ABABAB"
    assert len(set(processes)) == 6


def test_every_repetition_has_a_seed_and_an_empty_folder_of_its_own() -> None:
    code = "import os, json; print(json.dumps({'round': {round}, 'files': len(os.listdir('{folder}'))}))"
    [runs] = measure([contestant("A", code)], repeats=2)
    assert [figures["round"] for figures in runs] == [0, 1]
    assert [figures["files"] for figures in runs] == [1, 1]  # its log


def test_seconds_are_those_of_the_process() -> None:
    nothing, long = (
        run_once(contestant("A", code), 0)["command_seconds"] for code in ("", "import time; time.sleep(0.5)")
    )
    assert 0.5 < long < 0.5 + 100 * nothing


def test_peak_memory_is_that_of_the_process() -> None:
    code = (
        "import sys; from measuring import Contestant, run_once\n"
        "for code in ('', 'x = bytes(range(256)) * (200 << 12)'):\n"
        "    print(run_once(Contestant('A', (sys.executable, '-c', code)), 0)['peak_mb'])"
    )  # not from here: Linux counts the memory of whoever starts a process
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, cwd=CONTESTANTS.parent, capture_output=True, text=True, check=True)
    nothing, much = map(float, answer.stdout.split())
    assert much - nothing == pytest.approx(200, abs=10)


def test_a_contestant_that_fails_is_quoted() -> None:
    with pytest.raises(RuntimeError, match=r"A ended with 3:\nno such file"):
        run_once(contestant("A", "print('no such file'); exit(3)"), 0)


def test_an_exit_status_that_is_expected_is_no_failure() -> None:
    assert run_once(contestant("A", "exit(2)", exit_status=2), 0)["command_seconds"] > 0


def test_contestants_that_do_other_work_are_not_compared() -> None:
    contestants = [contestant("A", "", at=1), contestant("B", "", at=1), contestant("C", "", at=2)]
    check_same_work(contestants, [[{"parameters": 5}], [{"parameters": 5}], [{"parameters": 6}]])
    with pytest.raises(RuntimeError, match="do not do the same work: parameters"):
        check_same_work(contestants, [[{"parameters": 5}], [{"parameters": 6}], [{"parameters": 6}]])
    with pytest.raises(RuntimeError, match="steps"):
        check_same_work(contestants, [[{"steps": 5}], [{"steps": 6}], [{}]])


def test_a_ratio_is_the_median_of_the_quotients_of_each_round() -> None:
    contestants = [contestant("A", ""), contestant("B", "")]
    entries = summary_of(contestants, [[{"s": 1.0}, {"s": 2.0}, {"s": 10.0}], [{"s": 2.0}, {"s": 2.0}, {"s": 30.0}]])
    assert [entry["median"]["s"] for entry in entries] == [2.0, 2.0]
    assert entries[1]["ratio"]["s"] == 2.0  # of 2, 1 and 3


def test_a_ratio_is_to_the_first_at_the_same_point() -> None:
    contestants = [contestant(name, "", at=at) for at in (1, 2) for name in "AB"]
    entries = summary_of(contestants, [[{"s": 1.0}], [{"s": 3.0}], [{"s": 4.0}], [{"s": 8.0}]])
    assert [entry["ratio"]["s"] for entry in entries] == [1.0, 3.0, 1.0, 2.0]


def test_the_seconds_until_an_accuracy_are_of_training_before_that_validation() -> None:
    records = [
        {"split": "train", "seconds": 1.0, "accuracy": 1.0},
        {"split": "val", "accuracy": 0.98},
        {"split": "train", "seconds": 2.0, "accuracy": 1.0},
        {"split": "val", "accuracy": 0.991},
    ]
    assert seconds_until(records, 0.99) == 2.0
    assert seconds_until(records, 0.993) is None


def own_overrides() -> list[tuple[str, ...]]:
    """Of the last command of cnnlab's in each benchmark on MNIST: of growing networks, the largest."""
    commands = {
        name: one.command
        for name, benchmark in BENCHMARKS.items()
        for one in benchmark.contestants()
        if "--config-dir" in one.command
    }
    return [tuple(word for word in command[4:] if "{" not in word) for command in commands.values()]


def plan(overrides: tuple[str, ...]) -> RunPlan:
    return check_config(resolved(cnnlab.compose(*overrides, config_dir=CONFIGS)), Trust())


@pytest.mark.parametrize("overrides", own_overrides(), ids=" ".join)
def test_a_run_that_is_measured_is_legal(overrides: tuple[str, ...]) -> None:
    assert plan(overrides).steps_per_epoch > 0


@pytest.mark.parametrize(
    ("network", "width", "depth", "overrides"),
    [
        ("cnn", 16, 0, ["model=cnn"]),
        ("cnn", 16, 3, ["model=deep_cnn", "model.blocks.more.repeat=3"]),
        ("cnn", 4, 0, ["model=cnn", *(f"model.blocks.conv{n}.out_channels={4 * 2 ** (n - 1)}" for n in (1, 2, 3))]),
        ("normed_mlp", 16, 0, ["model=normed_mlp"]),
        ("sigmoid", 16, 0, ["experiment=book/c1-30"]),
    ],
)
def test_the_networks_by_hand_are_those_of_the_configs(
    network: str, width: int, depth: int, overrides: list[str]
) -> None:
    own = plan(("data=mnist", *overrides)).network.build().eval()
    other = build(network, width, depth).eval()
    names, values = list(other.state_dict()), own.state_dict().values()
    other.load_state_dict(dict(zip(names, values, strict=True)))
    x_NCHW = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(own(x_NCHW), other(x_NCHW))


def run_benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CONTESTANTS.parent / "run.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_each_run_of_cnnlabs_comes_once_more_with_other_overrides() -> None:
    contestants = [contestant("by hand", ""), contestant("cnnlab", "")]
    added = with_overrides(contestants, ["trainer.clip_norm=1", "seed=3"])[2:]
    assert [one.name for one in added] == ["cnnlab, trainer.clip_norm=1 seed=3"]
    assert list(added[0].command) == [*contestants[1].command, "trainer.clip_norm=1", "seed=3"]
    assert with_overrides(contestants, []) == contestants


def test_results_are_kept_on_request_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}old\n{END}")
    for name, path in {"RESULTS": tmp_path / "cpu", "RESULTS_ON_CUDA": tmp_path / "gpu", "README": readme}.items():
        monkeypatch.setattr(f"report.{name}", path)
    measured = Benchmark("nothing", lambda: [contestant("A", "")], ("command_seconds",))
    monkeypatch.setattr("run.BENCHMARKS", {"start": measured})
    machine = {"cpu": "CPU", "cores": 2, "threads": 1, "memory_gb": 4, "load": 0.5, "gpu": None}
    monkeypatch.setattr("run.machine", lambda: machine)
    monkeypatch.setattr("run.versions", dict)
    main(["start"], 1, [], write=False)
    assert re.search(r"\| A \| [\d.]+ s \|", capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == [readme]
    assert "old" in readme.read_text()
    main(["start"], 1, [], write=True)
    assert [path.suffix for path in tmp_path.rglob("start.*")] == [".json"]
    assert "old" not in readme.read_text()


def test_a_benchmark_that_fails_leaves_the_others_to_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = Benchmark("nothing", lambda: [contestant("A", "exit(1)")], ())
    monkeypatch.setattr("run.machine", lambda: {"gpu": None})
    monkeypatch.setattr("run.BENCHMARKS", {"one": failing, "two": failing})
    assert main([], 1, [], False) == 2
    assert re.findall("error: (.*): A ended with 1", capsys.readouterr().err) == ["one", "two"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["nope"], "expected one of cnn, mlp"), (["cnn", "--repeats", "0"], "a whole number of 1 or more, received 0")],
)
def test_what_cannot_be_measured_is_refused(arguments: list[str], expected: str) -> None:
    answer = run_benchmarks(*arguments)
    assert answer.returncode == 2
    assert expected in answer.stderr


def test_folders_are_found_from_wherever_a_contestant_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CNNLAB_DATA", "../data")
    monkeypatch.delenv("CNNLAB_JPEGS", raising=False)
    name_folders_absolutely()
    assert os.environ["CNNLAB_DATA"] == str(tmp_path.parent / "data")
    assert "CNNLAB_JPEGS" not in os.environ
