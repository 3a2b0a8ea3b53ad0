"""Networks whose layers read more than the previous one: `from`, branches, arithmetic and repetitions in blocks."""

import random
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from torch import nn

from cnnlab.network import NetworkPlan, plan_network
from cnnlab.runtime.errors import Complaints

CONV = "{type: conv, out_channels: 4, kernel_size: 3, padding: 1}"
STEM = f"stem: {CONV}\n"
FIRE = f"fire: {{type: branches, branches: {{narrow: {CONV}, wide: {{blocks: {{conv: {CONV}, act: relu}}}}}}}}\n"


def planned(text: str, input_shape: tuple[int, ...] = (3, 8, 8), **options: Any) -> NetworkPlan:
    complaints = Complaints()
    plan = plan_network(input_shape, yaml.safe_load(text), complaints, **options)
    complaints.raise_if_any()
    assert plan is not None
    return plan


def complaints_about(text: str) -> list[str]:
    complaints = Complaints()
    assert plan_network((3, 8, 8), yaml.safe_load(text), complaints, classes=10) is None
    return complaints.messages


X_NCHW = torch.randn(2, 3, 8, 8)


def test_from_replaces_the_previous_layer_and_may_name_several_or_the_input() -> None:
    network = planned(
        f"{STEM}a: {{type: tanh}}\nb: {{type: relu, from: stem}}\nc: {{type: concat, from: [b, a, input]}}"
    ).build()
    stem = network.stem(X_NCHW)
    torch.testing.assert_close(network(X_NCHW), torch.cat([stem.relu(), stem.tanh(), X_NCHW], 1))


def test_a_chain_stays_an_nn_sequential_also_where_from_names_the_previous_layer() -> None:
    assert type(planned(f"{STEM}act: {{type: relu, from: stem}}").build()) is nn.Sequential


def test_after_puts_a_layer_in_order_and_redirects_nobody() -> None:
    network = planned(f"{STEM}end: {{type: add, from: [stem, act]}}\nact: {{type: relu, after: stem}}").build()
    stem = network.stem(X_NCHW)
    torch.testing.assert_close(network(X_NCHW), stem + stem.relu())


@pytest.mark.parametrize(
    "container",
    [
        "{type: sequential, blocks: BLOCKS}",
        "{type: residual, blocks: BLOCKS}",
        "{type: branches, branches: {x: {blocks: BLOCKS}}}",
    ],
)
def test_from_works_in_nested_blocks(container: str) -> None:
    blocks = f"{{conv: {CONV}, twice: {{type: add, from: [conv, input]}}}}"
    network = planned(f"{STEM}nested: {container.replace('BLOCKS', blocks)}").build()
    stem = network.stem(X_NCHW)
    (conv,) = (module for name, module in network.nested.named_modules() if name.endswith("conv"))
    inner = conv(stem) + stem
    expected = inner + stem if "residual" in container else inner
    torch.testing.assert_close(network(X_NCHW), expected)


def test_layers_of_branches_go_by_their_paths_and_load_strictly(tmp_path: Path) -> None:
    network = planned(STEM + FIRE + "join: {type: concat, from: [fire, stem]}").build()
    names = ["stem", "fire.branches.narrow", "fire.branches.wide.conv"]
    assert list(network.state_dict()) == [f"{name}.{part}" for name in names for part in ("weight", "bias")]
    other = planned(STEM + FIRE + "join: {type: concat, from: [fire, stem]}").build()
    safetensors.torch.save_file(network.state_dict(), tmp_path / "model.safetensors")
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"), strict=True)
    assert torch.equal(other(X_NCHW), network(X_NCHW))


def test_a_branch_may_be_the_identity_or_removed() -> None:
    network = planned("fire: {type: branches, join: add, branches: {a: null, x: identity, y: tanh}}").build()
    torch.testing.assert_close(network(X_NCHW), X_NCHW + X_NCHW.tanh())


def test_the_table_indents_branches_and_shows_joins_and_what_is_read() -> None:
    rows = planned(STEM + FIRE + "join: {type: concat, from: [fire, stem]}").rows
    assert [(row.path, row.depth, row.block, row.output_shape, row.macs, row.remark) for row in rows] == [
        ("stem", 0, "conv 3×3", (4, 8, 8), 64 * 4 * 9 * 3, ""),
        ("fire", 0, "branches concat", (8, 8, 8), 0, ""),
        ("fire.branches.narrow", 1, "conv 3×3", (4, 8, 8), 64 * 4 * 9 * 4, ""),
        ("fire.branches.wide", 1, "sequential", (4, 8, 8), 0, ""),
        ("fire.branches.wide.conv", 2, "conv 3×3", (4, 8, 8), 64 * 4 * 9 * 4, ""),
        ("fire.branches.wide.act", 2, "relu", (4, 8, 8), 0, ""),
        ("join", 0, "concat", (12, 8, 8), 0, "from fire, stem"),
    ]


