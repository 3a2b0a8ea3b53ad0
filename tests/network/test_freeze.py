"""Frozen layers: what a pattern reaches, and how it is reported."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from cnnlab.network import NetworkPlan, plan_network, render_table
from cnnlab.network.freeze import check_freeze, freeze_matching
from cnnlab.runtime.errors import Complaints, ConfigError

BODY = {
    "conv1": {"type": "conv", "out_channels": 2, "kernel_size": 3, "padding": 1},
    "norm1": {"type": "batch_norm", "affine": False},
}
BLOCKS: dict[str, Any] = {
    "conv1": {"type": "conv", "out_channels": 2, "kernel_size": 3},
    "norm1": "batch_norm",
    "block1": {"type": "residual", "blocks": BODY},
    "pool": "global_avg_pool",
    "output": {"type": "linear", "out_features": 3},
}
NAMES = ["conv1.weight", "conv1.bias", "norm1.weight", "norm1.bias", "block1.blocks.conv1.weight"]
NAMES += ["block1.blocks.conv1.bias", "output.weight", "output.bias"]


def planned(*freeze: Any, blocks: Mapping[str, Any] = BLOCKS) -> NetworkPlan:
    return planned_with(list(freeze), blocks)


def planned_with(freeze: Any, blocks: Mapping[str, Any] = BLOCKS) -> NetworkPlan:
    complaints = Complaints()
    plan = plan_network((1, 8, 8), blocks, complaints, freeze=freeze)
    complaints.raise_if_any()
    assert plan is not None
    return plan


def frozen(network: nn.Module) -> list[str]:
    return [name for name, parameter in network.named_parameters() if not parameter.requires_grad]


def in_evaluation(network: nn.Module) -> list[str]:
    return [path for path, module in network.named_modules() if not module.training]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ([], []),
        (["conv1"], NAMES[:2]),  # not block1.blocks.conv1
        (["conv1.weight"], NAMES[:1]),
        (["*conv1"], NAMES[:2] + NAMES[4:6]),
        (["block1.blocks.*"], NAMES[4:6]),
        (["*.bias"], NAMES[1::2]),
        (["conv1", "norm1"], NAMES[:4]),
        (["backbone"], NAMES[:6]),
    ],
)
def test_a_pattern_freezes_a_parameter_or_all_of_a_layer(patterns: list[str], expected: list[str]) -> None:
    assert frozen(planned(*patterns).build()) == expected


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["norm1"], ["norm1"]),
        (["norm1.weight"], []),  # its bias trains
        (["block1"], ["block1.blocks.norm1"]),  # no parameters, but statistics
    ],
)
def test_a_norm_that_is_frozen_stays_in_evaluation_mode(patterns: list[str], expected: list[str]) -> None:
    assert in_evaluation(planned(*patterns).build()) == expected


def test_frozen_weights_begin_as_they_would_have_otherwise() -> None:
    torch.manual_seed(3)
    free = planned().build()
    torch.manual_seed(3)
    kept = planned("conv1", "norm1").build()
    assert all(torch.equal(a, b) for a, b in zip(free.parameters(), kept.parameters(), strict=True))


def test_the_table_marks_frozen_layers_and_counts_what_trains() -> None:
    plan = planned("conv1.weight", "block1")
    remarks = {row.path: row.remark for row in plan.rows if row.remark}
    assert remarks == {"conv1": "partly frozen", "block1.blocks.conv1": "frozen", "block1.blocks.norm1": "frozen"}
    total = 2 * 9 + 2 + 4 + 2 * 2 * 9 + 2 + 2 * 3 + 3
    remark = render_table(plan.rows, plan.input_shape).columns[-1]
    assert remark.footer == f"{total - 2 * 9 - (2 * 2 * 9 + 2)} train"


def test_a_layer_inside_torchvisions_network_goes_by_torchvisions_name() -> None:
    blocks = {"network": {"type": "torchvision", "name": "resnet18", "num_classes": 3}}
    with torch.device("meta"):
        network = planned("network.layer*", "network.conv1", "network.bn1", blocks=blocks).build()
    training = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert training == ["network.fc.weight", "network.fc.bias"]
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 20
    assert not any(module.training for module in norms)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["conv9"], "'conv9' matches no parameter .* did you mean 'conv1'\\? there are conv1, norm1, block1, output"),
        (["pool"], "'pool' matches no parameter and no layer that has any"),
        (["*"], "\\* matches every parameter: there is nothing to train"),
        (["backbon"], "'backbon' matches no parameter"),
        ([3], "expected a list of name patterns such as \\[conv1, norm\\*\\], or a mapping .*received \\[3\\]"),
    ],
)
def test_a_pattern_without_sense_is_reported(patterns: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"model.freeze: {message}"):
        planned(*patterns)


def test_the_backbone_ends_within_a_block_where_the_last_layer_is_there() -> None:
    inner = {"type": "sequential", "blocks": {**BLOCKS, "act": "relu"}}
    (_, *others) = frozen(planned("backbone", blocks={"conv0": BLOCKS["conv1"], "inner": inner}).build())
    assert others == ["conv0.bias", *(f"inner.{name}" for name in NAMES[:6])]
    assert {"inner.norm1", "inner.block1.blocks.norm1"} <= {
        *in_evaluation(planned("backbone", blocks={"inner": inner}).build())
    }
    with pytest.raises(ConfigError, match="backbone stands for the layers before the last, and there is one layer"):
        planned("backbone", blocks={"pool": "global_avg_pool", "output": BLOCKS["output"]})


def test_a_network_without_parameters_is_not_blamed_on_freeze() -> None:
    assert planned(blocks={"norm": {"type": "batch_norm", "affine": False}}).rows[0].parameters == 0


# for some epochs


def by_epoch(plan: NetworkPlan, epochs: int) -> list[tuple[list[str], list[str], bool]]:
    """For each epoch what is frozen, the norms in evaluation mode, and whether that changed."""
    network = plan.build()
    found = []
    for epoch in range(epochs):
        changed = freeze_matching(network, plan.freeze, epoch)
        found.append((frozen(network), in_evaluation(network), changed))
    return found


def test_a_pattern_holds_until_or_after_so_many_epochs() -> None:
    plan = planned_with(
        {"conv1.weight": None, "conv1.bias": {"after": 2}, "block1": {"until": 1}, "norm1": {"until": 3}}
    )
    first, later, last = NAMES[:1], NAMES[1:2], NAMES[2:4]
    assert frozen(plan.build()) == first  # what trains in some epoch is part of the optimizer
    assert by_epoch(plan, 5) == [
        (first + last + NAMES[4:6], ["norm1", "block1.blocks.norm1"], True),
        (first + last, ["norm1"], True),
        (first + later + last, ["norm1"], True),
        (first + later, [], True),
        (first + later, [], False),
    ]


def test_a_pattern_may_hold_in_epochs_between() -> None:
    plan = planned_with({"output": {"after": 1, "until": 3}})
    assert [bool(names) for names, _, _ in by_epoch(plan, 5)] == [False, True, True, False, False]


def test_what_another_pattern_still_freezes_stays() -> None:
    plan = planned_with({"conv1": {"until": 1}, "*.weight": None})
    assert "conv1.weight" in by_epoch(plan, 2)[1][0]
    assert "conv1.bias" not in by_epoch(plan, 2)[1][0]


def test_a_weight_with_two_names_is_frozen_by_either() -> None:
    network = nn.Sequential()
    network.add_module("a", nn.Linear(2, 2))
    network.add_module("b", nn.Linear(2, 2))
    network.b.weight = network.a.weight  # type: ignore[union-attr, assignment]
    complaints = Complaints()
    freeze = check_freeze({"a": {"until": 1}, "b": {"until": 2}}, network, "model.freeze", complaints)
    freeze_matching(network, freeze, 1)
    assert frozen(network) == ["a.weight", "b.bias"]


def test_the_table_says_in_which_epochs_a_layer_is_frozen() -> None:
    plan = planned_with({"conv1": {"until": 3}, "norm1.bias": {"after": 3}, "output": {"after": 1, "until": 2}})
    remarks = {row.path: row.remark for row in plan.rows if row.remark}
    assert remarks == {
        "conv1": "frozen in epochs 1–3",
        "norm1": "partly frozen after epoch 3",
        "output": "frozen in epoch 2",
    }


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        ("conv1", "expected a list of name patterns such as .* or a mapping .* received 'conv1'"),
        ({"conv9": {"until": 2}}, "'conv9' matches no parameter"),
        ({"conv1": 3}, r"expected null, \{until: EPOCHS\} or \{after: EPOCHS\}, .* received 3"),
        ({"conv1": {}}, "expected null, "),
        ({"conv1": {"untl": 3}}, "did you mean 'until'"),
        ({"conv1": {"until": 0}}, "until: expected a whole number ≥ 1, received 0"),
        ({"conv1": {"until": 2.5}}, "until: expected a whole number"),
        ({"conv1": {"after": 3, "until": 3}}, "until: expected more than after=3, received 3"),
        ({"*": {"after": 2}}, r"\* matches every parameter in epoch 3: there is nothing to train"),
        ({"conv1": None, "[!c]*": {"until": 1}}, r"conv1, \[!c\]\* matches every parameter in epoch 1"),
    ],
)
def test_epochs_without_sense_are_reported(freeze: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.freeze.*{message}"):
        planned_with(freeze)
