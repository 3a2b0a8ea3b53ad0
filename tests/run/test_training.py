import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import Answer, ok, run
from fast_run import FAST, read_json, train_fast
from omegaconf import OmegaConf
from screens import HIDE_CURSOR, SHOW_CURSOR, on_a_terminal
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import cnnlab
from cnnlab.cli import evaluate, train
from cnnlab.config.run_config import RunConfig
from cnnlab.data.source import Images
from cnnlab.engine import evaluation
from cnnlab.engine.backends import cuda_graph
from cnnlab.engine.backends.cuda_graph import Captured
from cnnlab.engine.checkpoint import read_checkpoint
from cnnlab.engine.schedule import one_cycle
from cnnlab.engine.step import forward_backward
from cnnlab.engine.trainer import Trainer
from cnnlab.run.files import RunDirectory
from cnnlab.run.process_state import the_only_training
from cnnlab.run.resuming import Resumption, prepare_resume
from cnnlab.run.training import run_training
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.errors import ConfigError

WEIGHTS = "checkpoints/step-00000006/model.safetensors"


def metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def steps(path: Path, split: str) -> list[int]:
    return [entry["step"] for entry in metrics(path) if entry["split"] == split]


def resume(path: Path, *overrides: str) -> Answer:
    return run(train, f"resume={path}", *overrides)


def saved(path: Path) -> dict[str, Any]:
    content = yaml.safe_load((path / "config.yaml").read_text())
    assert isinstance(content, dict)
    return content


def refused(answer: Answer, *fragments: str) -> bool:
    """Whether it was refused in one message with all fragments."""
    assert answer.code == 2, answer.err
    assert [fragment for fragment in fragments if fragment not in answer.err] == [], answer.err
    return answer.err.startswith("error: ")


# what a run leaves


def test_a_run_directory_holds_what_is_promised(completed_run: Path) -> None:
    names = [path.name for path in completed_run.iterdir() if not path.name.startswith(".")]
    files = "checkpoints config.yaml environment.json metrics.jsonl model.svg model.txt overrides.yaml"
    assert sorted(name for name in names if not name.startswith("events.out.tfevents.")) == [
        *files.split(),
        "report.html",
        "summary.json",
        "val",
    ]
    assert len(names) == 11  # and one file of events
    assert "conv1" in (completed_run / "model.txt").read_text()
    overrides = yaml.safe_load((completed_run / "overrides.yaml").read_text())
    assert overrides == ["experiment=debug/fast", f"run_dir={completed_run}"]
    environment = read_json(completed_run / "environment.json")
    assert environment["torch"].startswith("2.")
    assert (environment["precision"], environment["resident"]) == ("fp32", True)
    assert environment["workers"] >= 1
    assert len(environment["data_digest"]) == 64