def test_a_column_may_have_names_that_branches_may_not() -> None:
    assert [name for name, _ in planned("keys: relu\nvalues: tanh").build().named_children()] == ["keys", "values"]


def test_a_layer_may_be_called_input() -> None:
    fire = f"fire: {{type: branches, join: add, branches: {{input: {CONV}, x: {CONV}}}}}"
    network = planned(
        f"input: {{type: relu, inplace: true}}\nact: tanh\n{fire}\nend: {{type: add, from: [fire, fire]}}"
    ).build()
    act = X_NCHW.relu().tanh()
    branches = network.fire.branches
    torch.testing.assert_close(network(X_NCHW.clone()), 2 * (branches.input(act) + branches.x(act)))


def test_frozen_and_initialised_by_name_as_any_layer() -> None:
    network = planned(STEM + FIRE, init="zeros", freeze=["fire.branches.wide"]).build()
    assert [name for name, one in network.named_parameters() if not one.requires_grad] == [
        "fire.branches.wide.conv.weight",
        "fire.branches.wide.conv.bias",
    ]
    assert all(one.eq(0).all() for one in network.parameters())


class Gated(nn.Module):
    """A block of several inputs."""

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return x * gate.sigmoid()


def test_a_users_block_takes_several_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn, "Gated", Gated, raising=False)
    network = planned(f"{STEM}gated: {{type: torch.nn.Gated, from: [stem, stem]}}").build()
    stem = network.stem(X_NCHW)
    torch.testing.assert_close(network(X_NCHW), stem * stem.sigmoid())


def test_arithmetic_is_resolved_for_the_shape_that_reaches_the_layer() -> None:
    network = planned(
        "expand: {type: conv, out_channels: 6 * in_channels, kernel_size: [height - 5, 1], padding: in_channels // 3}\n"
        "flatten: flatten\nout: {type: linear, out_features: in_features // 100 + classes}",
        classes=10,
    ).build()
    assert (network.expand.out_channels, network.expand.kernel_size, network.expand.padding) == (18, (3, 1), (1, 1))
    assert network.out.out_features == 18 * 8 * 10 // 100 + 10


GROWING = """
type: sequential
repeat: 3
first: {layer: {blocks: {conv: {stride: 2}, drop: null}}}
blocks:
  layer:
    type: sequential
    blocks:
      conv: {type: conv, out_channels: 4 + 2 * index, kernel_size: 3, padding: 1}
      drop: {type: dropout, p: 0.1 * index / 2}
"""


def test_the_first_repetition_may_differ_and_index_counts_them() -> None:
    network = planned(yaml.safe_dump({"stage": yaml.safe_load(GROWING)})).build()
    repetitions = [one.layer for one in network.stage.children()]
    assert [(one.conv.out_channels, one.conv.stride) for one in repetitions] == [(4, (2, 2)), (6, (1, 1)), (8, (1, 1))]
    assert [one.drop.p for one in repetitions[1:]] == [0.05, 0.1]
    assert not hasattr(repetitions[0], "drop")


def test_first_gives_a_block_of_another_type() -> None:
    stage = "{type: sequential, repeat: 2, first: {act: {type: leaky_relu, negative_slope: 0.5}}, blocks: {act: tanh}}"
    network = planned(f"stage: {stage}").build()
    assert [type(one.act).__name__ for one in network.stage.children()] == ["LeakyReLU", "Tanh"]


