from pathlib import Path
from typing import Any

import pytest
from commands import run
from omegaconf import OmegaConf

import cnnlab
from cnnlab.cli import train
from cnnlab.config.compose import allow_constructor_arguments, as_given
from cnnlab.config.saved_config import resolved
from cnnlab.runtime.errors import ConfigError


def compose(*overrides: str, config_dir: Path | None = None) -> dict[str, Any]:
    return resolved(cnnlab.compose(*overrides, config_dir=config_dir))


pytestmark = pytest.mark.usefixtures("in_tmp_path")


# values


def test_a_value_of_the_command_line_is_taken() -> None:
    assert compose("trainer.epochs=7")["trainer"]["epochs"] == 7


def test_the_last_of_two_values_counts() -> None:
    assert compose("seed=1", "seed=2")["seed"] == 2


def test_no_value_leaves_the_config_as_the_yaml_says() -> None:
    config = compose()
    assert config["optimizer"] == {
        "type": "sgd",
        "lr": 0.05,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
        "layer_decay": None,
        "groups": {},
    }
    assert "hydra" not in config


def test_a_value_may_refer_to_another_key() -> None:
    assert compose("seed=5", "data.split_seed=${seed}")["data"]["split_seed"] == 5


# constructor arguments


def test_an_argument_that_the_yaml_does_not_mention_needs_no_plus() -> None:
    assert compose("optimizer.dampening=0.1", "optimizer.nesterov=false")["optimizer"]["dampening"] == 0.1


def test_a_block_given_by_its_name_alone_takes_arguments() -> None:
    assert compose("model.blocks.relu1.inplace=true")["model"]["blocks"]["relu1"] == {"type": "relu", "inplace": True}


def test_an_observer_given_by_its_name_alone_takes_arguments() -> None:
    assert compose("observers.console.interval=3")["observers"]["console"] == {"type": "console", "interval": 3}


def test_the_initialization_given_by_its_name_alone_takes_arguments() -> None:
    config = compose("model.init=he", "model.init.mode=fan_out")
    assert config["model"]["init"] == {"type": "he", "mode": "fan_out"}


def test_a_nested_block_takes_arguments() -> None:
    config = compose("model=resnet_small", "model.blocks.block1.blocks.relu1.inplace=true")
    assert config["model"]["blocks"]["block1"]["blocks"]["relu1"] == {"type": "relu", "inplace": True}


def test_a_layer_in_a_sequential_goes_by_its_name_in_the_network_too() -> None:
    branches = "model.blocks.b={type: branches, branches: {wide: {blocks: {conv: {type: conv, out_channels: 4}}}}}"
    blocks = compose(branches, "model.blocks.b.branches.wide.conv.out_channels=8")["model"]["blocks"]
    assert blocks["b"]["branches"]["wide"] == {"blocks": {"conv": {"type": "conv", "out_channels": 8}}}
    assert compose(branches, "model.blocks.b.branches.wide.conv=tanh")["model"]["blocks"]["b"]["branches"]["wide"] == {
        "blocks": {"conv": "tanh"}
    }


def test_a_layer_in_a_sequential_is_removed_by_its_name_in_the_network_too() -> None:
    branches = "model.blocks.b={type: branches, branches: {wide: {blocks: {conv: {type: conv}, act: relu}}}}"
    blocks = compose(branches, "~model.blocks.b.branches.wide.conv")["model"]["blocks"]
    assert blocks["b"]["branches"]["wide"] == {"blocks": {"act": "relu"}}


def test_an_argument_of_a_nested_block_is_removed() -> None:
    block1 = compose("model=resnet_small", "~model.blocks.block1.blocks.conv1.padding")["model"]["blocks"]["block1"]
    assert "padding" not in block1["blocks"]["conv1"]


def test_what_is_removed_has_to_be_there() -> None:
    with pytest.raises(ConfigError, match=r"model\.blocks\.block1\.blocks\.conv3: there is no 'conv3' here; did you"):
        compose("model=resnet_small", "~model.blocks.block1.blocks.conv3")