def test_the_config_keeps_interpolations_and_nothing_of_one_command(
    in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    ok(train_fast("run_dir=run", "name=${oc.env:SECRET}", "trust=[some.Class]"))
    config = saved(in_tmp_path / "run")
    assert config["name"] == "${oc.env:SECRET}"
    assert "hydra" not in config
    assert (config["run_dir"], config["resume"], config["trust"]) == (None, None, [])
    files = [*in_tmp_path.glob("run/*.yaml"), *in_tmp_path.glob("run/*.json*")]
    assert not [path for path in files if "hunter2" in path.read_text()]


def test_of_two_jobs_that_continue_or_start_a_run_the_second_is_refused(in_tmp_path: Path) -> None:
    """Whether the first has just made its directory, or has begun to train."""
    job = ("run_dir=run", "resume=auto")
    first = RunDirectory.create("fast", Path("run"))
    refused = train_fast(*job)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "run_dir: " in refused.err
    assert "exists" in refused.err
    first.release()
    ok(train_fast(*job))
    again = RunDirectory.open(Path("run"), "resume")
    again.lock()
    refused = train_fast(*job)
    again.release()
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "resume: run is in use by process" in refused.err


def test_every_record_is_a_line(completed_run: Path) -> None:
    assert steps(completed_run, "train") == [2, 4, 6]
    assert steps(completed_run, "val") == [3, 6]
    assert [entry["split"] for entry in metrics(completed_run) if entry.get("final")] == ["test"]
    assert (metrics(completed_run)[-1]["split"], metrics(completed_run)[-1]["step"]) == ("test", 6)
    assert all({"step", "epoch", "split", "loss", "accuracy"} <= entry.keys() for entry in metrics(completed_run))


def test_the_summary_records_how_it_ended_and_the_best_validation(completed_run: Path) -> None:
    summary = read_json(completed_run / "summary.json")
    assert (summary["status"], summary["step"], summary["monitor_test"]) == ("completed", 6, False)
    measured = summary["train"]
    assert measured["images_per_second"] == pytest.approx(measured["images"] / measured["seconds"])
    values = {entry["step"]: entry["accuracy"] for entry in metrics(completed_run) if entry["split"] == "val"}
    assert summary["best"]["accuracy/val"] == values[summary["best"]["step"]] == max(values.values())


def test_a_run_without_run_dir_lies_under_its_name_and_the_outcome_is_printed(in_tmp_path: Path) -> None:
    answer = train_fast("name=mine")
    (path,) = (summary.parent for summary in Path("runs/mine").glob("*/summary.json"))
    assert "test accuracy" in answer.out
    assert f"completed: {path}" in answer.out
    assert f"evaluate.py run={path}" in answer.out


def test_the_same_seed_gives_the_same_bits_and_another_does_not(completed_run: Path, in_tmp_path: Path) -> None:
    for seed in (0, 1):
        train_fast(f"run_dir=seed{seed}", f"seed={seed}")
    same, other = ((in_tmp_path / name / WEIGHTS).read_bytes() for name in ("seed0", "seed1"))
    assert same == (completed_run / WEIGHTS).read_bytes() != other


# failing


def test_a_run_whose_loss_explodes_reports_its_step_and_releases_its_lock(in_tmp_path: Path) -> None:
    answer = train_fast("run_dir=run", "optimizer.lr=1e30")
    assert answer.code == 1
    assert answer.err.startswith("error: the loss of step ")
    assert "is not a finite number" in answer.err
    summary = read_json(in_tmp_path / "run" / "summary.json")
    assert summary["status"] == "failed"
    assert "is not a finite number" in summary["error"]
    directory = RunDirectory(in_tmp_path / "run")
    directory.lock()
    directory.release()


# resuming

LONGER = ("trainer.max_steps=9", "schedule.total_steps=6")


def test_a_lengthened_run_is_one_that_was_that_long(in_tmp_path: Path) -> None:
    path = in_tmp_path / "run"
    train_fast("run_dir=run", "schedule=constant")
    ok(resume(path, "trainer.max_steps=9"))
    assert [steps(path, split) for split in ("train", "val", "test")] == [[2, 4, 6, 8, 9], [3, 6, 9], [9]]
    assert saved(path)["trainer"]["max_steps"] == 9
    assert "trainer.max_steps=9" in yaml.safe_load((path / "overrides.yaml").read_text())
    train_fast("run_dir=long", "schedule=constant", "trainer.max_steps=9")
    weights = WEIGHTS.replace("6", "9")
    assert (path / weights).read_bytes() == (in_tmp_path / "long" / weights).read_bytes()


def test_another_length_is_refused_where_the_schedule_depends_on_it(finished: Path) -> None:
    command = f"resume={finished} trainer.max_steps=12 schedule.restart=true"
    assert refused(resume(finished, "trainer.max_steps=12"), "trainer: ", "'one_cycle' was made for 6 steps", command)


def test_a_restarted_schedule_begins_a_new_cycle_at_the_checkpoint(finished: Path) -> None:
    answer = ok(resume(finished, "trainer.max_steps=12", "schedule.restart=true"))
    assert "one_cycle starts anew after step 6 and ends at step 12" in answer.out
    assert saved(finished)["schedule"]["restarts"] == [6]
    assert "restart" not in saved(finished)["schedule"]
    factor = one_cycle(total_steps=6)
    rates = {line["step"]: line["lr"] for line in metrics(finished) if line["split"] == "train"}
    assert rates == {step: pytest.approx(0.05 * factor((step - 1) % 6)) for step in (2, 4, 6, 8, 10, 12)}


def test_a_restart_needs_a_longer_run(finished: Path) -> None:
    before = saved(finished)
    assert refused(resume(finished, "schedule.restart=true"), "schedule.restarts: ", "before the run's end at step 6")
    assert saved(finished) == before


def test_a_completed_run_that_is_resumed_is_left_as_it_is(finished: Path) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in finished.rglob("*") if path.is_file() and path.name != ".lock"}

    before = contents()
    answer = ok(resume(finished, "trainer.log_every=1"))
    assert contents() == before
    assert "is complete: there is nothing left to train" in answer.out


