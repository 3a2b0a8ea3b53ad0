"""A layer that does not fit is told with its key, its input, the arithmetic and the smallest legal input."""

import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cnnlab.blocks import AvgPool, Conv, MaxPool
from cnnlab.blocks.shortcut import ZeroPadShortcut
from cnnlab.network import build_network, plan_network
from cnnlab.network.shape_inference import dropped, format_shape, measure
from cnnlab.runtime.errors import Complaints, ConfigError


def refusal(input_shape: tuple[int, ...], blocks: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        build_network(input_shape, blocks)
    return str(caught.value)


@pytest.mark.parametrize(("shape", "text"), [((20, 24, 12), "20×24×12"), ((100,), "100")])
def test_a_shape_is_written_with_crosses(shape: tuple[int, ...], text: str) -> None:
    assert format_shape(shape) == text


def test_a_window_larger_than_its_input_is_told_with_the_arithmetic() -> None:
    conv = {"type": "conv", "out_channels": 4, "kernel_size": 5, "stride": 2, "padding": 1, "dilation": 2}
    message = refusal((3, 20, 6), {"conv": conv})
    # dilated, 5 taps span 2·(5 − 1) + 1 = 9; the width is 6 + 2·1 = 8
    assert message == (
        "model.blocks.conv: kernel 5×5 does not fit its input 3×20×6: width (6 + 2 − 9) / 2 + 1 < 1; "
        "the smallest legal input is 3×7×7"
    )


def test_the_input_of_a_later_layer_is_told() -> None:
    message = refusal(
        (1, 8, 8),
        {
            "conv": {"type": "conv", "out_channels": 4, "kernel_size": 5},
            "pool": {"type": "max_pool", "kernel_size": 5},
        },
    )
    assert message == (
        "model.blocks.pool: kernel 5×5 does not fit its input 4×4×4: height (4 + 0 − 5) / 5 + 1 < 1; "
        "the smallest legal input is 4×5×5"
    )


def test_the_key_of_a_nested_layer_is_told() -> None:
    inner = {"pool": {"type": "avg_pool", "kernel_size": 3}}
    message = refusal((1, 2, 2), {"stage": {"type": "sequential", "blocks": inner}})
    assert message.startswith("model.blocks.stage.blocks.pool: kernel 3×3 does not fit its input 1×2×2")


CONVOLUTIONS = [(k, p, d) for k in (2, 3, 5) for p in (0, 1) for d in (1, 3)]
MAX_POOLS = [(2, 0, 1), (4, 1, 1), (4, 2, 3)]
AVG_POOLS = [(2, 0), (5, 1), ([3, 2], [1, 0])]
WINDOWS: list[dict[str, Any]] = [
    *({"type": "conv", "kernel_size": k, "padding": p, "dilation": d} for k, p, d in CONVOLUTIONS),
    *({"type": "conv", "kernel_size": [k, 2], "padding": [0, p]} for k in (1, 4) for p in (0, 1)),
    {"type": "conv", "kernel_size": 4, "padding": "valid", "stride": 3},
    *({"type": "max_pool", "kernel_size": k, "padding": p, "dilation": d} for k, p, d in MAX_POOLS),
    *({"type": "avg_pool", "kernel_size": k, "padding": p} for k, p in AVG_POOLS),
]


def takes(spec: dict[str, Any], height: int, width: int) -> bool:
    """Whether torch's own class runs on an image of this size."""
    kind = {"conv": nn.Conv2d, "max_pool": nn.MaxPool2d, "avg_pool": nn.AvgPool2d}[spec["type"]]
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in spec.items()}
    arguments.pop("type")
    channels = (1, 1) if kind is nn.Conv2d else ()
    try:
        kind(*channels, **arguments)(torch.zeros(1, 1, height, width))
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("spec", WINDOWS, ids=str)
def test_the_smallest_legal_input_is_legal_and_the_smallest(spec: dict[str, Any]) -> None:
    ours = {**spec, "out_channels": 1} if spec["type"] == "conv" else spec
    if takes(spec, 1, 1):
        build_network((1, 1, 1), {"layer": ours})
        return
    said = re.search(r"the smallest legal input is 1×(\d+)×(\d+)$", refusal((1, 1, 1), {"layer": ours}))
    assert said
    smallest = int(said[1]), int(said[2])
    build_network((1, *smallest), {"layer": ours})
    assert takes(spec, *smallest)
    for axis in (0, 1):
        if smallest[axis] == 1:
            continue
        smaller = tuple(size - (index == axis) for index, size in enumerate(smallest))
        assert not takes(spec, *smaller)
        assert f"the smallest legal input is 1×{said[1]}×{said[2]}" in refusal((1, *smaller), {"layer": ours})


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("dilation", [1, 2])
def test_padding_same_fits_every_input(kernel: int, dilation: int) -> None:
    conv = {"type": "conv", "out_channels": 1, "kernel_size": kernel, "dilation": dilation, "padding": "same"}
    assert build_network((1, 1, 1), {"conv": conv})(torch.zeros(2, 1, 1, 1)).shape == (2, 1, 1, 1)