CIRCLE = "a: {type: relu, from: b}\nb: {type: relu, from: a}"
REPEATED = "s: {type: sequential, repeat: 3, %s, blocks: {c: {type: conv, out_channels: %s, kernel_size: 3}}}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            CIRCLE,
            "a.from: 'a' reads 'b', which comes after it, and 'b' reads 'a': a circle; expected some of input, stem",
        ),
        (
            "a: {type: relu, from: b}\nb: tanh",
            "a.from: 'a' reads 'b', which comes after it; expected some of input, stem",
        ),
        ("a: {type: relu, from: a}", "a.from: 'a' cannot read itself"),
        ("a: {type: relu, from: stm}", "a.from: there is no layer 'stm'; did you mean 'stem'? expected some of input,"),
        ("n: null\na: {type: relu, from: n}", "a.from: the layer 'n' is removed (null); expected some of input, stem"),
        ("a: {type: relu, from: []}", "a.from: expected a layer's name or a list of them, received []"),
        ("a: {type: relu, from: [3]}", "a.from: expected a layer's name or a list of them, received [3]"),
        (
            "a: {type: relu, from: [stem, input]}",
            "a: ReLU takes one input, received 2: concat, add, multiply, mean make",
        ),
        (
            "a: {type: residual, from: [stem, input], blocks: {r: relu}}",
            "a.from: residual takes one input, received 2: concat, add",
        ),
        ("a: {type: relu, from: input}", "stem: no layer reads its output: expected 'stem' in the `from` of a later"),
        ("a: concat", "a.from: it is missing: expected a list of the layers that are joined"),
        ("a: {type: branches, branches: {x: concat}}", "a.branches.x: a branch reads one input: expected no concat"),
        (
            "input: relu\na: {type: add, from: [input, stem]}",
            "a.from: 'input' is what reaches these blocks: expected another",
        ),
        ("a: {type: add, from: [stem, input]}", "a: add of 4×8×8 and 3×8×8: channels 4 and 3 (of stem, input)"),
        (
            f"a: {{type: branches, branches: {{x: identity, y: {CONV[:-1]}, stride: 2}}}}}}",
            "a: concat of 4×8×8 and 4×4×4 along channels: heights 8 and 4 (of x, y)",
        ),
        (
            "a: {type: branches, branches: {x: {blocks: {c: {type: conv, out_channels: 4, kernel_size: 9}}}}}",
            "a.branches.x.blocks.c: kernel 9×9 does not fit its input 4×8×8: height (8 + 0 − 9) / 1 + 1 < 1",
        ),
        ("a: {type: branches, branches: {}}", "a.branches: expected at least one branch, received none"),
        ("a: {type: branches, branches: {x: null}}", "a.branches: expected at least one branch, received none"),
        ("a: {type: branches, branches: [relu]}", "a.branches: expected a mapping of branch name → block, received ["),
        (
            "a: {type: branches, branches: {x: {type: relu, from: input}}}",
            "a.branches.x.from: every branch reads the input of its block: expected none",
        ),
        (
            "a: {type: branches, branches: {keys: relu}}",
            "a.branches.keys: torch's modules use the name 'keys' themselves",
        ),
        (
            "c: {type: conv, out_channels: in_channels - 4, kernel_size: 1}",
            "c.out_channels: expected a whole number from 1 to 16777216, received 0 from in_channels - 4",
        ),
        (
            "c: {type: conv, out_channels: 2 * in_chanels, kernel_size: 1}",
            "c.out_channels: 2 * in_chanels: there is no name",
        ),
        (
            REPEATED % ("first: null", "8 - 4 * index"),
            "s.blocks.c.out_channels: expected a whole number from 1 to 16777216",
        ),
        (
            REPEATED % ("first: {c: {strid: 2}}", "4"),
            "s.first.c.strid: conv has no argument 'strid'; did you mean 'stride'?",
        ),
        (
            REPEATED % ("first: {d: {stride: 2}}", "4"),
            "s.first.d: expected a mapping with a 'type', received {'stride': 2}",
        ),
        (REPEATED % ("first: 2", "4"), "s.first: expected a mapping like that of blocks, received 2"),
        (
            "s: {type: sequential, first: {r: tanh}, blocks: {r: relu}}",
            "s.first: it changes the first repetition: expected 'repeat' beside it",
        ),
    ],
)
def test_a_graph_that_makes_no_sense_is_refused_at_its_key(text: str, message: str) -> None:
    (found,) = complaints_about(STEM + text)
    assert found.startswith(f"model.blocks.{message}")


def test_an_error_of_a_later_repetition_names_it() -> None:
    (found,) = complaints_about(STEM + REPEATED % ("first: null", "8 - 4 * index"))
    assert found.endswith("received 0 (in repetition r2)")
    (found,) = complaints_about(STEM + (REPEATED % ("first: null", "8")).replace("repeat: 3", "repeat: 4"))
    assert found.endswith("the smallest legal input is 8×3×3 (in repetition r3)")  # 8 − 3·2 = 2 rows


@pytest.mark.parametrize("seed", range(8))
def test_any_graph_computes_what_its_layers_do_one_by_one(seed: int) -> None:
    draw = random.Random(seed)
    blocks: dict[str, Any] = {}
    for number in range(4):
        conv = {"type": "conv", "out_channels": 3, "kernel_size": 1, "from": draw.choice(["input", *blocks])}
        blocks[f"conv{number}"] = conv
        convs = [name for name in blocks if name.startswith("conv")]  # of equal shapes
        blocks[f"sum{number}"] = {"type": draw.choice(["add", "mean", "multiply"]), "from": draw.choices(convs, k=2)}
        blocks[f"cat{number}"] = {"type": "concat", "from": draw.sample(["input", *blocks], k=2)}
    blocks["all"] = {"type": "concat", "from": [*blocks]}
    plan = planned(yaml.safe_dump(blocks, sort_keys=False))
    network, outputs = plan.build(), {"input": X_NCHW}
    for name, spec in blocks.items():
        sources = [spec["from"]] if isinstance(spec["from"], str) else spec["from"]
        outputs[name] = network.get_submodule(name)(*(outputs[source] for source in sources))
    torch.testing.assert_close(network(X_NCHW), outputs["all"], rtol=0, atol=0)
    assert plan.output_shape == outputs["all"].shape[1:]
