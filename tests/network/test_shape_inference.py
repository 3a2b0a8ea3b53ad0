"""A layer that does not fit is reported with its key and its input; the facts of one that does are those of the
real layer.
"""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cnnlab.network import build_network, plan_network
from cnnlab.runtime.errors import Complaints, ConfigError

CONV = {"type": "conv", "out_channels": 4, "kernel_size": 3}
LINEAR = {"type": "linear", "out_features": 5}


def conv(**settings: Any) -> dict[str, Any]:
    return {"type": "conv", "out_channels": 6, "kernel_size": 3, **settings}


MISFITS: list[tuple[tuple[int, ...], dict[str, Any], str]] = [
    (
        (1, 8, 8),
        {"conv": conv(kernel_size=5), "pool": {"type": "max_pool", "kernel_size": 5}},
        "model.blocks.pool: kernel 5×5 does not fit its input 6×4×4: height (4 + 0 − 5) / 5 + 1 < 1; the smallest ",
    ),
    (
        (1, 2, 2),
        {"stage": {"type": "sequential", "blocks": {"pool": {"type": "avg_pool", "kernel_size": 3}}}},
        "model.blocks.stage.blocks.pool: kernel 3×3 does not fit its input 1×2×2",
    ),
    (
        (2, 3, 4),
        {"output": LINEAR},
        "model.blocks.output: expected features, received an image of 2×3×4; put 'flatten' (24 features) or "
        "'global_avg_pool' (2) before it",
    ),
    (
        (10,),
        {"output": {**LINEAR, "in_features": 12}},
        "model.blocks.output: in_features=12, but 10 features reach it;",
    ),
    ((3, 8, 8), {"conv": conv(in_channels=1)}, "model.blocks.conv: in_channels=1, but 3 channels reach it (3×8×8);"),
    ((3, 8, 8), {"conv": conv(groups=2)}, "model.blocks.conv.groups: in_channels 3 cannot be divided into 2 groups"),
    (
        (3, 8, 8),
        {"norm": {"type": "batch_norm", "num_features": 5}},
        "model.blocks.norm: num_features=5, but 3 channels",
    ),
    (
        (3, 8, 8),
        {"norm": {"type": "group_norm", "num_groups": 2, "num_channels": 4}},
        "model.blocks.norm: num_channels=4,",
    ),
    (
        (3, 8, 8),
        {"norm": {"type": "layer_norm", "normalized_shape": [8, 3]}},
        "model.blocks.norm.normalized_shape: expected the last sizes of 3×8×8, received 8×3",
    ),
    (
        (3, 8, 8),
        {"act": {"type": "torch.nn.PReLU", "num_parameters": 2}},
        "model.blocks.act: PReLU does not fit its input 3×8×8: ",
    ),
    (
        (3, 8, 8),
        {"pool": {"type": "torch.nn.MaxPool2d", "kernel_size": 2, "return_indices": True}},
        "model.blocks.pool.return_indices: expected false",
    ),
    (
        (3, 2, 2),
        {"flatten": {"type": "flatten", "start_dim": 0}},
        "model.blocks.flatten: expected one tensor with the batch in front from Flatten, received 24",
    ),
    (
        (64,),
        {"softmax": {"type": "softmax", "dim": -3}},
        "model.blocks.softmax.dim: expected 1 to 1 (or −1 to −1) for an input of 64, received -3",
    ),
    (
        (1, 8, 8),
        {"pixels": {"type": "permute_pixels", "input_shape": [1, 4, 4]}},
        "model.blocks.pixels.input_shape: expected 1×8×8",
    ),
    (
        (1, 8, 8),
        {"lstm": {"type": "lstm", "hidden_size": 2, "input_shape": [1, 4, 4]}},
        "model.blocks.lstm.input_shape: expected 1×8×8",
    ),
    (
        (1, 8, 8),
        {"pool": {"type": "torch.nn.MaxPool2d", "kernel_size": 2, "padding": 2}},
        "model.blocks.pool.padding: expected at most half of the kernel_size 2, received 2",
    ),
    (
        (1, 8, 8),
        {"pool": {"type": "torch.nn.AdaptiveAvgPool2d", "output_size": [2, 2, 2]}},
        "model.blocks.pool.output_size: expected a whole number or a pair",
    ),
    (
        (1, 8, 8),
        {"conv": {"type": "torch.nn.Conv2d", "out_channels": 2, "kernel_size": 3, "stride": 0}},
        "model.blocks.conv.stride: expected a whole number from 1 to 65536, received 0",
    ),
    ((7,), {"answer": "two_classes"}, "model.blocks.answer: expected the activation of one neuron, received 7"),
]


