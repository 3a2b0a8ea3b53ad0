"""How weights start: their spread against the formula of each scheme."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from cnnlab.blocks.initialization import INITIALIZERS
from cnnlab.network import build_network
from cnnlab.runtime.errors import ArgumentError

IN, OUT = 1000, 500  # 500,000 weights: their standard deviation is known to 0.1 %


def initialized(name: str, **settings: Any) -> nn.Linear:
    torch.manual_seed(0)
    linear = nn.Linear(IN, OUT)
    nn.init.ones_(linear.bias)
    INITIALIZERS[name](**settings)(linear)
    return linear


@pytest.mark.parametrize(
    ("name", "settings", "variance"),
    [
        ("he", {}, 2 / IN),
        ("he", {"mode": "fan_out"}, 2 / OUT),
        ("he", {"nonlinearity": "tanh"}, (5 / 3) ** 2 / IN),
        ("he", {"nonlinearity": "leaky_relu", "negative_slope": 0.5}, 2 / (1 + 0.5**2) / IN),
        ("xavier", {}, 2 / (IN + OUT)),
        ("xavier", {"distribution": "normal"}, 2 / (IN + OUT)),
        ("xavier", {"gain": 3.0}, 9 * 2 / (IN + OUT)),
        ("normal", {"std": 0.02}, 0.02**2),
        ("trunc_normal", {"std": 0.02}, 0.02**2),  # its bounds are 100 standard deviations away
        ("trunc_normal", {"a": -1.0, "b": 1.0}, 1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) / math.erf(0.5**0.5)),
        ("book_large", {}, 1.0),
        ("book_small", {}, 1 / IN),
        ("book_conv", {}, 1 / OUT),
    ],
    ids=str,
)
def test_the_variance_of_the_weights(name: str, settings: dict[str, Any], variance: float) -> None:
    assert initialized(name, **settings).weight.std().item() == pytest.approx(math.sqrt(variance), rel=0.01)


@pytest.mark.parametrize(("name", "variance"), [("he", 2 / IN), ("xavier", 2 / (IN + OUT))])
def test_a_uniform_distribution_ends_at_root_three_standard_deviations_a_normal_has_tails(
    name: str, variance: float
) -> None:
    bound = math.sqrt(3 * variance)
    assert 0.999 * bound < initialized(name, distribution="uniform").weight.abs().max() <= bound * (1 + 1e-6)
    assert initialized(name, distribution="normal").weight.abs().max() > 4 * math.sqrt(variance)


@pytest.mark.parametrize("name", ["he", "xavier", "normal", "trunc_normal", "orthogonal", "zeros"])
def test_biases_start_at_zero(name: str) -> None:
    assert initialized(name).bias.eq(0).all()


@pytest.mark.parametrize("name", ["book_large", "book_small", "book_conv"])
def test_the_biases_of_the_book_start_with_variance_1(name: str) -> None:
    assert initialized(name).bias.std().item() == pytest.approx(1.0, rel=5 / math.sqrt(2 * OUT))


def test_normal_takes_its_mean_and_the_spread_of_the_biases() -> None:
    linear = initialized("normal", mean=2.0, std=0.1, bias_std=3.0)
    assert linear.weight.mean().item() == pytest.approx(2.0, abs=0.001)
    assert linear.bias.std().item() == pytest.approx(3.0, rel=5 / math.sqrt(2 * OUT))


KERNEL = [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]


@pytest.mark.parametrize(
    ("given", "layer", "weight", "bias"),
    [
        ({"weight": [[-2, -2]], "bias": [3]}, nn.Linear(2, 1), [[-2, -2]], [3]),
        ({"weight": 0.5}, nn.Linear(2, 3), [[0.5, 0.5]] * 3, [0, 0, 0]),
        ({"weight": KERNEL}, nn.Conv2d(2, 3, 3), [[KERNEL] * 2] * 3, [0, 0, 0]),
    ],
    ids=["all", "one number", "one kernel"],
)
def test_given_numbers_are_taken_as_they_are(given: dict[str, Any], layer: nn.Linear, weight: Any, bias: Any) -> None:
    for module in nn.Sequential(layer, nn.ReLU()).modules():  # a container has nothing to fill
        INITIALIZERS["given"](**given)(module)
    assert (layer.weight.tolist(), layer.bias.tolist()) == (weight, bias)


@pytest.mark.parametrize(
    ("name", "settings", "variance"),
    [
        ("he", {}, 2 / (64 * 25)),
        ("book_conv", {}, 4 / (128 * 25)),
        ("book_conv", {"pool_size": (2, 3)}, 6 / (128 * 25)),
    ],
)
def test_convolutions_start_by_filters_window_and_pooling(name: str, settings: dict[str, Any], variance: float) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 128, 5)
    INITIALIZERS[name](**settings)(conv)
    assert conv.weight.std().item() == pytest.approx(math.sqrt(variance), rel=0.01)


def test_nothing_is_drawn_on_the_meta_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing there imports seconds' worth of torch."""
    drawn: list[torch.Tensor] = []
    monkeypatch.setattr(nn.init, "normal_", lambda tensor, *arguments: drawn.append(tensor))
    INITIALIZERS["normal"](bias_std=1.0)(nn.Linear(3, 2, device="meta"))
    assert drawn == []
    INITIALIZERS["normal"](bias_std=1.0)(nn.Linear(3, 2))
    assert [tensor.shape for tensor in drawn] == [(2, 3), (2,)]


