"""The convolution, against torch's own and against hand arithmetic."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cnnlab.blocks.conv import Conv, DepthwiseConv, SeparableConv
from cnnlab.runtime.errors import ArgumentError

LAPLACE = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])  # sums to zero

SETTINGS: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": 3, "stride": (1, 3)},
    {"kernel_size": 3, "padding": (2, 0)},
    {"kernel_size": (5, 3), "padding": "same", "dilation": (1, 2)},
    {"kernel_size": 3, "padding": "valid", "stride": 2},
    {"kernel_size": 2, "dilation": (1, 3)},
    {"kernel_size": 3, "groups": 4, "padding": 1},
    {"kernel_size": 3, "bias": False},
    {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": (0, 2), "padding_mode": "replicate"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular", "stride": 2},
    {"kernel_size": 5, "padding": "same", "padding_mode": "reflect"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_equals_torch(settings: dict[str, Any]) -> None:
    conv, reference = Conv(4, 8, **settings), nn.Conv2d(4, 8, **settings)
    conv.load_state_dict(reference.state_dict())
    x_NCHW = torch.randn(2, 4, 9, 8)
    torch.testing.assert_close(conv(x_NCHW), reference(x_NCHW))


def test_a_unit_is_the_sum_of_weight_times_pixel_plus_bias() -> None:
    conv = Conv(1, 1, 2)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        conv.bias.fill_(10.0)  # type: ignore[union-attr]
    x_NCHW = torch.tensor([[[[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]]]])
    # 1·1 + 2·0 + 3·0 + 4·1 + 10 = 15 and 1·0 + 2·2 + 3·1 + 4·1 + 10 = 21
    assert conv(x_NCHW).tolist() == [[[[15.0, 21.0]]]]


def test_zero_padding_makes_a_border_in_a_constant_image_and_its_own_value_none() -> None:
    constant_NCHW, (zeros, same) = (
        torch.full((1, 1, 5, 6), 3.0),
        (Conv(1, 1, 3, bias=False, padding=1, padding_mode="constant", padding_value=value) for value in (0.0, 3.0)),
    )
    for conv in (zeros, same):
        conv.load_state_dict({"weight": LAPLACE[None, None]})
    response_HW = zeros(constant_NCHW)[0, 0]
    assert response_HW[1:-1, 1:-1].eq(0).all()
    assert response_HW[0, 0] == -6.0  # a corner misses two neighbours of 3
    assert response_HW[0, 1:-1].eq(-3.0).all()  # an edge misses one
    assert response_HW[1:-1, -1].eq(-3.0).all()
    assert same(constant_NCHW).eq(0).all()


@pytest.mark.parametrize(
    ("settings", "borders"),  # borders as F.pad takes them: left, right, top, bottom
    [
        ({"padding": 2, "stride": 2, "dilation": 2, "groups": 2}, (2, 2, 2, 2)),
        ({"padding": (2, 0)}, (0, 0, 2, 2)),
        ({"padding": "same"}, (1, 1, 1, 1)),
        ({"padding": "valid"}, (0, 0, 0, 0)),
    ],
)
def test_constant_padding_surrounds_the_image_with_the_value(
    settings: dict[str, Any], borders: tuple[int, ...]
) -> None:
    conv = Conv(2, 4, 3, padding_mode="constant", padding_value=-0.5, **settings)
    x_NCHW = torch.randn(2, 2, 6, 5)
    expected = F.conv2d(F.pad(x_NCHW, borders, value=-0.5), conv.weight, conv.bias, **{**settings, "padding": 0})
    torch.testing.assert_close(conv(x_NCHW), expected)


ILLEGAL = {"in_channels": [0], "kernel_size": [(3, 0), "three"], "stride": [0], "dilation": [0], "groups": [0]}


@pytest.mark.parametrize(("argument", "value"), [(name, value) for name in ILLEGAL for value in ILLEGAL[name]])
def test_a_value_out_of_range_names_its_argument(argument: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=f"^{argument}: .*received {0 if value == (3, 0) else value!r}"):
        Conv(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, argument: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"padding": (0, -1)}, "padding: .*received -1"),
        ({"padding": "sane"}, "padding: .*did you mean 'same'?"),
        ({"padding": "same", "stride": 2}, "padding: .*stride 2"),
        ({"in_channels": 3, "groups": 2}, "groups: in_channels 3"),
        ({"out_channels": 3, "groups": 2}, "groups: out_channels 3"),
        ({"padding_mode": "reflekt"}, "padding_mode: .*did you mean 'reflect'?"),
        ({"padding_mode": "constant", "padding_value": float("nan")}, r"padding_value: .*in \[-1e\+06, 1e\+06\]"),
        ({"padding_value": 1.0}, "padding_value: .*padding_mode=constant"),
    ],
    ids=str,
)
def test_arguments_that_do_not_go_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{message}"):
        Conv(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, **settings})


@pytest.mark.parametrize("out_channels", [None, 12])
def test_a_depthwise_convolution_has_filters_for_each_channel_by_itself(out_channels: int | None) -> None:
    conv, x_NCHW = DepthwiseConv(4, 3, out_channels, padding=1), torch.randn(2, 4, 9, 8)
    output_NCHW = conv(x_NCHW)
    each = (out_channels or 4) // 4
    for channel in range(4):
        own = slice(channel * each, (channel + 1) * each)
        expected_NCHW = F.conv2d(x_NCHW[:, [channel]], conv.weight[own], conv.bias[own], padding=1)
        torch.testing.assert_close(output_NCHW[:, own], expected_NCHW)


def test_a_separable_convolution_is_a_depthwise_and_a_1x1_convolution() -> None:
    conv, x_NCHW = SeparableConv(4, 6, 3, stride=2, padding=1), torch.randn(2, 4, 9, 8)
    depthwise_NCHW = F.conv2d(x_NCHW, conv.depthwise.weight, stride=2, padding=1, groups=4)
    expected_NCHW = F.conv2d(depthwise_NCHW, conv.pointwise.weight, conv.pointwise.bias)
    torch.testing.assert_close(conv(x_NCHW), expected_NCHW)
    shapes = {name: tuple(parameter.shape) for name, parameter in conv.named_parameters()}
    assert shapes == {"depthwise.weight": (4, 1, 3, 3), "pointwise.weight": (6, 4, 1, 1), "pointwise.bias": (6,)}


def test_depthwise_filters_are_the_same_number_for_each_channel() -> None:
    with pytest.raises(ArgumentError, match=r"^out_channels: expected a multiple of the 4 input channels, received 6"):
        DepthwiseConv(4, 3, 6)
