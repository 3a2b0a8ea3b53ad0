"""Blocks that multiply, against their formulas and torchvision's."""

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from cnnlab.blocks.scaling import LayerScale, Scale, SqueezeExcitation
from cnnlab.network import build_network
from cnnlab.runtime.errors import ArgumentError, ConfigError


def test_scale_multiplies_by_its_factor_and_learns_nothing() -> None:
    x = torch.randn(2, 3)
    torch.testing.assert_close(Scale(1 / 9)(x), x / 9)
    assert list(Scale(2).state_dict()) == []


@pytest.mark.parametrize("shape", [(3, 5, 4), (5, 3), (3,)], ids=["image", "sequence", "features"])
def test_layer_scale_multiplies_each_channel_by_its_own_factor(shape: tuple[int, ...]) -> None:
    scale = build_network(shape, {"scale": "layer_scale"})[0]
    assert isinstance(scale, LayerScale)
    assert scale.weight.tolist() == pytest.approx([1e-6] * 3)
    with torch.no_grad():
        scale.weight.copy_(torch.tensor([1.0, 2.0, -3.0]))
    x = torch.randn(2, *shape)
    channels = (3, 1, 1) if len(shape) == 3 else (3,)
    torch.testing.assert_close(scale(x), x * torch.tensor([1.0, 2.0, -3.0]).view(channels))


def test_layer_scale_starts_at_its_value_whatever_the_networks_init() -> None:
    network = build_network((3, 5, 4), {"scale": {"type": "layer_scale", "init_value": 0.1}}, init="he")
    assert network.get_parameter("scale.weight").tolist() == pytest.approx([0.1] * 3)


@pytest.mark.parametrize(("activation", "of_torch"), [("relu", nn.ReLU), ("silu", nn.SiLU)])
@pytest.mark.parametrize(("gate", "gate_of_torch"), [("sigmoid", nn.Sigmoid), ("hardsigmoid", nn.Hardsigmoid)])
def test_squeeze_excitation_is_torchvisions(
    activation: str, of_torch: type[nn.Module], gate: str, gate_of_torch: type[nn.Module]
) -> None:
    ours = SqueezeExcitation(6, 2, activation, gate)
    theirs = torchvision.ops.SqueezeExcitation(6, 2, of_torch, gate_of_torch)
    theirs.load_state_dict(ours.state_dict())
    x_NCHW = torch.randn(2, 6, 4, 5)
    torch.testing.assert_close(ours(x_NCHW), theirs(x_NCHW))


@pytest.mark.parametrize(
    ("block", "arguments", "message"),
    [
        (Scale, {"factor": float("nan")}, "factor: expected a number"),
        (LayerScale, {"input_shape": (3, 4, 4), "init_value": "x"}, "init_value: expected a number"),
        (SqueezeExcitation, {"in_channels": 4, "squeeze_channels": 0}, "squeeze_channels: expected a whole number"),
        (
            SqueezeExcitation,
            {"in_channels": 4, "squeeze_channels": 2, "activation": "rleu"},
            "activation: expected .*relu, silu, received 'rleu'; did you mean 'relu'",
        ),
        (
            SqueezeExcitation,
            {"in_channels": 4, "squeeze_channels": 2, "scale_activation": "tanh"},
            "scale_activation: expected .*sigmoid, hardsigmoid, received 'tanh'",
        ),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused(block: type[nn.Module], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{message}"):
        block(**arguments)


def test_a_given_shape_that_is_not_the_inputs_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"scale.input_shape: expected 3×5×4, which is inferred"):
        build_network((3, 5, 4), {"scale": {"type": "layer_scale", "input_shape": [4, 5, 4]}})
