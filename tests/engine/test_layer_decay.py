import pytest
import torch
from torch import nn

from cnnlab.engine.layer_decay import layer_scales
from cnnlab.network import build_network

BLOCKS = {
    "conv1": {"type": "conv", "out_channels": 2, "kernel_size": 3},
    "norm1": "batch_norm",
    "relu1": "relu",
    "block1": {"type": "residual", "blocks": {"conv": {"type": "conv", "out_channels": 2, "kernel_size": 1}}},
    "flatten": "flatten",
    "output": {"type": "linear", "out_features": 3},
}


def test_each_layer_with_parameters_is_one_factor_further_from_the_output() -> None:
    scales = layer_scales(build_network((1, 4, 4), BLOCKS), 0.5)
    assert scales == {
        "conv1.weight": 0.25,
        "conv1.bias": 0.25,
        "norm1.weight": 0.25,  # belongs to conv1
        "norm1.bias": 0.25,
        "block1.blocks.conv.weight": 0.5,
        "block1.blocks.conv.bias": 0.5,
        "output.weight": 1.0,
        "output.bias": 1.0,
    }


def test_a_network_of_torchvisions_is_decayed_by_its_blocks() -> None:
    with torch.device("meta"):
        network = build_network((3, 32, 32), {"network": {"type": "torchvision", "name": "resnet18", "num_classes": 3}})
    scales = layer_scales(network, 0.5)
    expected = {"conv1": 9, "bn1": 9, "layer1.0": 8, "layer1.1": 7, "layer2.0": 6, "layer2.1": 5}
    expected |= {"layer3.0": 4, "layer3.1": 3, "layer4.0": 2, "layer4.1": 1, "fc": 0}
    assert scales.keys() == dict(network.named_parameters()).keys()
    for layer, followers in expected.items():
        found = {scale for name, scale in scales.items() if name.startswith(f"network.{layer}.")}
        assert found == {0.5**followers}


def test_a_parameter_of_the_network_itself_joins_the_first_layer() -> None:
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
        network.register_parameter("token", nn.Parameter(torch.zeros(1)))
    assert layer_scales(network, 0.1)["token"] == pytest.approx(0.1)
