import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import composed, run
from fast_run import read_json, train_fast
from torch import nn

import cnnlab
from cnnlab.cli import train
from cnnlab.components import Trust
from cnnlab.config.check import check_config
from cnnlab.config.run_plan import RunPlan
from cnnlab.config.saved_config import resolved
from cnnlab.engine import autotune
from cnnlab.engine.autotune import Trial
from cnnlab.engine.execution import Execution
from cnnlab.inference.saved_run import SavedRun
from cnnlab.run import train_state as train_state_module
from cnnlab.run.loaders import read_training_data, train_loader
from cnnlab.run.train_state import build_train_state, resolve_execution
from cnnlab.runtime.randomness import capture_generators

AUTO = "trainer.execution.layout=auto"


def make_plan(*overrides: str) -> RunPlan:
    return check_config(composed("experiment=debug/fast", *overrides), Trust())


def flat(state: Any) -> list[Any]:
    """The leaves of a nested state; tensors as lists, so that == compares every bit."""
    if isinstance(state, dict):
        return [leaf for key in state for leaf in flat(state[key])]
    if isinstance(state, list | tuple):
        return [leaf for value in state for leaf in flat(value)]
    return [state.tolist() if isinstance(state, torch.Tensor) else state]


def test_timing_leaves_generators_loader_and_the_runs_learner_alone() -> None:
    plan = make_plan(AUTO, "trainer.execution.precision=auto", "trainer.ema=0.9")
    data = read_training_data(plan)
    loader = train_loader(plan, data.train, data.normalization)
    iterator = iter(loader)
    next(iterator)
    train_state = build_train_state(plan)
    random.random(), np.random.rand(), torch.rand(1)

    def everything() -> list[Any]:
        ema = train_state.ema.network.state_dict() if train_state.ema else {}
        weights = train_state.network.state_dict()
        return flat([capture_generators(), weights, ema, train_state.state_dict(), loader.state_dict()])

    before = everything()
    settled, trials = resolve_execution(plan, data.normalization, {})
    assert len(trials) == 4
    assert all(trial.times for trial in trials if trial.verdict != "another loss")
    assert settled.execution.resolved
    assert everything() == before


def test_a_run_that_chose_is_the_run_that_was_told_the_same(in_tmp_path: Path) -> None:
    answer = train_fast("run_dir=chose", AUTO)
    assert "trainer.execution, timed on this machine:" in answer.out
    chosen = read_json(in_tmp_path / "chose" / "environment.json")["layout"]
    told = train_fast("run_dir=told", f"trainer.execution.layout={chosen}")
    assert "timed" not in told.out
    figures = []
    for name in ("chose", "told"):
        entries = map(json.loads, Path(name, "metrics.jsonl").read_text().splitlines())
        figures.append([{k: v for k, v in e.items() if k not in ("seconds", "images_per_second")} for e in entries])
    assert figures[0] == figures[1]


