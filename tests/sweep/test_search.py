"""`python train.py -m sweep=tpe …` as a whole; space, settings and study have tests of their own."""

import contextlib
import csv
import importlib
import json
import math
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Answer, ok, run
from fast_run import FAST, read_json
from repetitions import times

import cnnlab
from cnnlab.cli import train
from cnnlab.config.run_config import RunConfig
from cnnlab.run.files import RunDirectory
from cnnlab.run.training import SearchTrial
from cnnlab.runtime.errors import Interrupted, TrainingError
from cnnlab.sweep.trial import TRIAL, running_trial

pytest.importorskip("optuna")
REPOSITORY = Path(__file__).parents[2]
BASIC = "hydra/launcher=basic"  # in this process: faster, where the process does not matter
LR = "optimizer.lr=tag(log, interval(1e-3, 1e-1))"
MLP = ("model=mlp", "observers.tensorboard=null")


def measured(place: Path, width: int) -> dict[str, float]:
    """A step of half a millisecond for each unit; leaves a file that was not there before."""
    (place / "measured").touch(exist_ok=False)
    return {"ms": width / 2}


@pytest.fixture
def pretended(in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs that train nothing: three validations with an accuracy that follows from lr, the best at 0.03."""

    def run_training(config: RunConfig, trial: SearchTrial | None = None) -> None:
        values = config.values
        place = Path(values["resume"] or values["run_dir"])
        directory = RunDirectory(place) if values["resume"] else RunDirectory.create("pretended", place)
        directory.write_text("config.yaml", config.config_yaml())
        lr, width = values["optimizer"]["lr"], values["model"]["blocks"]["hidden1"]["out_features"]
        if beyond := trial and trial.beyond(lambda: measured(place, width)):
            directory.write_json("summary.json", {"status": "pruned", "error": beyond})
            directory.release()
            return
        accuracy = 1 / (1 + abs(math.log10(lr / 0.03)))
        status = "completed"
        for validation in (1, 2, 3):
            if trial is not None and trial.is_hopeless(validation, {"accuracy/val": accuracy * validation / 3}):
                status = "pruned"
                break
        best = {"monitor": "accuracy/val", "lower_is_better": False, "accuracy/val": accuracy, "loss/val": lr}
        test = {"test": {"accuracy": accuracy}} if trial is None else {}
        directory.write_json(
            "summary.json", {"status": status, "step": validation, "best": best, "parameters": width} | test
        )
        directory.release()
        if lr > 1:
            raise TrainingError("the loss of step 1 is not a finite number")

    monkeypatch.setattr("cnnlab.run.training.run_training", run_training)
    monkeypatch.setattr("cnnlab.sweep.figures.draw_figures", lambda *_: [])  # seconds for each search
    return in_tmp_path


def search(*overrides: str, sampler: str = "random") -> Answer:
    return run(train, "-m", BASIC, f"sweep={sampler}", "sweep.n_trials=3", *MLP, *overrides)


def sweep_of(folder: Path) -> Path:
    (sweep,) = (folder / "runs").glob("*/sweep_*")
    return sweep.relative_to(folder)


def rows(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def summaries(sweep: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: read_json(path) for path in sorted(sweep.glob("*/summary.json"))}


def test_a_search_makes_trials_and_measures_the_test_split_with_the_best_alone(in_tmp_path: Path) -> None:
    answer = ok(search(LR, "data.batch_size=16,32", "sweep.n_trials=2", "trainer.max_steps=6"))
    assert answer.out.startswith("search: 2 trials by random to maximize accuracy/val\n")
    sweep = sweep_of(in_tmp_path)
    found = summaries(sweep)
    assert next(iter(found)) == "000_lr0.05_batch_size32"  # the config as it stands
    assert len(found) == 2
    best = max(found, key=lambda name: found[name]["best"]["accuracy/val"])
    assert [name for name, summary in found.items() if "test" in summary] == [best]
    assert f"* best by accuracy/val: {sweep}/{best}\n" in answer.out
    table = rows(sweep)
    assert list(table[0])[:4] == ["number", "status", "optimizer.lr", "data.batch_size"]
    assert [row["number"] for row in table] == ["0", "1"]
    for row, (name, summary) in zip(table, found.items(), strict=True):
        assert Path(row["directory"]).name == name
        assert float(row["accuracy/val"]) == summary["best"]["accuracy/val"]
    # it can be run again, as a command or as an experiment
    again = cnnlab.compose("experiment=best", config_dir=sweep / "configs")
    assert RunConfig(again).digest(()) == RunConfig.read(sweep / best).digest(())
    (line,) = (line for line in answer.out.splitlines() if line.startswith("  again "))
    assert f"optimizer.lr={table[int(best[:3])]['optimizer.lr']} data.batch_size=" in line
    assert {path.name for path in (sweep / "figures").iterdir()} >= {"history.png", "slice.png"}
    # the trials are plain runs: nothing of the search is in their configs
    config = yaml.safe_load((sweep / best / "config.yaml").read_text())
    assert "sweep" not in config
    overrides = yaml.safe_load((sweep / best / "overrides.yaml").read_text())
    assert [one for one in overrides if one.lstrip("+").startswith(("sweep", "hydra"))] == []


def test_a_search_is_resumed_as_it_was(pretended: Path) -> None:
    ok(search(LR, "sweep.n_trials=2"))
    sweep = sweep_of(pretended)
    before = rows(sweep)
    for change, message in (
        ("optimizer.lr=interval(0,1)", "optimizer.lr: a resumed sweep keeps its configs and its space"),
        ("sweep.metric=loss/val", "sweep.metric: a resumed sweep keeps"),
        ("-m", "is a sweep: expected no -m beside it"),
        ("sweep.n_trials=0", "sweep.n_trials: expected a whole number"),
    ):
        answer = run(train, f"resume={sweep}", BASIC, change)
        assert (answer.code, message in answer.err) == (2, True), answer.err
    ok(run(train, f"resume={sweep}", BASIC, "sweep.n_trials=3"))
    after = rows(sweep)
    assert [row["optimizer.lr"] for row in after[:2]] == [row["optimizer.lr"] for row in before]
    assert len({row["optimizer.lr"] for row in after}) == 3

    # what may run code is not taken from a directory that may be a stranger's
    assert "repeat it" in run(train, f"resume={sweep}").err  # hydra/launcher=basic
    saved = (sweep / "sweep.yaml").read_text()
    (sweep / "sweep.yaml").write_text(saved.replace("hydra:\n", "hydra:\n- +hydra.callbacks.x._target_=os.abort\n"))
    answer = run(train, f"resume={sweep}", BASIC)
    assert answer.code == 2
    assert "+hydra.callbacks.x._target_=os.abort, which may name code" in answer.err

    # and with other YAML, the rest would be another search
    (sweep / "sweep.yaml").write_text(saved.replace("momentum: 0.9", "momentum: 0.8"))
    answer = run(train, f"resume={sweep}", BASIC)
    assert answer.code == 2
    assert "was started with another optimizer.momentum: expected 0.8, received 0.9; a new sweep" in answer.err


def test_a_trial_that_fails_is_recorded_and_the_search_continues(pretended: Path) -> None:
    answer = ok(search("optimizer.lr=1e30,0.01", "sweep.n_trials=4", sampler="tpe"))
    statuses = {row["optimizer.lr"]: (row["status"], row["error"]) for row in rows(sweep_of(pretended))}
    assert statuses["0.01"] == ("completed", "")
    assert statuses["1e30"][0] == "failed"
    assert "is not a finite number" in statuses["1e30"][1]
    assert "of 4 jobs did not complete" in answer.err


def test_hopeless_trials_are_pruned(pretended: Path) -> None:
    answer = ok(search(LR, "sweep.pruner={type: median, n_startup_trials: 1}", "sweep.n_trials=4"))
    found = summaries(sweep_of(pretended))
    assert [row["status"] for row in rows(sweep_of(pretended))] == [one["status"] for one in found.values()]
    values = [one["best"]["accuracy/val"] for one in found.values()]
    below = [n for n in range(1, 4) if values[n] < statistics.median(values[:n])]
    assert [n for n, one in enumerate(found.values()) if one["status"] == "pruned"] == below
    assert below
    assert "did not complete" not in answer.err


def test_trials_beyond_the_budget_are_refused_and_cost_nothing(pretended: Path) -> None:
    """64 inputs, w units, 64 units, 10 outputs: 65 w + 64 (w + 1) + 650 parameters, of which 9 units make 1,875."""
    ok(search("model.blocks.hidden1.out_features=8,9,64", "sweep.budget.parameters=1874", "sweep.n_trials=6"))
    sweep = sweep_of(pretended)
    found = {(row["model.blocks.hidden1.out_features"], row["status"]) for row in rows(sweep)}
    assert found == {("8", "completed"), ("9", "pruned"), ("64", "pruned")}
    errors = {row["error"] for row in rows(sweep) if row["model.blocks.hidden1.out_features"] == "9"}
    assert errors == {"beyond sweep.budget.parameters=1,874: the network has 1,875"}
    assert len(summaries(sweep)) == sum(row["status"] == "completed" for row in rows(sweep))


def test_trials_whose_step_takes_too_long_are_refused(pretended: Path) -> None:
    ok(search("model.blocks.hidden1.out_features=8,9,64", "sweep.budget.ms=4", "sweep.n_trials=6"))
    found = {
        row["model.blocks.hidden1.out_features"]: (row["status"], row["error"]) for row in rows(sweep_of(pretended))
    }
    assert found == {
        "8": ("completed", ""),
        "9": ("pruned", "beyond sweep.budget.ms=4: a training step takes 4.5 ms"),
        "64": ("pruned", "beyond sweep.budget.ms=4: a training step takes 32 ms"),
    }


@pytest.mark.slow
def test_the_time_of_a_step_is_a_metric_that_is_measured_once(pretended: Path) -> None:
    ok(search("model.blocks.hidden1.out_features=8,64", LR, "sweep.metric=[accuracy/val, ms]", "sweep.n_trials=4"))
    sweep = sweep_of(pretended)
    assert {(row["model.blocks.hidden1.out_features"], row["ms"]) for row in rows(sweep)} <= {
        ("8", "4.0"),
        ("64", "32.0"),
    }
    again = running_trial({TRIAL: f"0:{sweep}"})
    assert again
    assert again.beyond(lambda: pytest.fail("measured again")) is None


def test_memory_is_a_budget_on_cuda_alone(pretended: Path) -> None:
    answer = search(LR, "sweep.budget.memory=100", "device=cpu")
    assert answer.code == 2
    assert "sweep.budget.memory: it is measured on CUDA" in answer.err


@pytest.mark.slow
def test_several_objectives_have_a_front(pretended: Path) -> None:
    metric = "sweep.metric=[accuracy/val,parameters]"
    axes = ("model.blocks.hidden1.out_features=range(8,64)", LR)
    answer = ok(search(*axes, metric, "sweep.n_trials=4", sampler="tpe"))
    assert "to maximize accuracy/val and minimize parameters" in answer.out
    points = {row["number"]: (float(row["accuracy/val"]), -int(row["parameters"])) for row in rows(sweep_of(pretended))}
    front = {
        number
        for number, point in points.items()
        if not any(a >= point[0] and b >= point[1] and (a, b) != point for a, b in points.values())
    }
    assert {line.split("*")[0].strip() for line in answer.out.splitlines() if re.match(r" \d+\*", line)} == front
    tested = {row["number"] for row in rows(sweep_of(pretended)) if row["accuracy/test"]}
    assert tested == front


@pytest.mark.slow
def test_a_space_can_stand_in_yaml(pretended: Path) -> None:
    (pretended / "mine" / "experiment").mkdir(parents=True)
    (pretended / "mine" / "experiment" / "widths.yaml").write_text(
        "# @package _global_\ndefaults:\n  - debug/fast\n  - override /sweep: random\n  - override /model: mlp\n"
        "sweep:\n  n_trials: 2\n  space:\n    model.blocks.hidden1.out_features: '8,16'\n"
        "    optimizer.dampening: interval(0, 0.1)\n"
    )
    ok(run(train, "--config-dir", "mine", "-m", BASIC, "experiment=widths", "optimizer.nesterov=false"))
    table = rows(sweep_of(pretended))
    assert list(table[0])[2:4] == ["model.blocks.hidden1.out_features", "optimizer.dampening"]
    assert len(table) == 2


def test_an_interrupted_grid_runs_what_is_left(pretended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[float] = []
    pretend = importlib.import_module("cnnlab.run.training").run_training

    def interrupted(config: RunConfig, trial: SearchTrial | None = None) -> None:
        ran.append(config.values["optimizer"]["lr"])
        if len(ran) == 2:
            raise Interrupted(signal.SIGTERM)
        pretend(config, trial)

    monkeypatch.setattr("cnnlab.run.training.run_training", interrupted)
    assert run(train, "-m", BASIC, *MLP, "optimizer.lr=0.01,2,0.03,0.04").code == 143
    sweep = sweep_of(pretended)
    assert [row["status"] for row in rows(sweep)] == ["completed", *["not started"] * 3]
    ran.append(0)
    answer = run(train, f"resume={sweep}", BASIC)
    assert answer.code == 1  # lr=2 fails
    assert ran == [0.01, 2, 0, 2, 0.03, 0.04]
    assert [row["status"] for row in rows(sweep)] == ["completed", "failed", "completed", "completed"]
    assert run(train, f"resume={sweep}", BASIC).code == 1
    assert len(ran) == 6  # what has failed is not tried again


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("optimizer.lrr=interval(0,1)",), "optimizer.lrr: sgd has no argument 'lrr'; did you mean 'lr'?"),
        (("trainer.epoch=range(1,3)",), "trainer.epoch: there is no such key; did you mean 'epochs'?"),
        ((LR, "model.blocks.conv1.out_channels=8,16"), "there is no 'conv1' here"),
        (("model.blocks.hidden1.out_features=range(0,8)",), "out_features=0: model.blocks.hidden1.out_features"),
        ((LR, "sweep.pruner=medain"), "sweep.pruner: there is no pruner 'medain'; did you mean 'median'?"),
        ((LR, "sweep.sampler=tep"), "sweep.sampler: there is no sampler 'tep'; did you mean 'tpe'?"),
        ((LR, "sweep.storage=sqlite:////nonexistent/x.db"), "sqlite:////nonexistent/x.db cannot be reached"),
        ((LR, "sweep.sampler=cmaes", "sweep.metric=[loss/val,macs]"), "cmaes takes one metric"),
        ((LR, "sweep.seed=0,1"), "sweep.seed: expected one value"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_written(
    in_tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    answer = search(*overrides)
    assert (answer.code, message in answer.err) == (2, True), answer.err
    assert "Traceback" not in answer.err
    assert not (in_tmp_path / "runs").exists()


def test_a_single_run_has_no_search(in_tmp_path: Path) -> None:
    answer = run(train, "sweep=tpe")
    assert answer.code == 2
    assert "sweep: a single run has none: expected -m beside it" in answer.err
    assert "secret" not in run(train, "sweep.storage=postgresql://me:secret@host/db").err


def test_without_optuna_a_search_names_the_extra(in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    answer = search(LR)
    assert (answer.code, answer.err.strip()) == (
        2,
        "error: sweep: a search needs Optuna: pip install 'cnnlab[sweep]'",
    )


# kills


def start(folder: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, str(REPOSITORY / "train.py"), *arguments]
    with (folder / "out.txt").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)


KINDS = {
    "tpe": ("sweep=tpe", "optimizer.lr=tag(log, interval(1e-3, 1e-1))", f"sweep.n_trials={times(2, 6)}"),
    "grid": (f"optimizer.lr=0.01,0.05{times(0, 1) * ',0.1,0.02,0.03'}",),
}


def kill(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for(pattern: str, folder: Path, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob(pattern)):
        assert time.monotonic() < deadline
        assert process.poll() is None, (folder / "out.txt").read_text()
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.torture(figure="sweeps")
@pytest.mark.parametrize(("kind", "at_once"), [("tpe", 2), ("grid", 1), ("tpe", 1), ("grid", 2)][: times(1, 4)])
def test_a_sweep_killed_at_any_time_is_resumed_whole(
    tmp_path: Path, kind: str, at_once: int, record_property: Callable[[str, object], None]
) -> None:
    """The process group is killed: once when a trial has a checkpoint, then at random times."""
    arguments = ("-m", FAST, *MLP, "trainer.checkpoint_every=1", f"hydra.launcher.n_jobs={at_once}", *KINDS[kind])
    process = start(tmp_path, *arguments)
    wait_for("runs/*/*/*/checkpoints/step-*", tmp_path, process)
    kill(process)
    (sweep,) = tmp_path.glob("runs/*/sweep_*")
    moments = random.Random(f"{kind} {at_once}")
    for _ in range(times(0, 20)):
        process = start(tmp_path, f"resume={sweep}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=moments.uniform(0, 20))
        kill(process)
    process = start(tmp_path, f"resume={sweep}")
    assert process.wait(timeout=300) == 0, (tmp_path / "out.txt").read_text()
    table = rows(sweep)
    count = int(table[-1]["number"]) + 1
    assert [row["status"] for row in table] == ["completed"] * count
    assert len({row["optimizer.lr"] for row in table}) == len(summaries(sweep)) == count
    for name in summaries(sweep):
        lines = [json.loads(line) for line in (sweep / name / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if line["split"] == "val"] == [3, 6]
    record_property("count", 1 + times(0, 20))


@pytest.mark.slow
def test_two_processes_share_a_storage_and_double_no_trial(tmp_path: Path) -> None:
    arguments = ("-m", FAST, *MLP, "sweep=tpe", LR, "sweep.n_trials=6", "sweep.storage=sqlite:///shared.db")
    processes = [start(tmp_path, *arguments, f"hydra.sweep.dir={name}") for name in "ab"]
    assert [process.wait(timeout=300) for process in processes] == [0, 0], (tmp_path / "out.txt").read_text()
    names = sorted(path.parent.name for name in "ab" for path in (tmp_path / name).glob("*/summary.json"))
    assert [name[:3] for name in names] == ["000", "001", "002", "003", "004", "005"]
    tested = [path for path in tmp_path.glob("[ab]/*/summary.json") if "test" in read_json(path)]
    assert len(tested) == 1
    tables = [rows(tmp_path / name) for name in "ab"]  # one process ended first: its table lacks a result
    last = next(table for table in tables if all(row["accuracy/val"] for row in table))
    assert max(last, key=lambda row: float(row["accuracy/val"]))["directory"] in str(tested[0])
