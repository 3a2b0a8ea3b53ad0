from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnnlab.blocks.torchvision_networks import torchvision_network
from cnnlab.network.plan import plan_network
from cnnlab.network.trunk import find_cut
from cnnlab.runtime.errors import ArgumentError, Complaints
from cnnlab.runtime.randomness import capture_generators, same_generators

CONV = {"type": "conv", "out_channels": 4, "kernel_size": 3, "padding": "same"}
OUTPUT = {"type": "linear", "out_features": 3}
CHAIN: dict[str, Any] = {"conv": CONV, "norm": "batch_norm", "relu": "relu", "flatten": "flatten"}
DROPOUT = {"type": "dropout", "p": 0.5}


def built(blocks: dict[str, Any], freeze: Any) -> nn.Module:
    complaints = Complaints()
    plan = plan_network((2, 6, 6), blocks, complaints, freeze=freeze)
    complaints.raise_if_any()
    assert plan
    return plan.build()


def images() -> Tensor:
    return torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(0))


def cut_of(blocks: dict[str, Any], freeze: Any) -> list[str]:
    """The paths after the cut; the head gives what the network does."""
    network, x_NCHW = built(blocks, freeze), images()
    cut = find_cut(network, x_NCHW)
    features = cut.features(network, x_NCHW)
    assert tuple(features.shape[1:]) == cut.shape
    torch.manual_seed(1)
    expected = network(x_NCHW)
    torch.manual_seed(1)
    assert torch.equal(cut.head(network)(features), expected)
    return [stage.path for stage in cut.stages]


def test_the_trunk_is_the_longest_beginning_that_is_frozen() -> None:
    assert cut_of({**CHAIN, "output": OUTPUT}, ["conv", "norm"]) == ["output"]
    assert cut_of({**CHAIN, "hidden": {"type": "linear", "out_features": 5}, "output": OUTPUT}, ["conv", "norm"]) == [
        "hidden",
        "output",
    ]
    assert cut_of({**CHAIN, "output": OUTPUT}, ["conv"]) == ["norm", "relu", "flatten", "output"]


def test_it_ends_before_the_first_layer_that_draws() -> None:
    assert cut_of({**CHAIN, "dropout": DROPOUT, "output": OUTPUT}, ["conv", "norm"]) == ["dropout", "output"]


def test_blocks_of_blocks_are_cut_within() -> None:
    inner = {"type": "sequential", "blocks": {"conv1": CONV, "relu1": "relu", "conv2": CONV}}
    assert cut_of({"stem": inner, "flatten": "flatten", "output": OUTPUT}, ["stem.conv1"]) == [
        "stem.conv2",
        "flatten",
        "output",
    ]


def test_a_layer_that_reaches_back_forbids_the_cuts_between() -> None:
    blocks = {
        "conv1": CONV,
        "conv2": CONV,
        "conv3": CONV,
        "sum": {"type": "add", "from": ["conv3", "conv1"]},
        "flatten": "flatten",
        "output": OUTPUT,
    }
    assert cut_of(blocks, ["conv1", "conv2"]) == ["conv2", "conv3", "sum", "flatten", "output"]
    assert cut_of(blocks, ["conv*"]) == ["output"]


def test_a_network_of_torchvisions_is_cut_before_its_classifier() -> None:
    network = nn.Sequential()
    network.add_module("network", torchvision_network("shufflenet_v2_x0_5", 5))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith("network.fc"))
    x_NCHW = torch.randn(2, 3, 32, 32)
    with pytest.raises(ArgumentError, match=r"running_mean changes in training"):
        find_cut(network, x_NCHW)
    for module in network.modules():
        module.train(not isinstance(module, nn.BatchNorm2d))
    cut = find_cut(network, x_NCHW)
    assert (cut.path, cut.shape) == ("network.fc", (1024,))
    assert [name for name, _ in cut.head(network).named_parameters()] == ["network.fc.weight", "network.fc.bias"]
    assert torch.equal(cut.head(network)(cut.features(network, x_NCHW)), network(x_NCHW))


class Own(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Centred(nn.BatchNorm2d):
    """Counts as torch's: what an image gives depends on its batch, in evaluation mode too."""

    __module__ = "torch.nn.centred"


class ActsAfterwards(nn.Module):
    """Its last child's output is its own, changed in place."""

    __module__ = "torchvision.models.own"

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(64, 3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.fc(self.conv(x_NCHW).flatten(1)).relu_()


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (nn.Sequential(Own()), "0.0 is a class of your own"),
        (Centred(2, affine=False, track_running_stats=False), "depends on the others of its batch"),
        (nn.Dropout(0.5), "0 draws random numbers in training"),
    ],
    ids=str,
)
def test_what_gives_other_features_each_time_is_refused_with_the_reason(first: nn.Module, reason: str) -> None:
    frozen = nn.Conv2d(2, 4, 3).requires_grad_(False)
    network = nn.Sequential(first, frozen, nn.Flatten(), nn.Linear(64, 3)).train()
    with pytest.raises(ArgumentError, match=reason):
        find_cut(network, images())


def test_a_module_that_changes_its_last_layers_output_is_not_cut_within() -> None:
    network = nn.Sequential(nn.Identity(), ActsAfterwards())
    network[1].conv.requires_grad_(False)
    assert [stage.path for stage in find_cut(network, images()).stages] == ["1"]


def test_looking_for_it_leaves_weights_buffers_modes_and_generators_alone() -> None:
    network = built({**CHAIN, "dropout": DROPOUT, "output": OUTPUT}, ["conv"])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes, generators = [module.training for module in network.modules()], capture_generators()
    find_cut(network, images())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert modes == [module.training for module in network.modules()]
    assert same_generators(generators, capture_generators())
