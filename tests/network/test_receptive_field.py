"""How many pixels one unit sees: by hand, and by the reach of the gradient."""

from typing import Any

import pytest
import torch

from cnnlab.network import build_network, plan_network
from cnnlab.runtime.errors import Complaints

Blocks = dict[str, Any]


def fields(input_shape: tuple[int, ...], blocks: Blocks) -> dict[str, str]:
    """Layer path → receptive field, as the table has it."""
    complaints = Complaints()
    plan = plan_network(input_shape, blocks, complaints)
    complaints.raise_if_any()
    assert plan is not None
    return {row.path: row.receptive_field for row in plan.rows}


def conv(kernel_size: Any, **settings: Any) -> Blocks:
    return {"type": "conv", "out_channels": 2, "kernel_size": kernel_size, "bias": False, **settings}


def pool(kernel_size: Any, **settings: Any) -> Blocks:
    return {"type": "avg_pool", "kernel_size": kernel_size, **settings}


def residual(block: Blocks) -> Blocks:
    return {"type": "residual", "blocks": {"block": block}}


def test_two_convolutions_with_pooling() -> None:
    blocks = {"conv1": conv(5), "pool1": pool(2), "conv2": conv(5), "pool2": pool(2)}
    assert fields((1, 28, 28), blocks) == {
        "conv1": "5×5",  # 1 + 4·1
        "pool1": "6×6",  # 5 + 1·1, now 2 pixels from unit to unit
        "conv2": "14×14",  # 6 + 4·2
        "pool2": "16×16",  # 14 + 1·2
    }


def test_height_and_width_grow_by_themselves() -> None:
    assert fields((1, 9, 9), {"conv": conv([3, 5])})["conv"] == "3×5"


def test_dilation_widens_the_field() -> None:
    assert fields((1, 20, 20), {"conv": conv(3, dilation=4)})["conv"] == "9×9"  # 1 + 2·4


CHAINS: dict[str, Blocks] = {
    "cp-cp": {"c1": conv(5), "p1": pool(2), "c2": conv(5), "p2": pool(2)},
    "stride": {"c1": conv(3, stride=2), "c2": conv(3, stride=3), "c3": conv(2)},
    "dilation": {"c1": conv(3, dilation=2), "c2": conv(3, dilation=3, stride=2), "c3": conv(2, dilation=2)},
    "padding": {"c1": conv(3, padding=1), "p1": pool(3, stride=2, padding=1), "c2": conv(5, padding="same")},
    "sides": {"c1": conv([3, 5], stride=[1, 2]), "p1": pool([2, 1]), "c2": conv([2, 3], dilation=[3, 1])},
    "overlapping pools": {"p1": pool(3, stride=1), "p2": pool(3, stride=2), "p3": pool(2, stride=1)},
    "local layers between": {"c1": conv(3), "n1": "batch_norm", "a1": "sigmoid", "p1": pool(2), "c2": conv(3)},
    "sequential": {"s": {"type": "sequential", "repeat": 2, "blocks": {"c": conv(3), "p": pool(2)}}},
    "residual": {"c1": conv(3, stride=2), "r": residual(conv(5, padding=2)), "p": pool(2)},
    "projection": {"c1": conv(3), "r": residual(conv(3, padding=1, stride=2)), "c2": conv(3)},
}


@pytest.mark.parametrize("blocks", CHAINS.values(), ids=CHAINS.keys())
def test_the_field_is_the_reach_of_the_gradient(blocks: Blocks) -> None:
    input_shape = (1, 65, 65)
    network = build_network(input_shape, blocks).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0)  # all positive: nothing cancels
    x_NCHW = torch.rand(1, *input_shape, dtype=torch.float64, requires_grad=True) * 1e-3
    x_NCHW.retain_grad()
    output_NCHW = network(x_NCHW)
    output_NCHW[0, 0, output_NCHW.shape[2] // 2, output_NCHW.shape[3] // 2].backward()
    assert x_NCHW.grad is not None
    reached = x_NCHW.grad[0, 0].nonzero()
    height, width = (reached.amax(0) - reached.amin(0) + 1).tolist()
    table = fields(input_shape, blocks)
    assert table[list(blocks)[-1]] == f"{height}×{width}"


def test_a_residual_has_the_field_of_its_larger_branch() -> None:
    branches = {"blocks": {"conv": conv(3, padding=1)}, "projection": {"conv": conv(5, padding=2)}}
    assert fields((1, 9, 9), {"block": {"type": "residual", **branches}}) == {
        "block": "5×5",
        "block.blocks.conv": "3×3",
        "block.projection.conv": "5×5",
    }


@pytest.mark.parametrize("name", ["relu", "batch_norm", "dropout", "dropout2d", "softmax", "flatten", "torch.nn.PReLU"])
def test_a_layer_of_single_units_keeps_the_field(name: str) -> None:
    assert fields((1, 9, 9), {"conv": conv(3), "layer": name})["layer"] == "3×3"


@pytest.mark.parametrize(
    "spec",
    [
        "global_avg_pool",
        "global_max_pool",
        {"type": "adaptive_avg_pool", "output_size": 2},
        {"type": "adaptive_max_pool", "output_size": 2},
        {"type": "group_norm", "num_groups": 1},
        "layer_norm",
    ],
    ids=str,
)
def test_a_global_layer_sees_the_whole_input(spec: Any) -> None:
    assert fields((1, 9, 9), {"conv": conv(3), "layer": spec, "act": "relu"}) == {
        "conv": "3×3",
        "layer": "whole",
        "act": "whole",
    }


def test_a_linear_layer_sees_the_whole_input() -> None:
    blocks = {"conv": conv(3), "flatten": "flatten", "output": {"type": "linear", "out_features": 2}}
    assert fields((1, 9, 9), blocks)["output"] == "whole"


def test_a_residual_that_sees_the_whole_input_in_one_branch_sees_it() -> None:
    block = {"type": "residual", "blocks": {"norm": "layer_norm"}}
    assert fields((2, 9, 9), {"conv": conv(3), "block": block})["block"] == "whole"


def test_what_is_not_known_is_no_guess() -> None:
    blocks = {"conv1": conv(3), "shuffle": {"type": "torch.nn.PixelShuffle", "upscale_factor": 1}, "conv2": conv(3)}
    assert fields((1, 9, 9), blocks) == {"conv1": "3×3", "shuffle": "–", "conv2": "–"}