def test_a_removal_is_recorded_as_it_was_given() -> None:
    (override,) = allow_constructor_arguments(["~model.blocks.block1.conv1"])
    assert as_given(override) == "~model.blocks.block1.conv1"


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("optimizer.amsgrad=true", "++optimizer.amsgrad=true"),
        ("model.blocks.relu1.inplace=true", "++model.blocks.relu1.inplace=true"),
        ("schedule.warmup=0.1", "++schedule.warmup=0.1"),
        ("trainer.execution.layout=contiguous", "++trainer.execution.layout=contiguous"),
        ("trainer.epochs=3", "trainer.epochs=3"),
        ("seed=3", "seed=3"),
        ("data=mnist", "data=mnist"),
        ("~model.blocks.relu1", "~model.blocks.relu1"),
        ("~model.blocks.block1.conv1", "++model.blocks.block1.conv1=???"),
        ("+optimizer.amsgrad=true", "+optimizer.amsgrad=true"),
        ("-m", "-m"),
        ("--config-dir=optimizer.d", "--config-dir=optimizer.d"),
    ],
)
def test_only_arguments_of_components_may_be_new(argument: str, expected: str) -> None:
    assert allow_constructor_arguments([argument]) == [expected]


# mappings


def test_a_mapping_of_another_type_replaces_the_block_whole() -> None:
    config = compose("model.blocks.conv1={type: max_pool, kernel_size: 2}")
    assert config["model"]["blocks"]["conv1"] == {"type": "max_pool", "kernel_size": 2}


def test_a_mapping_of_another_type_may_bring_arguments_that_the_old_one_has_not() -> None:
    config = compose("model.blocks.conv1={type: max_pool, kernel_size: 2, ceil_mode: true}")
    assert config["model"]["blocks"]["conv1"] == {"type": "max_pool", "kernel_size": 2, "ceil_mode": True}


def test_a_replaced_block_keeps_its_place() -> None:
    config = compose("model.blocks.pool1={type: conv, out_channels: 4, kernel_size: 2, stride: 2}")
    assert list(config["model"]["blocks"])[:5] == ["conv1", "norm1", "pool1", "relu1", "conv2"]


def test_a_name_replaces_a_mapping() -> None:
    assert compose("model.blocks.pool1=relu")["model"]["blocks"]["pool1"] == "relu"


def test_a_mapping_of_the_same_type_is_merged() -> None:
    config = compose("model.blocks.conv1={type: conv, out_channels: 4}")
    assert config["model"]["blocks"]["conv1"] == {
        "type": "conv",
        "out_channels": 4,
        "kernel_size": 3,
        "padding": "same",
        "bias": False,
    }


def test_a_mapping_without_a_type_is_merged() -> None:
    config = compose("model.blocks.conv1={out_channels: 4}")
    assert config["model"]["blocks"]["conv1"]["kernel_size"] == 3


def test_a_value_after_a_replacement_goes_into_the_new_block() -> None:
    config = compose("model.blocks.conv1={type: max_pool, kernel_size: 2}", "model.blocks.conv1.stride=1")
    assert config["model"]["blocks"]["conv1"] == {"type": "max_pool", "kernel_size": 2, "stride": 1}


def test_a_value_before_a_replacement_goes_with_the_old_block() -> None:
    config = compose("model.blocks.conv1.stride=1", "model.blocks.conv1={type: max_pool, kernel_size: 2}")
    assert config["model"]["blocks"]["conv1"] == {"type": "max_pool", "kernel_size": 2}


def test_a_mapping_of_another_type_replaces_the_optimizer_whole() -> None:
    config = compose("optimizer={type: adamw, lr: 0.001}")
    assert config["optimizer"] == {"type": "adamw", "lr": 0.001}


def test_an_experiments_mapping_of_another_type_replaces_the_block_whole(in_tmp_path: Path) -> None:
    write_experiment(in_tmp_path, "model: {blocks: {conv1: {type: max_pool, kernel_size: 2}}}")
    config = compose("experiment=mine", config_dir=in_tmp_path)
    assert config["model"]["blocks"]["conv1"] == {"type": "max_pool", "kernel_size": 2}


