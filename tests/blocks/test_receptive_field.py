"""How many pixels one unit sees: by hand, and by the reach of the gradient."""

from typing import Any

import pytest
import torch

from cnnlab.blocks.receptive_field import ReceptiveField
from cnnlab.network import NetworkPlan, plan_network
from cnnlab.runtime.errors import Complaints

Blocks = dict[str, Any]


def planned(input_shape: tuple[int, ...], blocks: Blocks) -> NetworkPlan:
    complaints = Complaints()
    plan = plan_network(input_shape, blocks, complaints)
    complaints.raise_if_any()
    assert plan is not None
    return plan


def fields(input_shape: tuple[int, ...], blocks: Blocks) -> dict[str, str]:
    """Layer path → receptive field, as the table shows it."""
    return {row.path: row.receptive_field for row in planned(input_shape, blocks).rows}


def conv(kernel_size: Any, **settings: Any) -> Blocks:
    return {"type": "conv", "out_channels": 2, "kernel_size": kernel_size, "bias": False, **settings}


def pool(kernel_size: Any, **settings: Any) -> Blocks:
    return {"type": "avg_pool", "kernel_size": kernel_size, **settings}


def branches(join: str, **named: Any) -> Blocks:
    return {"type": "branches", "join": join, "branches": named}


def residual(block: Blocks, **projection: Blocks) -> Blocks:
    return {"type": "residual", "blocks": {"block": block}, **({"projection": projection} if projection else {})}


def test_two_convolutions_with_pooling() -> None:
    blocks = {"conv1": conv(5), "pool1": pool(2), "conv2": conv(5), "pool2": pool(2)}
    assert fields((1, 28, 28), blocks) == {
        "conv1": "5×5",  # 1 + 4·1
        "pool1": "6×6",  # 5 + 1·1, now 2 pixels from unit to unit
        "conv2": "14×14",  # 6 + 4·2
        "pool2": "16×16",  # 14 + 1·2
    }