def test_a_run_that_was_killed_before_the_test_split_measures_it(finished: Path) -> None:
    summary = read_json(finished / "summary.json")
    test = summary.pop("test")
    (finished / "summary.json").write_text(json.dumps(summary))
    assert resume(finished).code == 0
    assert read_json(finished / "summary.json")["test"] == test


def test_the_test_split_alone_is_measured_with_test_time_augmentation(
    in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def spy(*arguments: Any, views: Any) -> dict[str, float]:
        seen.append(views)
        return evaluation.evaluate(*arguments, views=views)

    monkeypatch.setattr("cnnlab.run.training.evaluate", spy)
    ok(train_fast("trainer.tta=flip", "run_dir=run"))
    assert seen == [evaluation.VIEWS["flip"]]
    assert read_json(Path("run/summary.json"))["tta"] == "flip"


def test_a_resumed_run_keeps_its_groups(finished: Path) -> None:
    assert refused(resume(finished, "model=mlp"), "model: a resumed run keeps its model", "model=mlp")


def prepared(path: Path, *changes: str) -> Resumption:
    return prepare_resume(RunConfig(cnnlab.compose(f"resume={path}", *changes)), ())


def test_a_resumed_run_keeps_its_values(finished: Path) -> None:
    message = r"optimizer\.lr: .* started with 0\.05, .* trainer\.epochs, .* received optimizer\.lr=0\.1"
    with pytest.raises(ConfigError, match=message):
        prepared(finished, "optimizer.lr=0.1")
    prepared(finished, "optimizer.lr=0.05")


@pytest.mark.parametrize("change", ["seed=1", "~model.blocks.dropout1", "data.batch_size=16"])
def test_what_would_change_the_result_is_refused(finished: Path, change: str) -> None:
    with pytest.raises(ConfigError, match=change.split("=")[0].lstrip("~")):
        prepared(finished, change)


@pytest.mark.parametrize("change", ["trainer.log_every=1", "observers.console=null", "device=cpu"])
def test_what_changes_no_result_is_taken(finished: Path, change: str) -> None:
    assert not prepared(finished, change).another_length


def test_changed_data_is_refused_and_leaves_the_run_as_it_was(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("config.yaml", "summary.json", "metrics.jsonl")
    before = [(finished / name).read_bytes() for name in names]
    monkeypatch.setattr(Images, "digest", lambda self: "0" * 64)
    assert refused(resume(finished, *LONGER), "data: ", "000000000000… now")
    assert [(finished / name).read_bytes() for name in names] == before


def test_another_environment_is_reported_and_the_run_continues(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 77)
    answer = resume(finished, *LONGER)
    assert answer.code == 0
    assert "threads was 1 and is 77" in answer.out.replace("\n", " ")


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(finished: Path, completed_run: Path) -> None:
    shutil.rmtree(finished / "checkpoints")
    answer = ok(resume(finished))
    assert "has no checkpoint yet: starting this run again in its directory" in answer.out
    assert steps(finished, "train") == [2, 4, 6]
    assert (finished / WEIGHTS).read_bytes() == (completed_run / WEIGHTS).read_bytes()
    events = EventAccumulator(str(finished))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/train")] == [2, 4, 6]


def test_a_saved_class_of_the_users_own_is_imported_only_where_the_command_repeats_it(
    in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "import torch\nclass Twice(torch.nn.Module):\n    def forward(self, x):\n        return 2 * x\n"
    (in_tmp_path / "own_blocks.py").write_text(source)
    monkeypatch.syspath_prepend(in_tmp_path)
    ok(train_fast("run_dir=run", "+model.blocks.twice={type: own_blocks.Twice, after: relu1}"))
    for command, key, script in ((train, "resume", "train"), (evaluate, "run", "evaluate")):
        del sys.modules["own_blocks"]
        repeated = f"python {script}.py {key}=run 'trust=[own_blocks.Twice]'"
        assert refused(run(command, f"{key}=run"), "model.blocks.twice: ", repeated)
        assert "own_blocks" not in sys.modules
        ok(run(command, f"{key}=run", "trust=[own_blocks.Twice]"))
        assert "own_blocks" in sys.modules
        assert saved(in_tmp_path / "run")["trust"] == []


def test_a_run_does_not_import_torchs_compiler(tmp_path: Path) -> None:
    code = (
        "import sys; from cnnlab.cli import train; "
        "sys.argv = ['train.py', 'experiment=debug/fast', 'trainer.ema=0.9', 'trainer.clip_norm=1']; train(); "
        "print('compiler:', 'torch._dynamo' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(Path(cnnlab.__file__).parents[1])}
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "compiler: False" in answer.stdout  # it takes two seconds


def test_a_profiled_run_leaves_a_trace_and_trains_to_the_same_bits(in_tmp_path: Path) -> None:
    plain, profiled = (
        train_fast(f"run_dir={name}", "trainer.max_steps=24", f"trainer.profile={value}")
        for name, value in (("plain", "false"), ("profiled", "true"))
    )
    assert "the slowest operations of a step" in profiled.out
    assert "aten::convolution_backward" in profiled.out
    assert (in_tmp_path / "profiled" / "trace.json").is_file()
    assert "slowest" not in plain.out
    first, second = ([(e["step"], e["split"], e["loss"]) for e in metrics(Path(p))] for p in ("plain", "profiled"))
    assert first == second


def test_a_second_training_in_another_thread_is_refused(in_tmp_path: Path) -> None:
    with the_only_training(), ThreadPoolExecutor(1) as threads:
        refusal = threads.submit(run_training, RunConfig(OmegaConf.create())).exception()
    assert isinstance(refusal, ConfigError)
    assert "another training runs in this process" in str(refusal)
    with the_only_training():  # the first has ended
        pass


INTERRUPTED_TWICE = """
import os, signal
from pathlib import Path
from cnnlab.engine.records import Started
from cnnlab.observers.console import Console
from cnnlab.run import training
training.SAME_REQUEST = 0  # seconds
with training._stop_signals():
    Console().log(Started(Path("run"), 0, 60, 3, {}, ""))
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
"""


def test_a_second_interrupt_shows_the_cursor_that_the_bar_had_hidden() -> None:
    status, shown = on_a_terminal(INTERRUPTED_TWICE)
    assert status == -signal.SIGINT
    assert HIDE_CURSOR in shown
    assert shown.endswith(SHOW_CURSOR)


def test_quiet_observers_leave_stdout_empty(in_tmp_path: Path) -> None:
    answer = train_fast("run_dir=run", "observers=quiet")
    assert (answer.code, answer.out, answer.err) == (0, "", "")
    assert read_json(Path("run/summary.json"))["status"] == "completed"
    refused = train_fast("run_dir=other", "observers=quiet", "optimizer.lr=-1")
    assert refused.err.startswith("error: optimizer.lr")


# a loss that is not finite


def train_with(steps: dict[int, float], skipped: Sequence[int], *overrides: str) -> Answer:
    """A fast run whose images are multiplied at some steps, and which begins with some steps to skip."""
    take_step = Trainer._step

    def step(trainer: Trainer, batch: Batch) -> None:
        number = trainer.progress.step + 1
        if number == 1:
            trainer.progress.skipped = list(skipped)
        take_step(trainer, replace(batch, x_NCHW=batch.x_NCHW * steps.get(number, 1.0)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", step)
        return train_fast("trainer.max_steps=9", *overrides)


def compared(run: str) -> tuple[Any, ...]:
    """Weights, and all records but for time."""
    weights = read_checkpoint(Path(run, "checkpoints/step-00000009")).weights
    lines = map(json.loads, Path(run, "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    records = [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]
    return {name: value.tolist() for name, value in weights.items()}, records


def test_a_run_rolls_back_and_is_one_without_that_update(in_tmp_path: Path) -> None:
    answer = ok(train_with({5: math.nan}, [], "run_dir=rolled", "trainer.on_nonfinite=rollback", "trainer.ema=0.9"))
    assert "the loss of step 5 is not a finite number; its training images are" in answer.out
    assert "Continuing after step 3, without step 5" in answer.out
    assert read_json(Path("rolled/summary.json"))["skipped"] == [5]
    ok(train_with({}, [5], "run_dir=skipped", "trainer.ema=0.9"))
    assert compared("rolled") == compared("skipped")
    events = EventAccumulator("rolled").Reload()
    steps = [event.step for event in events.Scalars("loss/train")]
    assert steps == sorted(set(steps))


def test_a_captured_step_is_captured_anew_after_a_rollback(in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph updates the momenta that it was captured with, wherever the optimizer's are later."""
    stale: list[bool] = []

    def capture(step: Any, batch: Batch, modules: Any, optimizer: Any) -> Any:
        held = [values["momentum_buffer"] for values in optimizer.state.values()]

        def replay(batch: Batch) -> Any:
            now = [values["momentum_buffer"] for values in optimizer.state.values()]
            stale.append(any(one is not other for one, other in zip(held, now, strict=True)))
            return step(batch)

        return replay

    fit = Trainer.fit

    def fit_captured(trainer: Trainer) -> str:
        if not isinstance(trainer.train_state.step, Captured):
            trainer.train_state.step = Captured(trainer.train.batch_size, forward_backward)  # type: ignore[attr-defined]
        return fit(trainer)

    monkeypatch.setattr(cuda_graph, "capture", capture)
    monkeypatch.setattr(Trainer, "fit", fit_captured)
    ok(train_with({5: math.nan}, [], "run_dir=run", "trainer.on_nonfinite=rollback"))
    assert len(stale) >= 6
    assert not any(stale)


def test_a_run_rolls_back_three_times_at_most(in_tmp_path: Path) -> None:
    bad = dict.fromkeys((4, 5, 7, 8), math.nan)
    answer = train_with(bad, [], "run_dir=run", "trainer.on_nonfinite=rollback")
    assert answer.code == 1
    assert "error: the loss of step 8 is not a finite number" in answer.err
    assert answer.out.count("Continuing after step") == 3


@pytest.mark.parametrize("overrides", [(), ("trainer.on_nonfinite=rollback",)], ids=["stop", "no checkpoint"])
def test_a_run_stops_by_default_and_without_a_checkpoint(in_tmp_path: Path, overrides: tuple[str, ...]) -> None:
    bad = 5 if not overrides else 2
    answer = train_with({bad: math.nan}, [], "run_dir=run", *overrides)
    assert answer.code == 1
    assert f"error: the loss of step {bad} is not a finite number" in answer.err


class Hopeless:
    """A trial that is given up at its second validation."""

    def __init__(self, beyond: str | None = None) -> None:
        self.judged: list[tuple[int, set[str]]] = []
        self.sentence = beyond

    def beyond(self, measure: Callable[[], Mapping[str, float]]) -> str | None:
        self.cost = measure()
        return self.sentence

    def is_hopeless(self, validation: int, values: Mapping[str, float]) -> bool:
        self.judged.append((validation, set(values)))
        return validation == 2


def test_a_trial_beyond_its_budget_ends_before_its_first_step(in_tmp_path: Path) -> None:
    trial = Hopeless("beyond sweep.budget.ms=1: …")
    run_training(RunConfig(cnnlab.compose(FAST, "model=mlp", "run_dir=run")), trial)
    assert read_json(Path("run/summary.json")) == {"status": "pruned", "error": trial.sentence}
    assert trial.cost["ms"] > 0
    assert not Path("run/checkpoints").exists()


def test_measuring_a_step_leaves_the_run_as_it_was(in_tmp_path: Path) -> None:
    """With dropout, batch norm and augmentation, which draw and keep state."""
    settings = (FAST, "model=resnet_small", "data.augment.move={type: shift, pixels: 1}", "trainer.max_steps=2")
    run_training(RunConfig(cnnlab.compose(*settings, "run_dir=measured")), Hopeless())
    run_training(RunConfig(cnnlab.compose(*settings, "run_dir=plain")))
    measured, plain = (read_checkpoint(Path(name) / "checkpoints/step-00000002") for name in ("measured", "plain"))
    assert all(torch.equal(measured.weights[name], value) for name, value in plain.weights.items())


def test_a_trial_is_judged_at_each_validation_and_leaves_the_test_split_alone(in_tmp_path: Path) -> None:
    config = RunConfig(cnnlab.compose(FAST, "model=mlp", "run_dir=run", "trainer.validate_every_steps=2"))
    trial = Hopeless()
    run_training(config, trial)
    assert trial.judged == [(1, {"accuracy/val", "loss/val"}), (2, {"accuracy/val", "loss/val"})]
    summary = read_json(Path("run/summary.json"))
    assert (summary["status"], summary["step"], "test" in summary) == ("pruned", 4, False)
    run_training(RunConfig(cnnlab.compose("resume=run")))  # by itself it is a run like any other
    assert read_json(Path("run/summary.json"))["status"] == "completed"
