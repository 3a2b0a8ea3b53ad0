"""`model=NAME` for every classification network of torchvision."""

from pathlib import Path

import pytest
from commands import composed, run
from torchvision import models

from cnnlab.cli import train
from cnnlab.config.compose import CONFIGS
from cnnlab.config.torchvision_models import NAMES
from cnnlab.network import plan_network
from cnnlab.runtime.errors import Complaints

# its published count has the auxiliary head: 1×1 and 5×5 convolutions, two norms, 1,000 classes
AUXILIARY = {"inception_v3": 768 * 128 + 128 * 768 * 5 * 5 + 2 * 128 + 2 * 768 + 1000 * 768 + 1000}
ONE_OF_EACH_FAMILY = {
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "squeezenet1_1",
    "swin_t",
    "vit_b_16",
}


def test_the_names_are_torchvisions() -> None:
    assert list(NAMES) == models.list_models(module=models)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ONE_OF_EACH_FAMILY else pytest.mark.slow) for name in NAMES]
)
def test_every_name_composes_and_plans_with_the_parameters_of_the_published_network(name: str) -> None:
    model = composed(f"model={name}")["model"]
    complaints = Complaints()
    plan = plan_network((3, 224, 224), model["blocks"], complaints, classes=1000, init=model["init"])
    complaints.raise_if_any()
    assert plan is not None
    published = {weights.meta["num_params"] for weights in models.get_model_weights(name)}
    assert plan.rows[0].parameters + AUXILIARY.get(name, 0) in published
    assert plan.output_shape == (1000,)


def test_macs_are_those_that_torchvision_gives() -> None:
    complaints = Complaints()
    plan = plan_network((3, 224, 224), composed("model=resnet18")["model"]["blocks"], complaints, classes=1000)
    assert plan is not None
    published = models.ResNet18_Weights.IMAGENET1K_V1.meta["_ops"]  # in 10⁹
    assert plan.rows[0].macs / 1e9 == pytest.approx(published, abs=1e-3)


def test_no_file_of_ours_has_a_name_of_torchvisions() -> None:
    assert not {path.stem for path in (CONFIGS / "model").glob("*.yaml")} & set(NAMES)


def test_a_file_of_the_users_goes_before_the_network_of_that_name(
    in_tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    configs = tmp_path_factory.mktemp("configs")
    (configs / "model").mkdir()
    (configs / "model" / "resnet18.yaml").write_text(
        "blocks: {flatten: flatten, mine: {type: linear, out_features: classes}}\n"
    )
    answer = run(train, f"--config-dir={configs}", "model=resnet18", "trainer.max_steps=0")
    assert answer.code == 0, answer.err
    assert "mine" in answer.out
    assert "torchvision" not in answer.out


def test_an_experiment_can_choose_one(in_tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    configs = tmp_path_factory.mktemp("configs")
    (configs / "experiment").mkdir()
    (configs / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: squeezenet1_1\ndata: {type: mnist}\n"
    )
    answer = run(train, f"--config-dir={configs}", "experiment=mine", "data=mnist", "trainer.max_steps=0")
    assert answer.code == 0, answer.err
    assert "torchvision squeezenet1_1" in answer.out


def test_the_help_says_torchvisions_names_in_a_word(in_tmp_path: Path) -> None:
    answer = run(train, "--help")
    line = next(line for line in answer.out.splitlines() if line.startswith("model: "))
    assert line.startswith("model: cnn, lenet")
    assert line.endswith("or one of torchvision's 80 networks, such as resnet18")
    assert "data: cifar10, cifar100, digits" in answer.out
    assert "experiment/debug: fast, overfit" in answer.out
    assert "\nmodel/blocks: allcnn, convnext_tiny, " in answer.out  # ours, of a name that torchvision has too