CHAINS: dict[str, Blocks] = {
    "stride": {"c1": conv(3, stride=2), "c2": conv(3, stride=3), "c3": conv(2)},
    "dilation": {"c1": conv(3, dilation=2), "c2": conv(3, dilation=3, stride=2), "c3": conv(2, dilation=2)},
    "padding": {"c1": conv(3, padding=1), "p1": pool(3, stride=2, padding=1), "c2": conv(5, padding="same")},
    "even padding": {"c1": conv(4, padding="same"), "c2": conv([2, 6], padding="same")},
    "sides": {"c1": conv([3, 5], stride=[1, 2]), "p1": pool([2, 1]), "c2": conv([2, 3], dilation=[3, 1])},
    "local layers between": {"c1": conv(3), "n1": "batch_norm", "a1": "sigmoid", "p1": pool(2), "c2": conv(3)},
    "sequential": {"s": {"type": "sequential", "repeat": 2, "blocks": {"c": conv(3), "p": pool(2)}}},
    "residual": {"c1": conv(3, stride=2), "r": residual(conv(5, padding=2)), "p": pool(2)},
    "crossed branches": {"r": residual(conv([1, 5], padding=[0, 2]), c=conv([3, 1], padding=[1, 0])), "p": pool(2)},
    "offsets": {"c": conv(1), "r": residual(pool(2, padding=1), d=conv(2, padding="same"), e=conv(1, stride=2))},
    "zero pad shortcut": {
        "r": residual(conv(5, padding=2, stride=2), z={"type": "zero_pad_shortcut", "out_channels": 2, "stride": 2})
    },
    "branches": {
        "b": branches("concat", a=conv([1, 5], padding=[0, 2]), b=conv([3, 1], padding=[1, 0])),
        "c": conv(1),
    },
    "branches with offsets": {
        "b": branches("add", a=conv(3, padding=0), b={"blocks": {"c": conv([2, 4], padding=1), "d": conv([4, 2])}}),
        "p": pool(2),
    },
    "read twice": {
        "a": conv(3, padding=1),
        "b": conv(5, padding=2),
        "j": {"type": "mean", "from": ["b", "a"]},
        "p": pool(2),
    },
    "read past a wide one": {
        "a": conv(3, padding=1),
        "b": conv(5, padding=2),
        "c": {"type": "tanh", "from": "a"},
        "j": {"type": "concat", "from": ["c", "input"]},
        "u": {"type": "add", "from": ["b", "a"]},
        "e": {"type": "concat", "from": ["u", "j"]},
    },
    "a gate for channels": {
        "g": branches("multiply", x="identity", gate={"blocks": {"p": {"type": "adaptive_avg_pool", "output_size": 1}}})
    },
    "softmax over a row": {"c": conv(3, padding=1), "s": {"type": "softmax", "dim": 3}},
    "softmax over a column": {"c": conv([1, 3], padding=[0, 1]), "s": {"type": "torch.nn.Softmax", "dim": -2}},
    "layer norm of a row": {"n": {"type": "layer_norm", "normalized_shape": [33]}},
    "separable": {"c": {"type": "separable_conv", "out_channels": 2, "kernel_size": 5, "stride": 2}, "p": pool(2)},
    "depthwise": {"c": {"type": "depthwise_conv", "kernel_size": 3, "dilation": 2}, "c2": conv(3)},
    "transposed": {"t": {"type": "conv_transpose", "out_channels": 2, "kernel_size": 3, "bias": False}, "c": conv(2)},
    "transposed offsets": {
        "c": conv(3, padding=1, stride=2),
        "r": residual(
            {"type": "conv_transpose", "out_channels": 2, "kernel_size": [4, 2], "padding": [1, 0], "dilation": [2, 1]},
            d=conv([1, 1], padding=[2, 0]),
            e={"type": "avg_pool", "kernel_size": [1, 2], "padding": [0, 1], "stride": 1},
        ),
        "c2": conv(2),
    },
    "space to depth": {"c": conv(2), "s": {"type": "space_to_depth", "downscale_factor": 4}, "d": conv(2)},
    "subsampling": {"c": conv(3), "s": "subsampling", "d": conv(2)},
    "layer scale": {"c": conv(3), "l": "layer_scale", "d": conv(2)},
    "squeeze excitation": {"c": conv(3), "s": {"type": "squeeze_excitation", "squeeze_channels": 1}},
    "softmax of all features": {"f": "flatten", "s": "softmax"},
    "batch norm of the batch": {"c": conv(3), "n": {"type": "batch_norm", "track_running_stats": False}},
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("blocks", CHAINS.values(), ids=CHAINS.keys())
def test_the_field_is_the_reach_of_the_gradient(blocks: Blocks) -> None:
    input_shape = (1, 33, 33)
    plan = planned(input_shape, blocks)
    network = plan.build().double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0)  # all positive: nothing cancels
    x_NCHW = torch.rand(1, *input_shape, dtype=torch.float64, requires_grad=True)
    output = network(x_NCHW * 1e-3)[0, 0]
    output[tuple(size // 2 for size in output.shape)].backward()
    assert x_NCHW.grad is not None
    reached = x_NCHW.grad[0, 0].nonzero()
    reach = [str(size) if size < 33 else "whole" for size in (reached.amax(0) - reached.amin(0) + 1).tolist()]
    last = next(row for row in plan.rows if row.path == list(blocks)[-1])
    assert last.receptive_field == ("whole" if reach == ["whole", "whole"] else "×".join(reach))


@pytest.mark.parametrize(
    "name", ["batch_norm", "dropout2d", "softmax", "flatten", "prelu", "glu", "mish", "layer_norm2d"]
)
def test_a_layer_of_single_units_keeps_the_field(name: str) -> None:
    assert fields((1, 9, 9), {"conv": conv(3), "layer": name})["layer"] == "3×3"


@pytest.mark.parametrize(
    "spec",
    [
        "global_avg_pool",
        {"type": "adaptive_avg_pool", "output_size": 2},
        {"type": "group_norm", "num_groups": 1},
        {"type": "sequential", "blocks": {"flatten": "flatten", "linear": {"type": "linear", "out_features": 2}}},
        {"type": "residual", "blocks": {"norm": "layer_norm"}},
        residual({"type": "torch.nn.PixelShuffle", "upscale_factor": 1}, norm={"type": "layer_norm"}),
    ],
    ids=str,
)
def test_a_layer_that_sees_everything_passes_that_on(spec: Any) -> None:
    table = fields((2, 9, 9), {"conv": conv(3), "layer": spec, "act": "relu"})
    assert (table["conv"], table["layer"], table["act"]) == ("3×3", "whole", "whole")


@pytest.mark.parametrize(
    "spec",
    [
        {"type": "torch.nn.PixelShuffle", "upscale_factor": 1},
        {"type": "conv_transpose", "out_channels": 2, "kernel_size": 3, "stride": 2},
        {"type": "upsample", "scale_factor": 2},
        {"type": "sequential", "blocks": {"c": conv([1, 2]), "glu": {"type": "glu", "dim": 3}}},
        # every second unit of one branch stands beside every unit of the other
        residual(conv(1, stride=2), pool={"type": "avg_pool", "kernel_size": 5, "stride": 1}),
    ],
    ids=["unknown class", "stride of a transposed convolution", "upsampling", "half a row", "different jumps"],
)
def test_an_unknown_field_stays_unknown(spec: Any) -> None:
    table = fields((2, 9, 9), {"conv1": conv(1), "layer": spec, "conv2": conv(3)})
    assert (table["conv1"], table["layer"], table["conv2"]) == ("1×1", "–", "–")


def test_positions_of_a_sequence_see_their_patch_until_attention_joins_them() -> None:
    blocks = {
        "patches": conv(3, stride=3),
        "sequence": "image_to_sequence",
        "token": "class_token",
        "embedding": "positional_embedding",
        "norm": "layer_norm",
        "linear": {"type": "linear", "out_features": 4},
        "attention": {"type": "attention", "num_heads": 2},
        "first": "first_token",
    }
    seen = fields((1, 9, 9), blocks)
    assert set(list(seen.values())[:6]) == {"3×3"}
    assert set(list(seen.values())[6:]) == {"whole"}


def test_a_subclass_with_a_forward_of_its_own_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mirrored(torch.nn.ReLU):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input.flip(3))

    monkeypatch.setattr(torch.nn, "Mirrored", Mirrored, raising=False)
    assert fields((1, 9, 9), {"conv": conv(3), "act": "torch.nn.Mirrored"})["act"] == "–"


def test_a_users_block_may_state_its_own_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cross(torch.nn.Module):
        def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
            return x_NCHW + x_NCHW.roll(1, 2)

        def facts(self, shape: tuple[int, ...]) -> Any:
            from cnnlab.blocks.facts import Facts

            return Facts(shape, 7, lambda field: ReceptiveField(field.rows.windowed(2, 1, 1, 1), field.columns), "up")

    monkeypatch.setattr(torch.nn, "Cross", Cross, raising=False)
    (row,) = planned((1, 9, 9), {"cross": "torch.nn.Cross"}).rows
    assert (row.block, row.macs, row.receptive_field) == ("torch.nn.Cross up", 7, "2×1")