# layers


def test_a_tilde_removes_a_layer() -> None:
    assert "dropout1" not in compose("~model.blocks.dropout1")["model"]["blocks"]


def test_without_a_place_a_layer_stands_at_the_end() -> None:
    assert list(compose("+model.blocks.last=relu")["model"]["blocks"])[-1] == "last"


# groups, experiments, sweeps


def write_experiment(folder: Path, text: str) -> None:
    (folder / "experiment").mkdir()
    (folder / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}\n")


def test_a_group_is_replaced_whole() -> None:
    assert "conv1" not in compose("model=mlp")["model"]["blocks"]


def test_a_value_goes_into_the_group_that_was_chosen() -> None:
    config = compose("model=mlp", "model.blocks.hidden1.out_features=7")
    assert config["model"]["blocks"]["hidden1"]["out_features"] == 7


def test_a_value_holds_whether_its_group_stands_before_or_after_it() -> None:
    assert compose("optimizer.lr=0.5", "optimizer=adam")["optimizer"]["lr"] == 0.5


def test_an_experiments_values_win_over_the_groups() -> None:
    config = compose("experiment=debug/fast")
    assert (config["name"], config["trainer"]["log_every"]) == ("fast", 2)


def test_the_command_line_wins_over_an_experiment() -> None:
    config = compose("experiment=debug/fast", "trainer.log_every=3", "name=mine")
    assert (config["name"], config["trainer"]["log_every"], config["trainer"]["max_steps"]) == ("mine", 3, 6)


def test_the_command_line_wins_over_an_experiments_group() -> None:
    assert compose("experiment=mnist", "model=linear")["model"]["blocks"].keys() == {"flatten", "output"}


def test_an_experiment_of_the_users_own_is_found(in_tmp_path: Path) -> None:
    write_experiment(in_tmp_path, "defaults:\n  - override /optimizer: adam\noptimizer: {lr: 0.25}")
    config = compose("experiment=mine", "trainer.epochs=2", config_dir=in_tmp_path)
    assert (config["optimizer"]["type"], config["optimizer"]["lr"], config["trainer"]["epochs"]) == ("adam", 0.25, 2)


def test_each_job_of_a_sweep_has_its_own_value(monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[dict[str, Any]] = []
    monkeypatch.setattr("cnnlab.run.training.run_training", lambda config, trial: configs.append(config.values))
    answer = run(train, "-m", "model.blocks.conv1.out_channels=4,8", "seed=3", "hydra/launcher=basic")
    assert answer.code == 0, answer.err
    assert [config["model"]["blocks"]["conv1"]["out_channels"] for config in configs] == [4, 8]
    assert [config["seed"] for config in configs] == [3, 3]


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("model.blocks.extra={type: dropout, p: 0.1, after: pool1}", "model.blocks.extra.p", 0.1),
        ("model.blocks.extra=relu", "model.blocks.extra", "relu"),
        ("metrics.f1=f1_score", "metrics.f1", "f1_score"),
        ("observers.more=json_lines", "observers.more", "json_lines"),
        ("data.augment.flip=horizontal_flip", "data.augment.flip", "horizontal_flip"),
        ("+data.augment.flip=horizontal_flip", "data.augment.flip", "horizontal_flip"),
    ],
)
def test_a_mapping_of_names_grows_without_a_plus(override: str, key: str, expected: object) -> None:
    assert OmegaConf.select(cnnlab.compose(override), key) == expected


# folds


@pytest.mark.parametrize("given", ["data.validation.count=0.2", "data.validation={count: 5, from: end}"])
def test_a_validation_split_beside_folds_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match=r"^data.validation[.a-z]*: a fold validates where .* here 5"):
        compose("data.folds=5", "data.fold=0", given)
    assert compose(given)["data"]["validation"]["count"] in (0.2, 5)
