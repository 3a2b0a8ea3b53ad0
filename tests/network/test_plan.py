"""A mapping of layer name → spec becomes a network: order, inference, nesting, complaints."""

import re
import sys
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnnlab.blocks import Dropout
from cnnlab.blocks.sequential import Residual
from cnnlab.components import Trust
from cnnlab.network import NetworkPlan, build_network, plan_network
from cnnlab.runtime.errors import Complaints, ConfigError

GIVEN = {"type": "given", "weight": [[1.0, 2.0]], "bias": [3.0]}
CONV = {"type": "conv", "out_channels": 4, "kernel_size": 3}
LINEAR = {"type": "linear", "out_features": 5}
USERS_SOURCE = """
import torch
from torch import nn

class Scale(nn.Module):
    devices = []
    def __init__(self, num_channels: int, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.randn(num_channels, 1, 1) * 0 + factor)
        self.devices.append(self.factor.device.type)
    def forward(self, x):
        return x * self.factor

class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
    def forward(self, x):
        return -self.inner(x)

class Seen(nn.Identity):
    def __init__(self, input_shape: tuple[int, ...], input_size: int) -> None:
        super().__init__()
        self.seen = (input_shape, input_size)

class Pair(nn.Module):
    def forward(self, x):
        return x, x

class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("I cannot go forward")
"""


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The name of a module with a user's own blocks, importable during one test."""
    name = f"users_blocks_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{name}.py").write_text(USERS_SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def plan(input_shape: tuple[int, ...], blocks: Any, **options: Any) -> NetworkPlan:
    complaints = Complaints()
    planned = plan_network(input_shape, blocks, complaints, **options)
    complaints.raise_if_any()
    assert planned is not None
    return planned


def complaints_about(blocks: Any, input_shape: tuple[int, ...] = (1, 8, 8), **options: Any) -> list[str]:
    complaints = Complaints()
    assert plan_network(input_shape, blocks, complaints, **options) is None
    return complaints.messages


def names(network: nn.Module) -> list[str]:
    return [name for name, _ in network.named_children()]


def after(anchor: str) -> dict[str, str]:
    return {"type": "tanh", "after": anchor}


@pytest.mark.parametrize(
    ("blocks", "order"),
    [
        ({"b": "relu", "a": "tanh", "c": "sigmoid"}, "b a c"),
        ({"a": "relu", "b": "relu", "x": after("a"), "y": after("a")}, "a x y b"),
        ({"a": "relu", "b": "relu", "x": after("a"), "y": after("x")}, "a x y b"),
        ({"a": "relu", "b": None, "c": "relu"}, "a c"),
        ({"a": "relu", "b": None, "c": "relu", "x": after("b")}, "a x c"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_layers_stand_in_yaml_order_and_after_their_anchors(blocks: dict[str, Any], order: str) -> None:
    assert names(build_network((1, 8, 8), blocks)) == order.split()


def repeated(count: Any) -> dict[str, Any]:
    return {"stage": {"type": "sequential", "repeat": count, "blocks": {"relu": "relu"}}}


A_CIRCLE = {"first": "relu", "a": {"type": "relu", "after": "b"}, "b": {"type": "relu", "after": "a"}}
LAZY = {"type": "torch.nn.LazyConv2d", "out_channels": 2, "kernel_size": 3}


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"conv": CONV, "a": after("cnv")}, ".a.after: there is no other layer 'cnv'; did you mean 'conv'?"),
        ({"conv": CONV, "a": after("a")}, ".a.after: there is no other layer 'a'; expected one of conv"),
        ({"conv": CONV, "a": {"type": "relu", "after": ["conv"]}}, ".a.after: there is no other layer ['conv']; "),
        (A_CIRCLE, ".a.after: the layers a, b stand after each other in a circle"),
        (["relu"], ": expected a mapping of layer name → block, received ['relu']"),
        (None, ": expected a mapping of layer name → block, received None"),
        ({"conv": None}, ": expected at least one block"),
        ({"conv.1": "relu"}, ".conv.1: expected a layer name of letters, digits and underscores"),
        ({"": "relu"}, ".: expected a layer name of letters, digits and underscores"),
        ({"pop": "relu"}, ".pop: torch's modules use the name 'pop' themselves: expected another"),
        ({"training": "relu"}, ".training: torch's modules use the name 'training' themselves: expected another"),
        (repeated(0), ".stage.repeat: expected a whole number from 1 to 1000, received 0"),
        (repeated(100_000), ".stage.repeat: expected a whole number from 1 to 1000, received 100000"),
        (repeated("two"), ".stage.repeat: expected a whole number from 1 to 1000, received 'two'"),
        ({"stage": "sequential"}, ".stage.blocks: sequential needs it, and it is missing"),
        ({"a": {"type": "relu", "blocks": {"b": "relu"}}}, ".a.blocks: relu has no argument 'blocks'; it takes"),
        ({"a": {"type": "global_avg_pool", "size": 2}}, ".a.size: global_avg_pool has no argument 'size'; it takes"),
        ({"conv": LAZY}, ".conv: expected torch.nn.Conv2d, received torch.nn.LazyConv2d"),
        ({"a": "USERS.Broken"}, ".a: Broken does not fit its input 1×8×8: I cannot go forward"),
        ({"a": "USERS.Pair"}, ".a: expected one tensor with the batch in front from Pair, received tuple"),
    ],
    ids=str,
)
def test_what_makes_no_network_is_refused_at_its_key(users: str, blocks: Any, message: str) -> None:
    if isinstance(blocks, dict) and str(blocks.get("a")).startswith("USERS"):
        blocks = {"a": blocks["a"].replace("USERS", users)}
    (found,) = complaints_about(blocks, key="teacher")
    assert found.startswith(f"teacher.blocks{message}")