@pytest.mark.parametrize(
    "spec",
    [
        {"type": "conv", "out_channels": 1, "kernel_size": 1},
        {"type": "max_pool", "kernel_size": 1},
        {"type": "avg_pool", "kernel_size": 1},
        {"type": "adaptive_avg_pool", "output_size": 1},
        {"type": "adaptive_max_pool", "output_size": 1},
        {"type": "dropout2d"},
        {"type": "global_avg_pool"},
        {"type": "global_max_pool"},
    ],
    ids=str,
)
def test_a_layer_for_images_asks_to_stand_before_flatten(spec: dict[str, Any]) -> None:
    message = refusal((2, 3, 4), {"flatten": "flatten", "layer": spec})
    assert message == (
        "model.blocks.layer: expected an image (channels × height × width), received 24 features; "
        "put it before 'flatten'"
    )


def test_a_linear_layer_asks_for_features_and_says_how_many_there_would_be() -> None:
    message = refusal((2, 3, 4), {"output": {"type": "linear", "out_features": 5}})
    assert message == (
        "model.blocks.output: expected features, received an image of 2×3×4; put 'flatten' (24 features) "
        "or 'global_avg_pool' (2) before it"
    )


def test_features_that_the_config_gives_wrongly_are_told() -> None:
    message = refusal((10,), {"output": {"type": "linear", "in_features": 12, "out_features": 5}})
    assert message.startswith("model.blocks.output: in_features=12, but 10 features reach it;")


def test_channels_that_the_config_gives_wrongly_are_told() -> None:
    message = refusal((3, 8, 8), {"conv": {"type": "conv", "in_channels": 1, "out_channels": 5, "kernel_size": 3}})
    assert message.startswith("model.blocks.conv: in_channels=1, but 3 channels reach it (3×8×8);")


def test_groups_that_do_not_divide_the_channels_are_told_with_both_numbers() -> None:
    spec = {"type": "conv", "out_channels": 4, "kernel_size": 1, "groups": 2}
    assert refusal((3, 8, 8), {"conv": spec}) == (
        "model.blocks.conv.groups: in_channels 3 cannot be divided into 2 groups"
    )


def test_normalized_channels_that_the_config_gives_wrongly_are_told() -> None:
    message = refusal((3, 8, 8), {"norm": {"type": "batch_norm", "num_features": 5}})
    assert message.startswith("model.blocks.norm: num_features=5, but 3 channels reach it (3×8×8);")


def test_what_torch_refuses_is_told_with_the_key_and_the_input() -> None:
    message = refusal((3, 8, 8), {"norm": {"type": "group_norm", "num_groups": 2, "num_channels": 4}})
    assert message.startswith("model.blocks.norm: GroupNorm does not fit its input 3×8×8: ")


def test_a_image_smaller_than_its_mirrored_border_is_refused() -> None:
    spec = {"type": "conv", "out_channels": 1, "kernel_size": 3, "padding": 3, "padding_mode": "reflect"}
    message = refusal((1, 3, 3), {"conv": spec})
    assert message.endswith("its padding mirrors 3 of 3 (height); the smallest legal input is 1×4×4")


