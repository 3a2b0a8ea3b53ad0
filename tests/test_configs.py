"""Every YAML under configs/ is composed and built."""

from pathlib import Path

import pytest
import torch
from commands import composed
from image_folders import write_folders

from cnnlab.components import Trust
from cnnlab.config.check import check_config
from cnnlab.config.compose import CONFIGS
from cnnlab.config.run_plan import RunPlan

GROUPS = [folder for folder in sorted(CONFIGS.iterdir()) if folder.is_dir()]
CHOICES = [
    (group.name, path.relative_to(group).with_suffix("").as_posix())
    for group in GROUPS
    for path in sorted(group.rglob("*.yaml"))
]
# what a choice needs beside it to make a whole config
COMPANIONS = {
    ("data", "image_folder"): ["data.root=images", "data.batch_size=2", "data.test_share=0.2"],
    ("model", "none"): ["+model.blocks.flatten=flatten", "+model.blocks.output={type: linear, out_features: classes}"],
    ("data", "logic_gates"): ["model=mlp"],
    ("model", "perceptron"): ["data=logic_gates", "loss=quadratic"],
    ("model", "xor_of_nands"): ["data=logic_gates", "loss=quadratic"],
    ("model", "lenet"): ["data=mnist"],
    ("experiment", "book/base"): [
        "+model.blocks.flatten=flatten",
        "+model.blocks.output={type: linear, out_features: classes}",
    ],
    ("loss", "quadratic"): ["+model.blocks.activation=sigmoid"],
}


def built(*overrides: str) -> tuple[RunPlan, torch.nn.Module, torch.optim.Optimizer]:
    plan = check_config(composed(*overrides), Trust())
    network = plan.network.build()
    optimizer = plan.build_optimizer(network)
    plan.build_schedule(optimizer)
    return plan, network, optimizer


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=["/".join(choice) for choice in CHOICES])
def test_every_choice_builds_a_network_that_takes_the_data(in_tmp_path: Path, group: str, choice: str) -> None:
    write_folders(in_tmp_path / "images", {"train/cat": 6, "train/dog": 6})
    plan, network, _ = built(f"{group}={choice}", *COMPANIONS.get((group, choice), []))
    output_NK = network.eval()(torch.zeros(2, *plan.spec.input_shape))
    assert output_NK.shape == (2, plan.spec.classes)


def test_every_yaml_belongs_to_a_group_or_a_command() -> None:
    assert {path.name for path in CONFIGS.glob("*.yaml")} == {"train.yaml", "evaluate.yaml"}
    assert {group.name for group in GROUPS} == {
        "data",
        "experiment",
        "loss",
        "model",
        "observers",
        "optimizer",
        "schedule",
        "trainer",
    }


def test_no_yaml_names_a_target_to_call() -> None:
    assert not [path for path in CONFIGS.rglob("*.yaml") if "_target_" in path.read_text()]


def test_the_default_is_digits_and_cnn() -> None:
    config = composed()
    assert config["data"]["type"] == "digits"
    assert list(config["model"]["blocks"])[:4] == ["conv1", "norm1", "pool1", "relu1"]


@pytest.mark.parametrize("path", sorted(Path(CONFIGS).rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_begins_by_saying_what_it_is(path: Path) -> None:
    assert path.read_text().startswith("#")
