"""A mapping of layer name → spec becomes a network: order, inference, nesting, complaints."""

from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnnlab.blocks import Dropout, Linear
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


class Seen(nn.Module):
    def __init__(self, input_shape: tuple[int, ...], input_size: int) -> None:
        super().__init__()
        self.seen = (input_shape, input_size)

    def forward(self, x):
        return x


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


# order


def after(anchor: str) -> dict[str, str]:
    return {"type": "tanh", "after": anchor}


@pytest.mark.parametrize(
    ("blocks", "order"),
    [
        ({"b": "relu", "a": "tanh", "c": "sigmoid"}, "b a c"),
        ({"a": "relu", "b": "relu", "x": after("a")}, "a x b"),
        (
            {"a": "relu", "b": "relu", "x": after("a"), "y": after("a")},
            "a x y b",
        ),
        (
            {"a": "relu", "b": "relu", "x": after("a"), "y": after("x")},
            "a x y b",
        ),
        (
            {"a": "relu", "x": after("y"), "y": after("z"), "z": "relu"},
            "a z y x",
        ),
        ({"a": "relu", "b": None, "c": "relu"}, "a c"),
        ({"a": "relu", "b": None, "c": "relu", "x": after("b")}, "a x c"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_layers_stand_in_yaml_order_and_after_their_anchors(blocks: dict[str, Any], order: str) -> None:
    assert names(build_network((1, 8, 8), blocks)) == order.split()


def test_after_orders_nested_layers_too() -> None:
    blocks = {"conv": CONV, "relu": "relu", "norm": {"type": "batch_norm", "after": "conv"}}
    network = build_network((1, 8, 8), {"all": {"type": "sequential", "blocks": blocks}})
    assert names(network.get_submodule("all")) == ["conv", "norm", "relu"]


@pytest.mark.parametrize("anchor", ["cnv", "norm", ["conv"], {"a": "conv"}], ids=str)
def test_an_anchor_that_is_no_other_layer_is_refused(anchor: Any) -> None:
    (message,) = complaints_about({"conv": CONV, "norm": {"type": "batch_norm", "after": anchor}})
    assert message.startswith(f"model.blocks.norm.after: there is no other layer {anchor!r};")
    assert message.endswith("expected one of conv")


# inference


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


def test_a_users_class_gets_the_shape_that_reaches_it(users: str) -> None:
    network = build_network((1, 8, 6), {"conv": CONV, "seen": f"{users}.Seen"})
    assert network.seen.seen == ((4, 6, 4), 4)


def test_classes_stands_in_nested_blocks_too() -> None:
    head = {"type": "sequential", "blocks": {"output": {"type": "linear", "out_features": "classes"}}}
    assert plan((1, 2, 2), {"flatten": "flatten", "head": head}, classes=7).output_shape == (7,)


# nested blocks


def body(**last: Any) -> dict[str, Any]:
    return {
        "conv1": {"type": "conv", "out_channels": 4, "kernel_size": 3, "padding": 1},
        "relu": "relu",
        "conv2": {"type": "conv", "out_channels": 4, "kernel_size": 3, "padding": 1, **last},
    }


def test_a_residual_of_one_shape_adds_the_input_itself() -> None:
    network = build_network((4, 8, 8), {"block": {"type": "residual", "blocks": body()}})
    x_NCHW = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(network(x_NCHW), network.block.blocks(x_NCHW) + x_NCHW)


@pytest.mark.parametrize(
    ("channels", "last", "stride"),
    [(3, {}, (1, 1)), (4, {"stride": 2}, (2, 2)), (3, {"stride": [1, 2]}, (1, 2)), (4, {"out_channels": 6}, (1, 1))],
    ids=str,
)
def test_a_residual_that_changes_the_size_projects_its_input(
    channels: int, last: dict[str, Any], stride: tuple[int, int]
) -> None:
    network = build_network((channels, 8, 8), {"block": {"type": "residual", "blocks": body(**last)}})
    projection = network.block.projection
    assert names(projection) == ["conv", "norm"]
    assert (projection.conv.kernel_size, projection.conv.stride, projection.conv.bias) == ((1, 1), stride, None)
    x_NCHW = torch.randn(2, channels, 8, 8)
    torch.testing.assert_close(network.eval()(x_NCHW), network.block.blocks(x_NCHW) + projection(x_NCHW))


def test_a_residual_takes_a_projection_of_its_own() -> None:
    projection = {"pool": {"type": "avg_pool", "kernel_size": 2}, "conv": {**CONV, "kernel_size": 1}}
    spec = {"type": "residual", "blocks": body(stride=2), "projection": projection}
    network = build_network((3, 8, 8), {"block": spec})
    assert names(network.block.projection) == ["pool", "conv"]
    assert network.block.projection.conv.in_channels == 3


def test_a_projection_of_another_shape_is_refused_with_both_shapes() -> None:
    spec = {"type": "residual", "blocks": body(), "projection": {"conv": {**CONV, "kernel_size": 2}}}
    (message,) = complaints_about({"block": spec}, (3, 8, 8))
    assert message.startswith("model.blocks.block: the blocks give 4×8×8 and the projection 4×7×7")


def test_a_body_that_no_strided_projection_follows_asks_for_one() -> None:
    (message,) = complaints_about({"block": {"type": "residual", "blocks": body(padding=0)}}, (4, 8, 8))
    assert message.startswith("model.blocks.block: its blocks change 4×8×8 to 4×6×6")
    assert "'projection'" in message


def test_residuals_nest() -> None:
    inner = {"type": "residual", "blocks": body()}
    network = build_network((4, 8, 8), {"outer": {"type": "residual", "blocks": {"inner": inner, "relu": "relu"}}})
    x_NCHW = torch.randn(2, 4, 8, 8)
    inner_NCHW = network.outer.blocks.inner.blocks(x_NCHW) + x_NCHW
    torch.testing.assert_close(network(x_NCHW), inner_NCHW.relu() + x_NCHW)


def test_a_repeated_sequence_has_weights_of_its_own() -> None:
    layer = {"type": "sequential", "repeat": 2, "blocks": {"linear": {"type": "linear", "out_features": 4}}}
    network = build_network((4,), {"hidden": layer})
    assert list(network.state_dict()) == [
        "hidden.r0.linear.weight",
        "hidden.r0.linear.bias",
        "hidden.r1.linear.weight",
        "hidden.r1.linear.bias",
    ]
    assert not torch.equal(network.hidden.r0.linear.weight, network.hidden.r1.linear.weight)


@pytest.mark.parametrize("count", [0, 100_000, 1.5, True, "two"])
def test_a_sequence_cannot_be_repeated_so_often(count: Any) -> None:
    messages = complaints_about({"stage": {"type": "sequential", "repeat": count, "blocks": {"relu": "relu"}}})
    assert messages == [f"model.blocks.stage.repeat: expected a whole number from 1 to 1000, received {count!r}"]


def test_a_container_without_blocks_is_refused() -> None:
    assert complaints_about({"stage": "sequential"}) == [
        "model.blocks.stage.blocks: sequential needs it, and it is missing"
    ]


def test_a_block_that_is_no_container_takes_no_blocks() -> None:
    assert complaints_about({"act": {"type": "relu", "blocks": {"a": "relu"}}}) == [
        "model.blocks.act.blocks: relu has no argument 'blocks'; it takes inplace"
    ]


def test_a_users_container_gets_its_nested_blocks(users: str) -> None:
    network = build_network((1, 8, 8), {"around": {"type": f"{users}.Around", "inner": {"relu": "relu"}}})
    assert network(torch.tensor([[[[-1.0, 2.0]]]])).tolist() == [[[[-0.0, -2.0]]]]


# names


def test_the_names_of_the_state_are_the_names_of_the_layers() -> None:
    blocks = {"conv1": CONV, "block": {"type": "residual", "blocks": {"conv": {**CONV, "kernel_size": 1}}}}
    assert list(build_network((1, 8, 8), blocks).state_dict()) == [
        "conv1.weight",
        "conv1.bias",
        "block.blocks.conv.weight",
        "block.blocks.conv.bias",
    ]


@pytest.mark.parametrize("name", ["conv.1", "conv 1", "1conv", "conv-1", ""])
def test_a_layer_name_that_is_no_identifier_is_refused(name: str) -> None:
    (message,) = complaints_about({name: "relu"})
    assert message.startswith(f"model.blocks.{name}: expected a layer name of letters, digits and underscores")


# dotted names


def test_a_torch_class_goes_by_its_dotted_name() -> None:
    assert isinstance(build_network((1, 8, 8), {"act": "torch.nn.Hardswish"}).act, nn.Hardswish)


def test_a_users_class_takes_arguments_and_what_is_inferred(users: str) -> None:
    network = build_network((3, 2, 2), {"scale": {"type": f"{users}.Scale", "factor": 4.0}})
    assert network.scale.factor.shape == (3, 1, 1)
    assert network(torch.ones(1, 3, 2, 2)).eq(4).all()


def test_a_users_class_of_a_saved_config_needs_trust(users: str) -> None:
    trust = Trust(everything=False, again=lambda names: f"resume=runs/a trust={names}")
    (message,) = complaints_about({"scale": f"{users}.Scale"}, trust=trust)
    assert message.startswith("model.blocks.scale: ")
    assert message.endswith(f"resume=runs/a trust=['{users}.Scale']")


def test_trust_reaches_nested_blocks(users: str) -> None:
    nested = {"stage": {"type": "sequential", "blocks": {"scale": f"{users}.Scale"}}}
    (message,) = complaints_about(nested, trust=Trust(everything=False))
    assert message.startswith("model.blocks.stage.blocks.scale: ")


def test_a_users_class_that_fails_is_reported_with_its_key_and_its_input(users: str) -> None:
    assert complaints_about({"mine": f"{users}.Broken"}) == [
        "model.blocks.mine: Broken does not fit its input 1×8×8: I cannot go forward"
    ]


def test_a_users_class_that_returns_no_tensor_is_refused(users: str) -> None:
    (message,) = complaints_about({"mine": f"{users}.Pair"})
    assert message == "model.blocks.mine: expected one tensor with the batch in front from Pair, received tuple"


# complaints


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
        build_network((1, 8, 8), blocks, init="hee")
    first, *lines = str(caught.value).splitlines()
    assert first == "8 mistakes in the config:"
    assert {line.strip().split(":")[0] for line in lines} == {
        "model.init",
        "model.blocks.conv.kernal_size",
        "model.blocks.conv.kernel_size",
        "model.blocks.act",
        "model.blocks.drop.p",
        "model.blocks.stage.blocks.pool.kernel_size",
        "model.blocks.norm.after",
        "model.blocks.output.out_features",
    }


@pytest.mark.parametrize("blocks", [None, "relu", ["relu"], 3], ids=str)
def test_blocks_that_are_no_mapping_are_refused(blocks: Any) -> None:
    (message,) = complaints_about(blocks)
    assert message == f"model.blocks: expected a mapping of layer name → block, received {blocks!r}"


@pytest.mark.parametrize("blocks", [{}, {"conv": None}], ids=str)
def test_a_network_needs_a_block(blocks: Any) -> None:
    (message,) = complaints_about(blocks)
    assert message.startswith("model.blocks: expected at least one block")


def test_complaints_are_reported_at_the_key_of_the_caller() -> None:
    (message,) = complaints_about({"act": "rleu"}, key="teacher")
    assert message.startswith("teacher.blocks.act: ")


def test_complaints_of_others_do_not_stop_a_plan() -> None:
    complaints = Complaints()
    complaints.add("seed", "no")
    assert plan_network((1, 8, 8), {"act": "relu"}, complaints) is not None


# initialization and randomness


def test_a_layer_s_own_init_wins() -> None:
    blocks = {"flatten": "flatten", "one": LINEAR, "two": {**LINEAR, "init": {"type": "normal", "mean": 3, "std": 0}}}
    network = build_network((1, 4, 4), blocks, init="zeros")
    assert network.one.weight.eq(0).all()
    assert network.two.weight.eq(3).all()


def test_a_container_s_init_reaches_its_blocks() -> None:
    stage = {"type": "sequential", "init": "zeros", "blocks": {"conv": CONV}}
    network = build_network((1, 8, 8), {"before": CONV, "stage": stage})
    assert network.stage.conv.weight.eq(0).all()
    assert network.before.weight.ne(0).any()


def test_an_argument_of_init_is_checked() -> None:
    assert complaints_about({"conv": CONV}, init={"type": "normal", "std": -1}) == [
        "model.init.std: expected a number in [0, 1e+06], received -1"
    ]


WEIGHTED = {"conv": CONV, "norm": "batch_norm", "flatten": "flatten", "output": LINEAR}


def seeded(seed: int, make: Callable[[], nn.Module]) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return make().state_dict()


@pytest.mark.parametrize("init", ["default", "he", "xavier", "orthogonal"])
def test_one_seed_gives_one_network(init: str) -> None:
    states = [seeded(3, lambda: build_network((1, 8, 8), WEIGHTED, init=init)) for _ in range(2)]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_a_plan_builds_again_with_weights_of_their_own() -> None:
    planned = plan((1, 8, 8), WEIGHTED)
    one, two = seeded(3, planned.build), seeded(3, planned.build)
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert one["conv.weight"].data_ptr() != two["conv.weight"].data_ptr()


def test_planning_draws_no_random_number(users: str) -> None:
    before = torch.get_rng_state()
    plan((1, 8, 8), {**WEIGHTED, "scale": {"type": f"{users}.Scale", "after": "conv"}}, init="he")
    assert torch.equal(torch.get_rng_state(), before)


def test_planning_builds_on_the_meta_device_alone(users: str) -> None:
    planned = plan((1, 8, 8), {"scale": f"{users}.Scale"})
    devices = planned.layers[0].component.factory.devices  # type: ignore[attr-defined]
    assert set(devices) == {"meta"}
    planned.build()
    assert devices[-1] == "cpu"


def test_planning_makes_no_weights() -> None:
    million = 10**6
    planned = plan((million,), {"huge": {"type": "linear", "out_features": million, "bias": False}})
    assert planned.rows[0].parameters == million**2  # 4 TB, were they made


def test_a_built_network_starts_in_training() -> None:
    network = build_network((1, 8, 8), {"stage": {"type": "sequential", "blocks": {"drop": "dropout"}}})
    assert isinstance(network.stage.drop, Dropout)
    assert all(module.training for module in network.modules())


# what the loss has to go with


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ({"flatten": "flatten", "output": LINEAR}, Linear),
        ({"flatten": "flatten", "output": LINEAR, "act": "sigmoid"}, nn.Sigmoid),
        ({"head": {"type": "sequential", "blocks": {"flatten": "flatten", "act": "sigmoid"}}}, nn.Sigmoid),
    ],
    ids=["linear", "sigmoid", "nested"],
)
def test_the_output_type_is_the_last_layer_that_is_no_container(
    blocks: dict[str, Any], expected: type[nn.Module]
) -> None:
    assert plan((1, 2, 2), blocks).output_type is expected


# what a network may be called and contain


@pytest.mark.parametrize("groups", [11, 32])
def test_any_number_of_groups_that_divides_the_channels_is_taken(groups: int) -> None:
    network = build_network(
        (groups, 8, 8),
        {
            "depthwise": {"type": "conv", "out_channels": groups, "kernel_size": 3, "groups": groups},
            "norm": {"type": "group_norm", "num_groups": groups},
        },
    )
    assert network.depthwise.weight.shape == (groups, 1, 3, 3)


@pytest.mark.parametrize("name", ["pop", "forward", "training", "half"])
def test_a_name_that_modules_use_themselves_is_refused(name: str) -> None:
    assert complaints_about({name: "relu"}) == [
        f"model.blocks.{name}: torch's modules use the name {name!r} themselves: expected another"
    ]


def test_layers_after_each_other_in_a_circle_are_refused() -> None:
    blocks = {"first": "relu", "a": {"type": "relu", "after": "b"}, "b": {"type": "relu", "after": "a"}}
    assert complaints_about(blocks) == ["model.blocks.a.after: the layers a, b stand after each other in a circle"]


def test_a_norm_keeps_its_ones_whatever_the_initialization() -> None:
    network = build_network((3, 4, 4), {"norm": "layer_norm", "conv": CONV}, init="zeros")
    assert torch.equal(network.norm.weight, torch.ones(3, 4, 4))
    assert torch.equal(network.conv.weight, torch.zeros(4, 3, 3, 3))


def test_a_users_container_counts_its_nested_blocks_once(users: str) -> None:
    rows = plan((2, 8, 8), {"around": {"type": f"{users}.Around", "inner": {"conv": CONV}}}).rows
    outputs, weights = 4 * 6 * 6, 2 * 3 * 3
    assert [(row.path, row.parameters, row.macs) for row in rows] == [
        ("around", 0, 0),
        ("around.inner.conv", 4 * weights + 4, outputs * weights),
    ]


def test_a_softmax_over_the_batch_is_refused() -> None:
    (message,) = complaints_about({"softmax": {"type": "softmax", "dim": 0}})
    assert message.startswith("model.blocks.softmax.dim: ")


def test_a_lazy_module_is_reported_with_the_one_that_infers() -> None:
    (message,) = complaints_about({"conv": {"type": "torch.nn.LazyConv2d", "out_channels": 2, "kernel_size": 3}})
    assert message.startswith("model.blocks.conv: expected torch.nn.Conv2d, received torch.nn.LazyConv2d")


def test_a_mapping_that_is_no_nested_block_is_an_unknown_argument() -> None:
    assert complaints_about({"act": {"type": "relu", "foo": {"a": "relu"}}}) == [
        "model.blocks.act.foo: relu has no argument 'foo'; it takes inplace"
    ]


def test_a_block_without_a_constructor_of_its_own_takes_no_argument() -> None:
    assert complaints_about({"pool": {"type": "global_avg_pool", "kernel_size": 2}}) == [
        "model.blocks.pool.kernel_size: global_avg_pool has no argument 'kernel_size'; it takes none"
    ]


def test_the_output_of_a_residual_is_no_activation_whatever_its_blocks_end_with() -> None:
    blocks = {"block": {"type": "residual", "blocks": {"act": "sigmoid"}}}
    assert not issubclass(plan((1, 4, 4), blocks).output_type, nn.Sigmoid)
    assert issubclass(
        plan((1, 4, 4), {"s": {"type": "sequential", "blocks": {"act": "sigmoid"}}}).output_type, nn.Sigmoid
    )


def test_given_weights_are_those_of_the_network() -> None:
    network = build_network((2,), {"neuron": {"type": "linear", "out_features": 1, "init": GIVEN}})
    assert network(torch.tensor([[10.0, 100.0]])).item() == 213


@pytest.mark.parametrize(
    ("neuron", "init", "key"),
    [
        ({"init": GIVEN}, "default", "model.blocks.inner.blocks.neuron.init.weight: "),
        ({}, GIVEN, "model.init.weight: "),
    ],
    ids=["of a layer", "of the network"],
)
def test_given_weights_that_do_not_fit_are_reported_with_their_key_before_any_is_made(
    neuron: dict[str, Any], init: Any, key: str
) -> None:
    inner = {"type": "sequential", "blocks": {"neuron": {"type": "linear", "out_features": 1, **neuron}}}
    complaints = Complaints()
    assert plan_network((3,), {"inner": inner}, complaints, init=init) is None
    assert complaints.messages == [f"{key}expected numbers of shape [1, 3], received [1, 2]"]