@pytest.mark.parametrize(
    ("input_shape", "blocks", "attribute", "expected"),
    [
        ((3, 8, 8), {"first": CONV, "last": CONV}, "in_channels", 4),
        ((3, 8, 6), {"conv": CONV, "flatten": "flatten", "last": LINEAR}, "in_features", 4 * 6 * 4),
        ((3, 2, 2), {"last": "batch_norm"}, "num_features", 3),
        ((3, 2, 2), {"flatten": "flatten", "last": "batch_norm"}, "num_features", 12),
        ((4, 2, 2), {"last": {"type": "group_norm", "num_groups": 2}}, "num_channels", 4),
        ((3, 4, 5), {"last": "layer_norm"}, "normalized_shape", (3, 4, 5)),
        ((3, 4, 5), {"last": {"type": "layer_norm", "normalized_shape": [5]}}, "normalized_shape", (5,)),
        ((3, 9, 9), {"last": {"type": "sequential", "repeat": 3, "blocks": {"conv": CONV}}}, "r2.conv.in_channels", 4),
    ],
)
def test_an_argument_that_is_not_given_is_inferred(
    input_shape: tuple[int, ...], blocks: dict[str, Any], attribute: str, expected: Any
) -> None:
    planned = plan(input_shape, blocks)
    network = planned.build()
    assert attrgetter(f"last.{attribute}")(network) == expected
    assert network(torch.zeros(2, *input_shape)).shape[1:] == planned.output_shape


def test_classes_stands_in_nested_blocks_too() -> None:
    head = {"type": "sequential", "blocks": {"output": {"type": "linear", "out_features": "classes"}}}
    assert plan((1, 2, 2), {"flatten": "flatten", "head": head}, classes=7).output_shape == (7,)


def body(**last: Any) -> dict[str, Any]:
    conv = {"type": "conv", "out_channels": 4, "kernel_size": 3, "padding": 1}
    return {"type": "residual", "blocks": {"conv1": conv, "relu": "relu", "conv2": {**conv, **last}}}


def test_a_residual_of_one_shape_adds_the_input_itself_also_nested() -> None:
    outer = {"type": "residual", "blocks": {"inner": body(), "relu": "relu"}}
    network = build_network((4, 8, 8), {"outer": outer})
    x_NCHW = torch.randn(2, 4, 8, 8)
    inner_NCHW = network.outer.blocks.inner.blocks(x_NCHW) + x_NCHW
    torch.testing.assert_close(network(x_NCHW), inner_NCHW.relu() + x_NCHW)


