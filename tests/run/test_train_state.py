import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import composed, ok, run
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


def test_timing_leaves_generators_loader_and_train_state_alone() -> None:
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
    resolved_plan, trials = resolve_execution(plan, data.normalization, {})
    assert len(trials) == 4
    assert all(trial.times for trial in trials if trial.verdict != "another loss")
    assert resolved_plan.execution.resolved
    assert everything() == before


def test_a_run_that_autotuned_is_the_run_that_was_given_the_same(in_tmp_path: Path) -> None:
    answer = train_fast("run_dir=chose", AUTO)
    assert re.search(r"\ntrainer.execution: .* ms a step", answer.out)
    chosen = read_json(in_tmp_path / "chose" / "environment.json")["layout"]
    given = train_fast("run_dir=given", f"trainer.execution.layout={chosen}")
    assert "timed" not in given.out
    figures = []
    for name in ("chose", "given"):
        entries = map(json.loads, Path(name, "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        figures.append([{k: v for k, v in e.items() if k not in ("seconds", "images_per_second")} for e in entries])
    assert figures[0] == figures[1]


def test_a_resumed_run_keeps_its_choice_without_timing(in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = [Trial(Execution(layout="contiguous"), [0.001], 2.3, "chosen")]
    with monkeypatch.context() as patch:
        patch.setattr(train_state_module, "autotune", lambda *arguments: (usual[0].execution, usual))
        train_fast("run_dir=run", AUTO)
    checkpoints = in_tmp_path / "run" / "checkpoints"
    (checkpoints / "step-00000006").rename(in_tmp_path / "later")  # killed after step 3
    monkeypatch.setattr(autotune, "_time", lambda *arguments: pytest.fail("it was timed again"))
    ok(run(train, "resume=run"))
    assert read_json(in_tmp_path / "run" / "environment.json")["layout"] == "contiguous"
    saved = SavedRun.open(Path("run"), "last", "cpu", Trust(), {})
    assert saved.plan.execution == Execution("fp32", "contiguous")


def test_a_recorded_cuda_graph_is_ignored_on_a_cpu() -> None:
    plan = make_plan("device=cpu")
    assert plan.execution.cuda_graph == "auto"
    resolved_plan, trials = resolve_execution(plan, read_training_data(plan).normalization, {"cuda_graph": True})
    assert resolved_plan.execution.cuda_graph is False
    assert trials == []


class Own(nn.Module):
    """A user's own loss."""

    def forward(self, output_NK: torch.Tensor, target_N: torch.Tensor) -> torch.Tensor:
        return output_NK.square().mean()


@pytest.mark.parametrize(
    ("overrides", "own_loss", "expected"),
    [
        (["model=resnet18"], False, [False, True]),  # torchvision's
        (["trainer.watch_every=2"], False, [False]),
        ([], True, [False]),
    ],
    ids=str,
)
def test_only_known_modules_become_graphs_by_default(
    overrides: list[str], own_loss: bool, expected: list[bool]
) -> None:
    config = resolved(cnnlab.compose("experiment=debug/fast", *overrides))
    plan = replace(check_config(config, Trust()), device=torch.device("cuda"))
    plan = replace(plan, loss=Own()) if own_loss else plan
    assert train_state_module._cuda_graph_candidates(plan) == expected
    assert train_state_module._compile_candidates(replace(plan, device=torch.device("cpu"))) == expected


def test_an_update_that_cannot_be_captured_leaves_out_the_cuda_graph() -> None:
    plan = make_plan("optimizer.type=torch.optim.RMSprop", "~optimizer.nesterov")
    assert train_state_module._cuda_graph_candidates(replace(plan, device=torch.device("cuda"))) == [False]


def test_a_network_without_4d_weights_has_no_layout_to_choose() -> None:
    plan = make_plan(AUTO, "model=mlp")
    resolved_plan, trials = resolve_execution(plan, read_training_data(plan).normalization, {})
    assert resolved_plan.execution.layout == "contiguous"
    assert trials == []


def test_without_a_compiler_nothing_is_compiled_and_asking_for_it_makes_no_directory(
    in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    plan = make_plan("trainer.execution.compile=auto")
    resolved_plan, trials = resolve_execution(plan, read_training_data(plan).normalization, {})
    assert (resolved_plan.execution.compile, trials) == (False, [])
    answer = train_fast("trainer.execution.compile=true")
    assert answer.code == 2
    assert "trainer.execution.compile: true needs a C++ compiler (no-such-compiler" in answer.err
    assert list(in_tmp_path.iterdir()) == []


def test_what_trains_later_is_in_the_optimizer_and_frozen_from_the_first_step_on() -> None:
    plan = make_plan("+model.freeze={conv1: {until: 1}, conv2: null}", "trainer.execution.compile=true")
    train_state = build_train_state(plan)
    weights = dict(train_state.network.named_parameters())
    updated = {name for group in train_state.optimizer.param_groups for name in group["names"]}
    assert updated == weights.keys() - {"conv2.weight"}
    step = train_state.step
    for epoch, trains, step_is_kept in ((0, False, True), (1, True, False)):
        train_state.begin_epoch(epoch)
        assert weights["conv1.weight"].requires_grad is trains
        assert not weights["conv2.weight"].requires_grad
        assert (train_state.step is step) is step_is_kept
