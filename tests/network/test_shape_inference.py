"""A layer that does not fit is reported with its key and its input; the facts of one that does are those of the
real layer.
"""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cnnlab.network import build_network, plan_network
from cnnlab.runtime.errors import Complaints, ConfigError

LINEAR = {"type": "linear", "out_features": 5}


def conv(**settings: Any) -> dict[str, Any]:
    return {"type": "conv", "out_channels": 6, "kernel_size": 3, **settings}


def of_torch(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": f"torch.nn.{name}", **arguments}


NESTED_POOL = {"type": "sequential", "blocks": {"pool": {"type": "avg_pool", "kernel_size": 3}}}
MISFITS: list[tuple[tuple[int, ...], Any, str]] = [
    ((1, 4, 9), {"type": "max_pool", "kernel_size": 5}, ": kernel 5×5 does not fit its input 1×4×9: height (4 "),
    ((1, 2, 2), NESTED_POOL, ".blocks.pool: kernel 3×3 does not fit its input 1×2×2"),
    ((2, 3, 4), LINEAR, ": expected features, received an image of 2×3×4; put 'flatten' (24 features) or 'global_avg_"),
    ((10,), {**LINEAR, "in_features": 12}, ": in_features=12, but 10 features reach it;"),
    ((3, 8, 8), conv(in_channels=1), ": in_channels=1, but 3 channels reach it (3×8×8);"),
    ((3, 8, 8), conv(groups=2), ".groups: in_channels 3 cannot be divided into 2 groups"),
    ((3, 8, 8), {"type": "layer_norm", "normalized_shape": [8, 3]}, ".normalized_shape: expected the last sizes of 3"),
    ((3, 8, 8), of_torch("PReLU", num_parameters=2), ": PReLU does not fit its input 3×8×8: "),
    ((3, 8, 8), of_torch("MaxPool2d", kernel_size=2, return_indices=True), ".return_indices: expected false"),
    ((3, 2, 2), {"type": "flatten", "start_dim": 0}, ": expected one tensor with the batch in front from Flatten, "),
    ((64,), {"type": "softmax", "dim": -3}, ".dim: expected 1 to 1 (or −1 to −1) for an input of 64, received -3"),
    ((64,), {"type": "softmax", "dim": 0}, ".dim: "),
    ((1, 8, 8), {"type": "permute_pixels", "input_shape": [1, 4, 4]}, ".input_shape: expected 1×8×8"),
    ((1, 8, 8), of_torch("MaxPool2d", kernel_size=2, padding=2), ".padding: expected at most half of the kernel"),
    ((1, 8, 8), of_torch("AdaptiveAvgPool2d", output_size=[2, 2, 2]), ".output_size: expected a whole number or"),
    ((1, 8, 8), of_torch("Conv2d", out_channels=2, kernel_size=3, stride=0), ".stride: expected a whole number from"),
    ((7,), "two_classes", ": expected the activation of one neuron, received 7"),
]


@pytest.mark.parametrize(("input_shape", "spec", "message"), MISFITS, ids=lambda value: str(value)[:40])
def test_a_layer_that_does_not_fit_is_reported_with_its_key_and_input(
    input_shape: tuple[int, ...], spec: Any, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        build_network(input_shape, {"layer": spec})
    assert str(caught.value).startswith(f"model.blocks.layer{message}")


@pytest.mark.parametrize(
    "spec",
    [
        conv(kernel_size=1),
        {"type": "max_pool", "kernel_size": 1},
        {"type": "adaptive_avg_pool", "output_size": 1},
        "dropout2d",
        "global_max_pool",
        {"type": "zero_pad_shortcut", "out_channels": 24},
        "permute_pixels",
    ],
    ids=str,
)
def test_a_layer_for_images_has_to_stand_before_flatten(spec: Any) -> None:
    with pytest.raises(ConfigError, match=r"^model.blocks.layer: .*, received 24 features; put it before 'flatten'"):
        build_network((2, 3, 4), {"flatten": "flatten", "layer": spec})


IMAGE = (4, 9, 8)
MEASURED: list[tuple[tuple[int, ...], Any]] = [
    (IMAGE, conv(kernel_size=[3, 2], stride=[2, 3], padding=[1, 0])),
    (IMAGE, conv(dilation=2, groups=2, bias=False)),
    (IMAGE, conv(padding="same", dilation=[1, 2])),
    (IMAGE, conv(padding=2, padding_mode="reflect")),
    (IMAGE, {"type": "torch.nn.Conv2d", "out_channels": 6, "kernel_size": 3, "stride": 2}),
    (IMAGE, {"type": "max_pool", "kernel_size": [3, 2], "stride": 2, "padding": 1, "dilation": 2}),
    (IMAGE, {"type": "avg_pool", "kernel_size": 3, "ceil_mode": True}),
    (IMAGE, {"type": "adaptive_avg_pool", "output_size": [2, 3]}),
    (IMAGE, {"type": "torch.nn.AdaptiveMaxPool2d", "output_size": [None, 3]}),
    (IMAGE, "global_avg_pool"),
    (IMAGE, "batch_norm"),
    (IMAGE, {"type": "group_norm", "num_groups": 2}),
    (IMAGE, "layer_norm"),
    (IMAGE, {"type": "softmax", "dim": -1}),
    (IMAGE, "dropout2d"),
    (IMAGE, "flatten"),
    (IMAGE, {"type": "flatten", "start_dim": 2}),
    (IMAGE, {"type": "torch.nn.ZeroPad2d", "padding": 3}),
    (IMAGE, {"type": "zero_pad_shortcut", "out_channels": 6, "stride": 2}),
    (IMAGE, "permute_pixels"),
    (IMAGE, {"type": "residual", "blocks": {"conv": conv(stride=2)}, "projection": {"conv": conv(stride=2)}}),
    ((12,), LINEAR),
    ((7, 12), LINEAR),
    ((12,), "batch_norm"),
    (IMAGE, "step"),
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