@pytest.mark.parametrize(
    ("channels", "last", "stride"),
    [(3, {}, (1, 1)), (4, {"stride": 2}, (2, 2)), (3, {"stride": [1, 2]}, (1, 2)), (4, {"out_channels": 6}, (1, 1))],
    ids=str,
)
def test_a_residual_that_changes_the_size_projects_its_input(
    channels: int, last: dict[str, Any], stride: tuple[int, int]
) -> None:
    network = build_network((channels, 8, 8), {"block": body(**last)})
    projection = network.block.projection
    assert names(projection) == ["conv", "norm"]
    assert (projection.conv.kernel_size, projection.conv.stride, projection.conv.bias) == ((1, 1), stride, None)
    x_NCHW = torch.randn(2, channels, 8, 8)
    torch.testing.assert_close(network.eval()(x_NCHW), network.block.blocks(x_NCHW) + projection(x_NCHW))


def test_a_residual_takes_a_projection_of_its_own() -> None:
    projection = {"pool": {"type": "avg_pool", "kernel_size": 2}, "conv": {**CONV, "kernel_size": 1}}
    block = build_network((3, 8, 8), {"block": body(stride=2) | {"projection": projection}}).block
    assert (names(block.projection), block.projection.conv.in_channels) == (["pool", "conv"], 3)


OTHER_SHAPE = body() | {"projection": {"conv": {**CONV, "kernel_size": 2}}}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (OTHER_SHAPE, "the blocks give 4×8×8 and the projection 4×7×7"),
        (body(padding=0), "its blocks change 3×8×8 to 4×6×6.* 'projection'"),
    ],
    ids=["another shape", "no stride"],
)
def test_a_residual_whose_branches_differ_is_refused_with_both_shapes(spec: dict[str, Any], message: str) -> None:
    (found,) = complaints_about({"block": spec}, (3, 8, 8))
    assert re.match(f"model.blocks.block: {message}", found)


def test_a_repeated_sequence_has_weights_of_its_own() -> None:
    layer = {"type": "sequential", "repeat": 2, "blocks": {"linear": {**LINEAR, "bias": False, "out_features": 4}}}
    network = build_network((4,), {"hidden": layer})
    assert list(network.state_dict()) == ["hidden.r0.linear.weight", "hidden.r1.linear.weight"]
    assert not torch.equal(network.hidden.r0.linear.weight, network.hidden.r1.linear.weight)


def test_a_users_class_takes_arguments_and_what_is_inferred_and_is_planned_on_the_meta_device(users: str) -> None:
    scale = {"type": f"{users}.Scale", "factor": 4.0}
    planned = plan((1, 8, 6), {"conv": CONV, "scale": scale, "seen": f"{users}.Seen"})
    devices = planned.layers[1].component.factory.devices  # type: ignore[attr-defined]
    assert set(devices) == {"meta"}
    network = planned.build()
    assert (devices[-1], network.seen.seen) == ("cpu", ((4, 6, 4), 4))
    assert network.scale(torch.ones(1, 4, 2, 2)).eq(4).all()


def test_a_users_class_of_a_saved_config_needs_trust(users: str) -> None:
    trust = Trust(everything=False, again=lambda names: f"resume=runs/a trust={names}")
    (message,) = complaints_about({"stage": {"type": "sequential", "blocks": {"scale": f"{users}.Scale"}}}, trust=trust)
    assert message.startswith("model.blocks.stage.blocks.scale: ")
    assert message.endswith(f"resume=runs/a trust=['{users}.Scale']")
    assert users not in sys.modules  # nothing of it ran


def test_all_mistakes_come_in_one_error() -> None:
    blocks = {
        "conv": {"type": "conv", "out_channels": 0, "kernal_size": 3},
        "act": "rleu",
        "drop": {"type": "dropout", "p": 1.5},
        "stage": {"type": "sequential", "blocks": {"pool": {"type": "max_pool", "kernel_size": "2"}}},
        "norm": {"type": "batch_norm", "after": "cnv"},
        "output": "linear",
    }
    with pytest.raises(ConfigError) as caught:
        build_network((1, 8, 8), blocks, init={"type": "normal", "std": -1})
    first, *lines = str(caught.value).splitlines()
    assert first == "8 mistakes in the config:"
    expected = "init.std blocks.conv.kernal_size blocks.conv.kernel_size blocks.act blocks.drop.p "
    expected += "blocks.stage.blocks.pool.kernel_size blocks.norm.after blocks.output.out_features"
    assert {line.strip().split(":")[0] for line in lines} == {f"model.{key}" for key in expected.split()}


def test_complaints_of_others_do_not_stop_a_plan() -> None:
    complaints = Complaints()
    complaints.add("seed", "no")
    assert plan_network((1, 8, 8), {"act": "relu"}, complaints) is not None


