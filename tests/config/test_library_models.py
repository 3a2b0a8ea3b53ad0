"""`model=NAME` for every classification network of torchvision, `model=timm/NAME` for those of timm."""

from pathlib import Path

import pytest
import torch
from commands import composed, run
from torch import Tensor, nn
from torchvision import models

from cnnlab.cli import train
from cnnlab.config.compose import CONFIGS
from cnnlab.config.library_models import NAMES
from cnnlab.network import NetworkPlan, plan_network
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
    assert line.endswith("or one of torchvision's 80 networks, such as resnet18; timm/NAME is one of timm's")
    assert "data: arrays, cifar10, cifar100, csv, digits" in answer.out
    assert "experiment/debug: fast, overfit" in answer.out
    assert (
        "\nmodel/blocks: airbench94, allcnn, convnext_tiny, " in answer.out
    )  # ours, of a name that torchvision has too


# timm's


def planned(name: str, side: int, classes: int) -> NetworkPlan:
    complaints = Complaints()
    blocks = composed(f"model=timm/{name}")["model"]["blocks"]
    plan = plan_network((3, side, side), blocks, complaints, classes=classes)
    complaints.raise_if_any()
    assert plan is not None
    return plan


def multiplications(network: nn.Module, x_NCHW: Tensor) -> int:
    """Of every convolution and linear layer in one forward pass, per image."""
    counts: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        counts.append(output[0].numel() * weight[0].numel())

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    network(x_NCHW)
    return sum(counts)


def test_timms_network_has_timms_parameters_and_the_macs_of_its_layers() -> None:
    timm = pytest.importorskip("timm")
    row = planned("test_resnet.r160_in1k", 40, 10).rows[0]
    theirs = timm.create_model("test_resnet", num_classes=10).eval()
    assert row.block == "timm test_resnet.r160_in1k"
    assert row.parameters == sum(parameter.numel() for parameter in theirs.parameters())
    assert row.macs == multiplications(theirs, torch.zeros(1, 3, 40, 40))


FAMILIES = {  # parameters with 1,000 classes, in 10⁶, as the papers or timm's model cards give them
    "cait_xxs24_224": 12.0,
    "convnext_tiny.fb_in1k": 28.6,
    "deit_tiny_patch16_224": 5.7,
    "efficientnet_b0": 5.3,
    "mobilenetv3_small_100": 2.5,
    "regnety_002": 3.2,
    "resnet10t.c3_in1k": 5.4,
    "resnet50.a1_in1k": 25.6,
    "swin_tiny_patch4_window7_224": 28.3,
    "vit_tiny_patch16_224": 5.7,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_of_each_family_has_its_published_size(name: str) -> None:
    pytest.importorskip("timm")
    assert planned(name, 224, 1000).rows[0].parameters / 1e6 == pytest.approx(FAMILIES[name], abs=0.051)


def test_an_unknown_name_of_timms_is_refused_with_the_nearest(in_tmp_path: Path) -> None:
    pytest.importorskip("timm")
    answer = run(train, "model=timm/resnet10")
    assert answer.code == 2
    assert "model.blocks.network.name: timm has no network 'resnet10'; did you mean 'resnet1" in answer.err