@pytest.mark.parametrize(
    ("settings", "layer", "argument", "message"),
    [
        ({"weight": [[1, 2, 3]]}, nn.Linear(2, 1), "weight", r"shape \[1, 2\], received \[1, 3\]"),
        ({"weight": 1, "bias": [1, 2]}, nn.Linear(2, 1), "bias", r"shape \[1\], received \[2\]"),
        ({"weight": 1, "bias": 0}, nn.Linear(2, 1, bias=False), "bias", "no bias; its parameters are weight"),
    ],
)
def test_given_numbers_have_to_fit(settings: dict[str, Any], layer: nn.Module, argument: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as caught:
        INITIALIZERS["given"](**settings)(layer)
    assert caught.value.argument == argument


def test_the_rows_of_orthogonal_weights_are_orthonormal_up_to_the_gain() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(20, 10)
    INITIALIZERS["orthogonal"](gain=2.0)(linear)
    torch.testing.assert_close(linear.weight @ linear.weight.T, 4 * torch.eye(10))


def test_truncated_weights_end_at_their_bounds() -> None:
    weight = initialized("trunc_normal", mean=1.0, std=2.0, a=0.0, b=1.5).weight
    assert (weight.min().item(), weight.max().item()) == pytest.approx((0.0, 1.5), abs=1e-3)


@pytest.mark.parametrize(
    ("conv", "passed_on"),
    [
        (nn.Conv2d(3, 5, 3, padding=1), [0, 1, 2]),
        (nn.Conv2d(3, 2, 3, padding=1), [0, 1]),
        (nn.Conv2d(4, 6, 3, padding=1, groups=2), [0, 1, None, 2, 3, None]),
        (nn.Conv2d(3, 3, 3, padding=1, groups=3), [0, 1, 2]),
    ],
    ids=["wider", "narrower", "groups", "depthwise"],
)
def test_a_dirac_convolution_passes_its_channels_on(conv: nn.Conv2d, passed_on: list[int | None]) -> None:
    before = conv.weight.clone()
    INITIALIZERS["dirac"]()(conv)
    x_NCHW = torch.randn(2, conv.in_channels, 4, 4)
    output_NCHW = nn.functional.conv2d(x_NCHW, conv.weight, padding=1, groups=conv.groups)
    for out_channel, in_channel in enumerate(passed_on):
        if in_channel is not None:
            torch.testing.assert_close(output_NCHW[:, out_channel], x_NCHW[:, in_channel])
    kept = [channel for channel in range(conv.out_channels) if dict(enumerate(passed_on)).get(channel) is None]
    assert torch.equal(conv.weight[kept], before[kept])


def test_dirac_leaves_a_linear_layer_as_its_constructor_drew_it() -> None:
    torch.manual_seed(0)
    assert torch.equal(initialized("dirac").weight, initialized("default").weight)


def test_zeros_makes_a_residual_begin_as_its_shortcut() -> None:
    blocks = {
        "conv": {"type": "conv", "out_channels": 2, "kernel_size": 1},
        "norm": {"type": "batch_norm", "init": "zeros"},
    }
    network = build_network((2, 3, 3), {"residual": {"type": "residual", "blocks": blocks}}, init="he")
    x_NCHW = torch.randn(4, 2, 3, 3)
    assert torch.equal(network(x_NCHW), x_NCHW)


def test_default_leaves_what_the_constructor_drew() -> None:
    linear = nn.Linear(3, 2)
    before = linear.weight.clone(), linear.bias.clone()
    INITIALIZERS["default"]()(linear)
    torch.testing.assert_close((linear.weight, linear.bias), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["he", "xavier", "normal", "trunc_normal", "orthogonal", "dirac", "zeros"])
def test_a_norm_keeps_its_ones_and_zeros(name: str) -> None:
    norm = nn.LayerNorm((4, 5))
    INITIALIZERS[name]()(norm)
    assert norm.weight.eq(1).all()
    assert norm.bias.eq(0).all()


def test_zeros_reach_every_weight_of_linear_and_recurrent_layers() -> None:
    recurrent = nn.LSTM(3, 4)
    INITIALIZERS["zeros"]()(recurrent)
    assert all(value.eq(0).all() for value in (*recurrent.parameters(), initialized("zeros").weight))


ILLEGAL: dict[str, list[tuple[str, Any]]] = {
    "he": [("distribution", "gauss"), ("mode", "fan"), ("nonlinearity", "gelu"), ("negative_slope", math.nan)],
    "xavier": [("distribution", "gauss"), ("gain", 0)],
    "normal": [("mean", math.inf), ("std", -1), ("bias_std", -1)],
    "trunc_normal": [("std", 0), ("a", math.nan), ("b", -2.0)],
    "book_conv": [("pool_size", 0)],
    "given": [("weight", ((1, 2), (3,))), ("bias", "one")],
}


@pytest.mark.parametrize(("name", "illegal"), [(name, illegal) for name in ILLEGAL for illegal in ILLEGAL[name]])
def test_a_value_out_of_range_names_its_argument(name: str, illegal: tuple[str, Any]) -> None:
    with pytest.raises(ArgumentError) as caught:
        INITIALIZERS[name](**{**({"weight": 1} if name == "given" else {}), illegal[0]: illegal[1]})
    assert caught.value.argument == illegal[0]