def test_a_resumed_run_keeps_its_choice_without_timing(in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = [Trial(Execution(layout="contiguous"), [0.001], 2.3, "chosen")]
    with monkeypatch.context() as patch:
        patch.setattr(train_state_module, "choose", lambda *arguments: (usual[0].execution, usual))
        train_fast("run_dir=run", AUTO)
    checkpoints = in_tmp_path / "run" / "checkpoints"
    (checkpoints / "step-00000006").rename(in_tmp_path / "later")  # killed after step 3
    monkeypatch.setattr(autotune, "_time", lambda *arguments: pytest.fail("it was timed again"))
    answer = run(train, "resume=run")
    assert answer.code == 0, answer.err
    assert read_json(in_tmp_path / "run" / "environment.json")["layout"] == "contiguous"
    saved = SavedRun.open(Path("run"), "last", "cpu", Trust(), {})
    assert saved.plan.execution == Execution("fp32", "contiguous", "none", trace=True)


def test_a_cuda_graph_that_is_recorded_is_no_choice_for_a_cpu() -> None:
    plan = make_plan("device=cpu")
    assert plan.execution.cuda_graph == "auto"
    settled, trials = resolve_execution(plan, read_training_data(plan).normalization, {"cuda_graph": True})
    assert settled.execution.cuda_graph is False
    assert trials == []


class Own(nn.Module):
    """Somebody's own loss."""

    def forward(self, output_NK: torch.Tensor, target_N: torch.Tensor) -> torch.Tensor:
        return output_NK.square().mean()


@pytest.mark.parametrize(
    ("overrides", "own_loss", "expected"),
    [
        ([], False, [False, True]),
        (["model=resnet18"], False, [False, True]),  # torchvision's
        (["trainer.watch_every=2"], False, [False]),
        (["optimizer.type=torch.optim.RMSprop", "~optimizer.nesterov"], False, [False]),
        ([], True, [False]),
    ],
    ids=str,
)
def test_only_what_leaves_nothing_to_python_is_captured_unasked(
    overrides: list[str], own_loss: bool, expected: list[bool]
) -> None:
    config = resolved(cnnlab.compose("experiment=debug/fast", *overrides))
    plan = replace(check_config(config, Trust()), device=torch.device("cuda"))
    plan = replace(plan, loss=Own()) if own_loss else plan
    assert train_state_module._captured(plan) == expected


@pytest.mark.parametrize(
    ("overrides", "own_loss", "device", "expected"),
    [
        ([], False, "cpu", True),
        (["model=resnet18"], False, "cpu", True),
        (["trainer.watch_every=2"], False, "cpu", True),
        (["trainer.execution.trace=false"], False, "cpu", False),
        (["trainer.execution.precision=fp16"], False, "cpu", False),
        ([], True, "cpu", False),
        (["trainer.execution.trace=true"], True, "cpu", True),
        ([], False, "meta", False),
    ],
    ids=str,
)
def test_only_what_leaves_nothing_to_python_is_traced_unasked(
    overrides: list[str], own_loss: bool, device: str, expected: bool
) -> None:
    plan = replace(make_plan(*overrides), device=torch.device(device))
    plan = replace(plan, loss=Own()) if own_loss else plan
    settled, _ = resolve_execution(plan, read_training_data(plan).normalization, {"trace": not expected})
    assert settled.execution.trace is expected


def run_of(name: str, *overrides: str) -> tuple[Any, ...]:
    """What a run of 40 steps told, and its last weights, in bytes."""
    answer = train_fast(
        f"run_dir={name}",
        "trainer.epochs=null",
        "trainer.max_steps=40",
        "trainer.log_every=1",
        "trainer.watch_every=9",
        "trainer.checkpoint_every=23",
        "trainer.accumulate=2",
        "trainer.ema=0.9",
        "data.drop_last=false",
        *overrides,
    )
    return told_by(Path(name)), answer.out


def told_by(run_dir: Path) -> tuple[Any, ...]:
    entries = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    told = [{k: v for k, v in e.items() if k not in ("seconds", "images_per_second")} for e in entries]
    weights = [file.read_bytes() for file in sorted(run_dir.glob("checkpoints/step-00000040/*.safetensors"))]
    return told, weights


def test_a_traced_run_is_the_same_run_and_may_be_taken_up_untraced(in_tmp_path: Path) -> None:
    traced, _ = run_of("traced")
    plain, _ = run_of("plain", "trainer.execution.trace=false")
    assert len(traced[1]) == 2
    assert traced == plain
    assert read_json(in_tmp_path / "traced" / "environment.json")["trace"] is True
    for folder in (in_tmp_path / "traced" / "checkpoints").glob("step-*40"):
        folder.rename(in_tmp_path / "aside")
    answer = run(train, "resume=traced", "trainer.execution.trace=false")
    assert answer.code == 0, answer.err
    assert read_json(in_tmp_path / "traced" / "environment.json")["trace"] is False
    assert told_by(in_tmp_path / "traced")[1] == plain[1]


def test_a_network_that_asks_for_values_is_told_of_only_where_tracing_was_asked_for(in_tmp_path: Path) -> None:
    asking = "model.blocks.norm1={type: batch_norm, momentum: null}"
    _, silent = run_of("auto", asking)
    _, told = run_of("asked", asking, "trainer.execution.trace=true")
    assert "untraced" not in silent
    assert "trainer.execution.trace: steps go on untraced: aten._local_scalar_dense.default asks for a value" in told


def test_a_network_without_images_weights_has_no_layout_to_choose() -> None:
    plan = make_plan(AUTO, "model=mlp")
    settled, trials = resolve_execution(plan, read_training_data(plan).normalization, {})
    assert settled.execution.layout == "contiguous"
    assert trials == []


def test_what_the_machine_lacks_is_told_before_a_directory_is_made(
    in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    answer = train_fast("trainer.execution.compile=network")
    assert answer.code == 2
    assert "trainer.execution.compile: network needs a C++ compiler (no-such-compiler" in answer.err
    assert list(in_tmp_path.iterdir()) == []


def test_without_a_compiler_nothing_compiled_is_a_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    plan = make_plan("trainer.execution.compile=auto")
    settled, trials = resolve_execution(plan, read_training_data(plan).normalization, {})
    assert settled.execution.compile == "none"
    assert trials == []