def test_a_layer_that_takes_the_batch_away_is_refused() -> None:
    message = refusal((3, 2, 2), {"flatten": {"type": "flatten", "start_dim": 0}})
    assert message == "model.blocks.flatten: expected one tensor with the batch in front from Flatten, received 24"


MEASURED: list[tuple[tuple[int, ...], Any]] = [
    ((4, 9, 8), {"type": "conv", "out_channels": 6, "kernel_size": [3, 2], "stride": [2, 3], "padding": [1, 0]}),
    ((4, 9, 8), {"type": "conv", "out_channels": 6, "kernel_size": 3, "dilation": 2, "groups": 2, "bias": False}),
    ((4, 9, 8), {"type": "conv", "out_channels": 6, "kernel_size": 3, "padding": "same", "dilation": [1, 2]}),
    ((4, 9, 8), {"type": "conv", "out_channels": 6, "kernel_size": 3, "padding": "valid"}),
    ((4, 9, 8), {"type": "conv", "out_channels": 6, "kernel_size": 3, "padding": 2, "padding_mode": "reflect"}),
    (
        (4, 9, 8),
        {
            "type": "conv",
            "out_channels": 6,
            "kernel_size": 3,
            "padding": 2,
            "padding_mode": "constant",
            "padding_value": 1.0,
        },
    ),
    ((4, 9, 8), {"type": "torch.nn.Conv2d", "out_channels": 6, "kernel_size": 3, "stride": 2}),
    ((4, 9, 8), {"type": "max_pool", "kernel_size": [3, 2], "stride": 2, "padding": 1, "dilation": 2}),
    ((4, 9, 8), {"type": "max_pool", "kernel_size": 2, "ceil_mode": True}),
    ((4, 9, 8), {"type": "avg_pool", "kernel_size": 3, "padding": 1}),
    ((4, 9, 8), {"type": "avg_pool", "kernel_size": 3, "ceil_mode": True}),
    ((4, 9, 8), {"type": "adaptive_avg_pool", "output_size": [2, 3]}),
    ((4, 9, 8), "global_avg_pool"),
    ((4, 9, 8), "global_max_pool"),
    ((4, 9, 8), "batch_norm"),
    ((4, 9, 8), {"type": "group_norm", "num_groups": 2}),
    ((4, 9, 8), "layer_norm"),
    ((4, 9, 8), "relu"),
    ((4, 9, 8), "softmax"),
    ((4, 9, 8), {"type": "softmax", "dim": -1}),
    ((4, 9, 8), "dropout2d"),
    ((4, 9, 8), "flatten"),
    ((4, 9, 8), {"type": "flatten", "start_dim": 2}),
    ((4, 9, 8), {"type": "torch.nn.ZeroPad2d", "padding": 3}),
    ((12,), {"type": "linear", "out_features": 5}),
    ((7, 12), {"type": "linear", "out_features": 5}),
    ((12,), "batch_norm"),
    ((4, 9, 8), "step"),
    ((1,), "two_classes"),
]


