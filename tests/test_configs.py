"""Every YAML under configs/ is composed and built."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import composed
from image_folders import write_folders
from known_networks import FAST

from cnnlab.components import Trust
from cnnlab.config.check import check_config
from cnnlab.config.compose import CONFIGS
from cnnlab.config.run_plan import RunPlan
from cnnlab.runtime.errors import ConfigError

GROUPS = [folder for folder in sorted(CONFIGS.iterdir()) if folder.is_dir()]
CHOICES = [
    (group.name, path.relative_to(group).with_suffix("").as_posix())
    for group in GROUPS
    for path in sorted(group.rglob("*.yaml"))
    if path.stem != "base"
]
SLOW = {choice[1] for choice in CHOICES if choice[1].startswith("blocks/")} - {f"blocks/{name}" for name in FAST}
# what a choice needs beside it to make a whole config
COMPANIONS = {
    ("data", "image_folder"): ["data.root=images", "data.batch_size=2", "data.test_fraction=0.2"],
    ("experiment", "images"): ["data.root=images"],
    ("experiment", "images_pretrained"): ["data.root=images", "data.batch_size=2"],
    ("data", "csv"): ["data.root=images", "data.batch_size=2"],
    ("data", "arrays"): ["data.root=images/images.npz", "data.batch_size=2"],
    ("model", "none"): ["+model.blocks.flatten=flatten", "+model.blocks.output={type: linear, out_features: classes}"],
    ("data", "logic_gates"): ["model=mlp"],
    ("model", "perceptron"): ["data=logic_gates", "loss=quadratic"],
    ("model", "xor_of_nands"): ["data=logic_gates", "loss=quadratic"],
    ("model", "lenet"): ["data=mnist"],
    **{choice: ["data=cifar10"] for choice in CHOICES if choice[1].startswith("blocks/")},
    ("model", "blocks/lenet5_1998"): ["data=mnist"],
    ("loss", "quadratic"): ["+model.blocks.activation=sigmoid"],
}


def built(*overrides: str) -> tuple[RunPlan, torch.nn.Module, torch.optim.Optimizer]:
    plan = check_config(composed(*overrides), Trust())
    network = plan.network.build()
    optimizer = plan.build_optimizer(network)
    plan.build_schedule(optimizer)
    return plan, network, optimizer


@pytest.mark.parametrize(
    ("group", "choice"),
    [
        pytest.param(*choice, id="/".join(choice), marks=pytest.mark.slow if choice[1] in SLOW else ())
        for choice in CHOICES
    ],
)
def test_every_choice_builds_a_network_that_takes_the_data(in_tmp_path: Path, group: str, choice: str) -> None:
    root = write_folders(in_tmp_path / "images", {"train/cat": 6, "train/dog": 6})
    rows = [f"train/{label}/{number:03d}.png,{label}\n" for label in ("cat", "dog") for number in range(6)]
    (root / "labels.csv").write_text("".join(["file_name,label\n", *rows]))
    np.savez(root / "images.npz", x_train=np.zeros((12, 8, 8), np.uint8), y_train=np.arange(12) % 2)
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
        "sweep",
        "trainer",
    }


def test_no_yaml_names_a_target_to_call() -> None:
    assert not [path for path in CONFIGS.rglob("*.yaml") if "_target_" in path.read_text()]


def test_the_default_is_digits_and_cnn() -> None:
    config = composed()
    assert config["data"]["type"] == "digits"
    assert list(config["model"]["blocks"])[:4] == ["conv1", "norm1", "pool1", "relu1"]


def test_every_yaml_begins_with_a_comment() -> None:
    assert not [path for path in CONFIGS.rglob("*.yaml") if not path.read_text().startswith("#")]


def test_a_data_set_writes_only_what_differs_from_the_base() -> None:
    base = yaml.safe_load((CONFIGS / "data" / "base.yaml").read_text())
    for path in (CONFIGS / "data").glob("*.yaml"):
        own = {} if path.stem == "base" else yaml.safe_load(path.read_text())
        assert not {key for key in own if key in base and own[key] == base[key]}, path


def test_what_a_data_set_has_to_bring_is_required() -> None:
    with pytest.raises(ConfigError, match=r"data\.type: expected a data set, as in data=mnist, received none"):
        composed("data=base")