@pytest.mark.parametrize(("input_shape", "blocks", "message"), MISFITS, ids=lambda value: str(value)[:40])
def test_a_layer_that_does_not_fit_is_reported_with_its_key_and_input(
    input_shape: tuple[int, ...], blocks: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        build_network(input_shape, blocks)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "spec",
    [
        conv(kernel_size=1),
        {"type": "max_pool", "kernel_size": 1},
        {"type": "adaptive_avg_pool", "output_size": 1},
        "dropout2d",
        "global_avg_pool",
        "global_max_pool",
        {"type": "zero_pad_shortcut", "out_channels": 24},
        "permute_pixels",
    ],
    ids=str,
)
def test_a_layer_for_images_has_to_stand_before_flatten(spec: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        build_network((2, 3, 4), {"flatten": "flatten", "layer": spec})
    assert str(caught.value) == (
        "model.blocks.layer: expected an image (channels × height × width), received 24 features; "
        "put it before 'flatten'"
    )


MEASURED: list[tuple[tuple[int, ...], Any]] = [
    ((4, 9, 8), conv(kernel_size=[3, 2], stride=[2, 3], padding=[1, 0])),
    ((4, 9, 8), conv(dilation=2, groups=2, bias=False)),
    ((4, 9, 8), conv(padding="same", dilation=[1, 2])),
    ((4, 9, 8), conv(padding=2, padding_mode="reflect")),
    ((4, 9, 8), conv(padding=2, padding_mode="constant", padding_value=1.0)),
    ((4, 9, 8), {"type": "torch.nn.Conv2d", "out_channels": 6, "kernel_size": 3, "stride": 2}),
    ((4, 9, 8), {"type": "max_pool", "kernel_size": [3, 2], "stride": 2, "padding": 1, "dilation": 2}),
    ((4, 9, 8), {"type": "avg_pool", "kernel_size": 3, "ceil_mode": True}),
    ((4, 9, 8), {"type": "adaptive_avg_pool", "output_size": [2, 3]}),
    ((4, 9, 8), {"type": "torch.nn.AdaptiveMaxPool2d", "output_size": [None, 3]}),
    ((4, 9, 8), "global_avg_pool"),
    ((4, 9, 8), "global_max_pool"),
    ((4, 9, 8), "batch_norm"),
    ((4, 9, 8), {"type": "group_norm", "num_groups": 2}),
    ((4, 9, 8), "layer_norm"),
    ((4, 9, 8), "relu"),
    ((4, 9, 8), {"type": "softmax", "dim": -1}),
    ((4, 9, 8), "dropout2d"),
    ((4, 9, 8), "dropout"),
    ((4, 9, 8), "flatten"),
    ((4, 9, 8), {"type": "flatten", "start_dim": 2}),
    ((4, 9, 8), {"type": "torch.nn.ZeroPad2d", "padding": 3}),
    ((4, 9, 8), {"type": "zero_pad_shortcut", "out_channels": 6, "stride": 2}),
    ((4, 9, 8), "permute_pixels"),
    ((4, 9, 8), {"type": "residual", "blocks": {"conv": conv(stride=2)}, "projection": {"conv": conv(stride=2)}}),
    ((12,), LINEAR),
    ((7, 12), LINEAR),
    ((12,), "batch_norm"),
    ((4, 9, 8), "step"),
    ((1,), "two_classes"),
]


@pytest.mark.parametrize(("input_shape", "spec"), MEASURED, ids=str)
def test_the_shape_and_macs_are_those_of_the_real_layer(input_shape: tuple[int, ...], spec: Any) -> None:
    plan = plan_network(input_shape, {"layer": spec}, Complaints())
    assert plan is not None
    with FlopCounterMode(display=False) as counter:
        output = plan.build().eval()(torch.zeros(1, *input_shape))
    assert plan.output_shape == tuple(output.shape[1:])
    assert sum(row.macs for row in plan.rows) == counter.get_total_flops() / 2