def test_the_nearest_init_wins_but_a_norm_keeps_its_ones() -> None:
    own = {**CONV, "init": {"type": "normal", "mean": 3, "std": 0}}
    stage = {"type": "sequential", "init": "zeros", "blocks": {"conv": CONV, "norm": "layer_norm", "own": own}}
    network = build_network((1, 8, 8), {"before": CONV, "stage": stage}, init={"type": "normal", "mean": 2, "std": 0})
    assert network.before.weight.eq(2).all()
    assert network.stage.conv.weight.eq(0).all()
    assert network.stage.norm.weight.eq(1).all()
    assert network.stage.own.weight.eq(3).all()


WEIGHTED = {"conv": CONV, "norm": "batch_norm", "flatten": "flatten", "output": LINEAR}


def seeded(seed: int, make: Callable[[], nn.Module]) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return make().state_dict()


def test_a_plan_builds_again_with_weights_of_their_own() -> None:
    planned = plan((1, 8, 8), WEIGHTED)
    one, two = seeded(3, planned.build), seeded(3, planned.build)
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert one["conv.weight"].data_ptr() != two["conv.weight"].data_ptr()


def test_planning_draws_no_random_number_and_makes_no_weights(users: str) -> None:
    before = torch.get_rng_state()
    plan((1, 8, 8), {**WEIGHTED, "scale": {"type": f"{users}.Scale", "after": "conv"}}, init="he")
    huge = plan((10**6,), {"huge": {"type": "linear", "out_features": 10**6, "bias": False}})
    assert torch.equal(torch.get_rng_state(), before)
    assert huge.rows[0].parameters == 10**12  # 4 TB, were they made


def test_a_built_network_starts_in_training() -> None:
    network = build_network((1, 8, 8), {"stage": {"type": "sequential", "blocks": {"drop": "dropout"}}})
    assert isinstance(network.stage.drop, Dropout)
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ({"flatten": "flatten", "output": LINEAR, "act": "sigmoid"}, nn.Sigmoid),
        ({"head": {"type": "sequential", "blocks": {"flatten": "flatten", "act": "sigmoid"}}}, nn.Sigmoid),
        ({"block": {"type": "residual", "blocks": {"act": "sigmoid"}}}, Residual),
    ],
    ids=["plain", "nested", "residual"],
)
def test_the_output_type_is_the_last_layer_that_is_no_container(
    blocks: dict[str, Any], expected: type[nn.Module]
) -> None:
    assert plan((1, 2, 2), blocks).output_type is expected


@pytest.mark.parametrize("groups", [11, 32])
def test_any_number_of_groups_that_divides_the_channels_is_taken(groups: int) -> None:
    conv = {**CONV, "out_channels": groups, "groups": groups}
    network = build_network((groups, 8, 8), {"conv": conv, "norm": {"type": "group_norm", "num_groups": groups}})
    assert network.conv.weight.shape == (groups, 1, 3, 3)


def test_a_users_container_gets_its_nested_blocks_and_counts_them_once(users: str) -> None:
    planned = plan((2, 8, 8), {"around": {"type": f"{users}.Around", "inner": {"conv": CONV, "act": "relu"}}})
    outputs, weights = 4 * 6 * 6, 2 * 3 * 3
    assert [(row.path, row.parameters, row.macs) for row in planned.rows] == [
        ("around", 0, 0),
        ("around.inner.conv", 4 * weights + 4, outputs * weights),
        ("around.inner.act", 0, 0),
    ]
    assert planned.build()(torch.randn(1, 2, 8, 8)).max() <= 0  # −relu


@pytest.mark.parametrize(
    ("neuron", "init", "key"),
    [({"init": GIVEN}, "default", "blocks.inner.blocks.neuron.init.weight"), ({}, GIVEN, "init.weight")],
    ids=["of a layer", "of the network"],
)
def test_given_weights_that_do_not_fit_are_reported_with_their_key_before_any_is_made(
    neuron: dict[str, Any], init: Any, key: str
) -> None:
    inner = {"type": "sequential", "blocks": {"neuron": {"type": "linear", "out_features": 1, **neuron}}}
    assert complaints_about({"inner": inner}, (3,), init=init) == [
        f"model.{key}: expected numbers of shape [1, 3], received [1, 2]"
    ]
    network = build_network((2,), {"inner": inner}, init=init)
    assert network(torch.tensor([[10.0, 100.0]])).item() == 213
