import re
from pathlib import Path
from typing import Any

import pytest
from commands import composed
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cnnlab.components import Trust
from cnnlab.config.check import check_config
from cnnlab.config.compose import CONFIGS
from cnnlab.engine.settings import TrainerSettings
from cnnlab.runtime.errors import ConfigError
from cnnlab.sweep.objectives import Objective, check_pruner, objectives
from cnnlab.sweep.saved_sweep import check_trusted
from cnnlab.sweep.settings import SweepSettings, read_settings


def settings(sweep: str = "tpe", **changes: Any) -> SweepSettings:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        section = compose("train", overrides=[f"sweep={sweep}"]).sweep
    return read_settings({**OmegaConf.to_container(section), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_trials": 0}, r"sweep\.n_trials: expected a whole number ≥ 1, received 0"),
        ({"timeout": -1}, r"sweep\.timeout: expected a number > 0"),
        ({"direction": "maximise"}, r"sweep\.direction: .*'maximise'; did you mean 'maximize'\?"),
        ({"metric": ["accuracy/val", "parameters"], "direction": "maximize"}, "expected one for each metric, 2 here"),
        ({"metric": ["loss/val", "loss/val"]}, "expected each metric once"),
        ({"metric": ["accuracy/val", "macs"], "pruner": "median"}, r"sweep\.pruner: expected null beside several"),
        ({"space": {"seed": [1, 2]}}, r"sweep\.space\.seed: expected text as after -m"),
        ({"storage": 3}, r"sweep\.storage: expected a URL or null"),
        ({"budget": {"parameters": 0}}, r"sweep\.budget\.parameters: expected a whole number ≥ 1, received 0"),
        ({"budget": {"flops": 3}}, r"sweep\.budget\.flops: there is no such key"),
        ({"budget": 3}, r"sweep\.budget: expected a mapping of parameters, macs"),
        ({"ntrials": 3}, r"sweep\.ntrials: there is no such key; did you mean 'n_trials'\?"),
    ],
)
def test_a_bad_section_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**changes)


def test_a_grid_refuses_a_budget() -> None:
    with pytest.raises(ConfigError, match=r"sweep\.budget: a grid runs every combination"):
        settings("grid", budget={"macs": 1000})


@pytest.mark.parametrize(("key", "value"), [("n_trials", 3), ("timeout", 3), ("pruner", "median"), ("storage", "x")])
def test_a_grid_refuses_what_only_a_search_has(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"sweep\.{key}: a grid runs every combination"):
        settings("grid", **{key: value})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sampler": "cmaes"}, "optuna.samplers.CmaEsSampler: its state in the study is a pickle"),
        ({"sampler": {"type": "optuna.samplers.CmaEsSampler"}}, "is a pickle"),
        ({"pruner": {"type": "mine.Pruner"}}, "mine.Pruner: it is not part of cnnlab"),
    ],
)
def test_a_saved_sweep_runs_no_code_that_the_command_does_not_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as refused:
        check_trusted(settings(**changes), [], Path("SWEEP"))
    (again,) = re.findall(r"'trust=\[(.*)\]'", str(refused.value))
    check_trusted(settings(**changes), again.split(","), Path("SWEEP"))
    check_trusted(settings(pruner="median"), [], Path("SWEEP"))


def plan(*overrides: str) -> Any:
    return check_config(composed(*overrides), Trust())


def test_the_monitor_is_the_metric_unless_another_is_named() -> None:
    assert objectives(settings(), plan()) == (Objective("accuracy/val", True),)
    assert objectives(settings(), plan("trainer.monitor=loss/val")) == (Objective("loss/val", False),)


def test_each_metric_has_a_direction_of_its_own() -> None:
    found = objectives(settings(metric=["accuracy/val", "loss/val", "parameters", "macs", "seconds"]), plan())
    assert [one.maximize for one in found] == [True, False, False, False, False]
    named = objectives(settings(metric="accuracy/val", direction="minimize"), plan())
    assert named == (Objective("accuracy/val", False),)


@pytest.mark.parametrize(
    ("metric", "overrides", "message"),
    [
        ("acuracy/val", (), "received 'acuracy/val'; did you mean 'accuracy/val'"),
        ("accuracy/test", (), "with trainer.monitor_test=true those of the test split, too"),
        ("loss/val", ("data.validation.count=0", "trainer.monitor=null"), "loss/val needs a validation split"),
        (None, ("data.validation.count=0", "trainer.monitor=null"), "expected a metric where nothing is held out"),
    ],
)
def test_a_metric_that_is_not_measured_is_refused(metric: str, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        objectives(settings(metric=metric), plan(*overrides))


def test_without_a_monitor_a_search_is_for_accuracy() -> None:
    assert objectives(settings(), plan("trainer.monitor=null")) == (Objective("accuracy/val", True),)


def test_a_test_metric_is_legal_where_it_is_measured() -> None:
    assert objectives(settings(metric="loss/test"), plan("trainer.monitor_test=true"))[0].name == "loss/test"


def test_a_pruner_needs_validations_to_compare_by() -> None:
    pruning = settings(pruner="median")
    check_pruner(pruning, Objective("accuracy/val", True), plan("trainer.epochs=2"))
    with pytest.raises(ConfigError, match="a run of 39 steps has fewer than two"):
        check_pruner(pruning, Objective("accuracy/val", True), plan("trainer.epochs=1"))
    with pytest.raises(ConfigError, match="parameters is not measured at validations"):
        check_pruner(pruning, Objective("parameters", False), plan())


@pytest.mark.parametrize(("every", "epochs"), [(None, 1), (3, None), (4, 1), (6, 2), (10, 3)])
def test_validations_are_counted_by_their_cadence(every: int | None, epochs: int | None) -> None:
    trainer = {**composed()["trainer"], "validate_every_steps": every, "validate_every_epochs": epochs}
    trainer.pop("execution"), trainer.pop("deterministic")
    cadence = TrainerSettings(**trainer)
    due = [bool(every and step % every == 0) or bool(epochs and step % (8 * epochs) == 0) for step in range(1, 97)]
    assert [cadence.validations(step, 8) for step in range(1, 97)] == [sum(due[:step]) for step in range(1, 97)]