@pytest.mark.parametrize(("input_shape", "spec"), MEASURED, ids=str)
def test_the_size_and_the_cost_told_are_those_of_the_real_layer(input_shape: tuple[int, ...], spec: Any) -> None:
    plan = plan_network(input_shape, {"layer": spec}, Complaints())
    assert plan is not None
    with FlopCounterMode(display=False) as counter:
        output = plan.build().eval()(torch.zeros(1, *input_shape))
    assert plan.output_shape == tuple(output.shape[1:])
    assert plan.rows[0].macs == counter.get_total_flops() / 2


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (Conv(1, 1, 3), (1, 7, 7), (0, 0)),
        (Conv(1, 1, 3, stride=2), (1, 7, 8), (0, 1)),  # (8 − 3) / 2 = 2, rest 1
        (Conv(1, 1, 3, stride=3), (1, 7, 8), (1, 2)),  # 4 / 3 = 1, rest 1; 5 / 3 = 1, rest 2
        (Conv(1, 1, 3, stride=2, padding=1), (1, 32, 32), (0, 0)),  # the one that is left over is padding
        (Conv(1, 1, 3, stride=3, padding=1), (1, 9, 8), (1, 0)),  # windows begin at −1, 2, 5 and end at 7
        (Conv(1, 1, 2, stride=3, dilation=3), (1, 9, 9), (2, 2)),  # taps span 4: (9 − 4) / 3 = 1, rest 2
        (MaxPool(2), (1, 5, 4), (1, 0)),
        (AvgPool(3), (1, 5, 4), (2, 1)),
        (MaxPool(2, ceil_mode=True), (1, 5, 5), (0, 0)),
        (nn.AdaptiveAvgPool2d(2), (1, 5, 5), (0, 0)),
    ],
    ids=str,
)
def test_rows_and_columns_that_no_window_covers(
    module: nn.Module, shape: tuple[int, ...], expected: tuple[int, int]
) -> None:
    assert dropped(module, shape) == expected


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [7, 8, 9, 10])
def test_the_dropped_rows_are_those_that_no_gradient_reaches(size: int, stride: int, padding: int) -> None:
    conv = Conv(1, 1, 5, stride=stride, padding=padding)
    x_NCHW = torch.zeros(1, 1, size, size, requires_grad=True)
    conv(x_NCHW).sum().backward()
    assert x_NCHW.grad is not None
    last_reached = int(x_NCHW.grad[0, 0].any(1).nonzero().max())
    assert dropped(conv, (1, size, size)) == (size - 1 - last_reached, size - 1 - last_reached)


@pytest.mark.parametrize("block", [Conv(1, 1, 3, stride=3, bias=False), AvgPool(3), MaxPool(3)], ids=str)
def test_dropped_pixels_reach_no_output(block: nn.Module) -> None:
    x_NCHW = torch.rand(1, 1, 8, 7, requires_grad=True)
    rows, columns = dropped(block, (1, 8, 7))
    block(x_NCHW).sum().backward()
    assert x_NCHW.grad is not None
    assert (rows, columns) == (2, 1)
    assert x_NCHW.grad[..., -rows:, :].eq(0).all()
    assert x_NCHW.grad[..., -columns:].eq(0).all()
    assert x_NCHW.grad[..., -rows - 3 : -rows, :].ne(0).any()


@pytest.mark.parametrize(
    "spec",
    [
        {"type": "max_pool", "kernel_size": 3, "stride": 2, "ceil_mode": True},
        {"type": "avg_pool", "kernel_size": 5, "stride": 3, "ceil_mode": True},
        {"type": "conv", "out_channels": 1, "kernel_size": 9, "padding": 3, "padding_mode": "reflect"},
        {"type": "conv", "out_channels": 1, "kernel_size": 8, "padding": 3, "padding_mode": "circular"},
        {"type": "conv", "out_channels": 1, "kernel_size": 5, "padding": 2, "padding_mode": "replicate"},
    ],
    ids=str,
)
def test_the_smallest_legal_input_is_what_torch_takes(spec: dict[str, Any]) -> None:
    def runs(size: int) -> bool:
        try:
            build_network((1, 12, 12), {"layer": spec})(torch.zeros(1, 1, size, size))
        except RuntimeError:
            return False
        return True

    smallest = next(size for size in range(1, 12) if runs(size))
    assert build_network((1, smallest, smallest), {"layer": spec})
    if smallest > 1:
        message = refusal((1, smallest - 1, smallest - 1), {"layer": spec})
        assert message.endswith(f"the smallest legal input is 1×{smallest}×{smallest}")


def test_a_shortcut_without_parameters_gives_what_a_strided_1x1_convolution_would() -> None:
    for size, stride in ((7, 2), (8, 2), (8, 3)):
        with torch.device("meta"):
            shortcut = ZeroPadShortcut(4, 6, stride=stride)
            convolution = nn.Conv2d(4, 6, 1, stride=stride)
        ours, theirs = measure(shortcut, "shortcut", (4, size, size)), measure(convolution, "conv", (4, size, size))
        assert (ours.output_shape, ours.macs) == (theirs.output_shape, 0)
