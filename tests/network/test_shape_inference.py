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


def transposed(**settings: Any) -> dict[str, Any]:
    return {"type": "conv_transpose", "out_channels": 6, "kernel_size": 3, **settings}


SMALL = (4, 8, 8)
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
    (SMALL, {"type": "depthwise_conv", "kernel_size": 3, "out_channels": 6}, ".out_channels: expected a multiple of"),
    (
        SMALL,
        {"type": "separable_conv", "out_channels": 6, "kernel_size": 9},
        ": kernel 9×9 does not fit its input 4×8×8",
    ),
    (SMALL, transposed(in_channels=3), ": in_channels=3, but 4 channels reach it (4×8×8);"),
    (SMALL, transposed(stride=2, output_padding=2), ".output_padding: expected less than stride or dilation, received"),
    (SMALL, transposed(stride=0), ".stride: expected a whole number from 1"),
    (SMALL, transposed(padding=5), ": padding 5×5 leaves nothing of its input 4×8×8: the output would be 0×0"),
    (SMALL, transposed(groups=3), ".groups: in_channels 4 cannot be divided into 3 groups"),
    (SMALL, transposed(kernel_size=-3), ".kernel_size: expected a whole number from 1"),
    (SMALL, "upsample", ".scale_factor: expected either size or scale_factor, received both or none"),
    (SMALL, {"type": "upsample", "scale_factor": 0.1}, ".scale_factor: expected a whole number from 1"),
    (SMALL, {"type": "upsample", "scale_factor": [2, 2, 2]}, ".scale_factor: expected a number or a pair"),
    (SMALL, {"type": "upsample", "size": 4, "mode": "linear"}, ".mode: expected "),
    (
        SMALL,
        {"type": "upsample", "size": 4, "align_corners": True},
        ".align_corners: expected mode bilinear or bicubic",
    ),
    (
        SMALL,
        {"type": "space_to_depth", "downscale_factor": 3},
        ".downscale_factor: expected a divisor of height and wid",
    ),
    (SMALL, {"type": "depth_to_space", "upscale_factor": 3}, ".upscale_factor: its square divides no 4 channels"),
    (SMALL, {"type": "local_response_norm", "size": 0}, ".size: expected a whole number from 1"),
    ((3, 8, 8), "glu", ".dim: expected an even size to halve, received 3 of 3×8×8"),
    ((4,), {"type": "glu", "dim": 2}, ".dim: expected 1 to 1 (or −1 to −1) for an input of 4, received 2"),
    ((3, 8, 8), {"type": "squeeze_excitation", "squeeze_channels": 2, "in_channels": 4}, ": in_channels=4, but 3 chan"),
    ((5, 6), {"type": "attention", "num_heads": 4}, ".num_heads: expected a divisor of the 6 features, received 4"),
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
        {"type": "depthwise_conv", "kernel_size": 1},
        {"type": "separable_conv", "out_channels": 2, "kernel_size": 1},
        {"type": "conv_transpose", "out_channels": 2, "kernel_size": 1},
        {"type": "upsample", "scale_factor": 2},
        {"type": "space_to_depth", "downscale_factor": 1},
        {"type": "depth_to_space", "upscale_factor": 1},
        {"type": "local_response_norm", "size": 3},
        {"type": "squeeze_excitation", "squeeze_channels": 2},
        "layer_norm2d",
        "subsampling",
        "image_to_sequence",
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
    (IMAGE, {"type": "depthwise_conv", "kernel_size": [3, 2], "out_channels": 8, "stride": 2, "padding": 1}),
    (IMAGE, {"type": "separable_conv", "out_channels": 6, "kernel_size": 3, "stride": [1, 2], "padding": 1}),
    (IMAGE, transposed(stride=[2, 3], padding=[1, 0], output_padding=[1, 2], dilation=[2, 1], groups=2)),
    (IMAGE, transposed(padding=1)),
    (IMAGE, of_torch("ConvTranspose2d", out_channels=2, kernel_size=3, stride=2)),
    (IMAGE, {"type": "upsample", "scale_factor": [1.5, 2]}),
    (IMAGE, {"type": "upsample", "size": [3, 5], "mode": "bicubic"}),
    ((4, 6, 8), {"type": "space_to_depth", "downscale_factor": 2}),
    (IMAGE, {"type": "depth_to_space", "upscale_factor": 2}),
    (IMAGE, {"type": "local_response_norm", "size": 3}),
    (IMAGE, {"type": "squeeze_excitation", "squeeze_channels": 3}),
    (IMAGE, "layer_norm2d"),
    (IMAGE, {"type": "subsampling", "kernel_size": [3, 2]}),
    (IMAGE, "glu"),
    (IMAGE, {"type": "glu", "dim": -1}),
    (IMAGE, "layer_scale"),
    (IMAGE, {"type": "scale", "factor": 2}),
    (IMAGE, {"type": "drop_path", "p": 0.5}),
    (IMAGE, "image_to_sequence"),
    ((7, 12), "class_token"),
    ((7, 12), "first_token"),
    ((7, 12), "positional_embedding"),
    ((7, 12), "layer_norm"),
    ((7, 12), {"type": "attention", "num_heads": 3}),
]


@pytest.mark.parametrize(("input_shape", "spec"), MEASURED, ids=str)
def test_the_shape_and_macs_are_those_of_the_real_layer(input_shape: tuple[int, ...], spec: Any) -> None:
    plan = plan_network(input_shape, {"layer": spec}, Complaints())
    assert plan is not None
    with FlopCounterMode(display=False) as counter:
        output = plan.build().eval()(torch.zeros(1, *input_shape))
    assert plan.output_shape == tuple(output.shape[1:])
    assert sum(row.macs for row in plan.rows) == counter.get_total_flops() / 2
