"""Several inputs become one output."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnnlab.blocks.graph import INPUT, Graph
from cnnlab.blocks.join import JOINS, Branches
from cnnlab.blocks.receptive_field import START, WHOLE, Reach, ReceptiveField
from cnnlab.runtime.errors import ArgumentError, ConfigError

WIDE = ReceptiveField(Reach(-1, 1), Reach(-2, 2))


def image(*values: float) -> Tensor:
    """One pixel, a channel for each value."""
    return torch.tensor(values, dtype=torch.float)[None, :, None, None]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("concat", [2, 3, 4, 5, 6, 7]), ("add", [12, 15]), ("multiply", [48, 105]), ("mean", [4, 5])],
)
def test_three_inputs_become_one(name: str, expected: list[float]) -> None:
    joined = JOINS[name]()(image(2, 3), image(4, 5), image(6, 7))
    torch.testing.assert_close(joined, image(*expected))


def test_a_gate_scales_whole_channels() -> None:
    x_NCHW = torch.rand(2, 3, 4, 5)
    torch.testing.assert_close(JOINS["multiply"]()(x_NCHW, image(1, 0, 2)), x_NCHW * image(1, 0, 2))


def facts(name: str, *shapes: tuple[int, ...]) -> Any:
    join: Any = JOINS[name]()
    return join.facts(*shapes)


@pytest.mark.parametrize(
    ("name", "shapes", "expected"),
    [
        ("concat", [(16, 8, 6), (32, 8, 6), (1, 8, 6)], (49, 8, 6)),
        ("concat", [(5,), (7,)], (12,)),
        ("concat", [(9, 5), (9, 7)], (9, 12)),
        ("add", [(16, 8, 6), (16, 8, 6)], (16, 8, 6)),
        ("multiply", [(16, 1, 1), (16, 8, 6)], (16, 8, 6)),
        ("mean", [(4, 5), (4, 5)], (4, 5)),
    ],
)
def test_the_output_shape_is_torchs(name: str, shapes: list[tuple[int, ...]], expected: tuple[int, ...]) -> None:
    assert facts(name, *shapes).output_shape == expected
    assert JOINS[name]()(*(torch.zeros(2, *shape) for shape in shapes)).shape[1:] == expected


@pytest.mark.parametrize(
    ("name", "shapes", "message"),
    [
        ("concat", [(16, 8, 8), (32, 4, 4)], "concat of 16×8×8 and 32×4×4 along channels: heights 8 and 4"),
        (
            "concat",
            [(1, 8, 8), (2, 8, 8), (3, 8, 4)],
            "concat of 1×8×8, 2×8×8 and 3×8×4 along channels: widths 8, 8 and",
        ),
        ("add", [(16, 8, 8), (32, 8, 8)], "add of 16×8×8 and 32×8×8: channels 16 and 32"),
        ("mean", [(16,), (32,)], "mean of 16 and 32: features 16 and 32"),
        ("concat", [(3, 4), (2, 4)], "concat of 3×4 and 2×4 along features: lengths 3 and 2"),
        ("multiply", [(3, 4), (3, 5)], "multiply of 3×4 and 3×5: features 4 and 5"),
        ("concat", [(16,), (32, 8, 8)], "concat of 16 and 32×8×8: expected images alone or features alone"),
    ],
)
def test_sizes_that_do_not_join_are_refused_with_them(name: str, shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        facts(name, *shapes)


@pytest.mark.parametrize("name", JOINS)
def test_a_join_sees_what_any_input_does(name: str) -> None:
    assert facts(name, (2, 8, 8), (2, 8, 8)).field(START, WIDE) == WIDE
    assert facts(name, (2, 8, 8), (2, 8, 8)).field(START, None) is None


def test_what_a_repeated_unit_sees_is_the_whole_image_or_unknown() -> None:
    multiply = facts("multiply", (2, 8, 8), (2, 1, 1))
    assert multiply.field(WIDE, WHOLE) == WHOLE
    assert multiply.field(WIDE, START) is None


def test_branches_all_read_the_input() -> None:
    twice = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    for layer in twice:
        nn.init.constant_(layer.weight, 3)
    branches = Branches(nn.ModuleDict({"x": nn.Identity(), "nine": twice}), join="add")
    assert branches(torch.tensor([[5.0]])).item() == 50  # 5 + 3·3·5
    assert list(branches.state_dict()) == ["branches.nine.0.weight", "branches.nine.1.weight"]


def test_an_unknown_join_is_refused() -> None:
    with pytest.raises(ArgumentError, match="join: expected one of concat, add, multiply, mean, received 'sum'"):
        Branches(nn.ModuleDict({"x": nn.Identity()}), join="sum")


class Increment(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def test_a_graph_reads_earlier_outputs_by_name() -> None:
    sources = {"a": [INPUT], "b": ["a"], "c": ["b"], "sum": ["c", INPUT, "a"]}
    graph = Graph({"a": Increment(), "b": Increment(), "c": Increment(), "sum": JOINS["add"]()}, sources)
    assert graph(torch.tensor([10.0])).item() == 13 + 10 + 11


def test_a_graph_holds_an_output_no_longer_than_it_is_read() -> None:
    alive: list[int] = []
    outputs: list[weakref.ref[Tensor]] = []

    class Watch(Increment):
        def forward(self, x: Tensor) -> Tensor:
            alive.append(sum(output() is not None for output in outputs))
            output = super().forward(x)
            outputs.append(weakref.ref(output))
            return output

    Graph({name: Watch() for name in "abcd"}, {"a": [INPUT], "b": ["a"], "c": ["b"], "d": ["c"]})(torch.zeros(1))
    assert alive == [0, 1, 1, 1]
