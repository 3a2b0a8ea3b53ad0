"""The layer table: sizes, parameters, MACs and remarks by hand."""

from typing import Any

import pytest
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from cnnlab.network import LayerRow, plan_network, render_table
from cnnlab.runtime.errors import Complaints

CP20_CP40_FC100: dict[str, Any] = {
    "conv1": {"type": "conv", "out_channels": 20, "kernel_size": 5},
    "pool1": {"type": "max_pool", "kernel_size": 2},
    "conv2": {"type": "conv", "out_channels": 40, "kernel_size": 5},
    "pool2": {"type": "max_pool", "kernel_size": 2},
    "flatten": "flatten",
    "hidden": {"type": "linear", "out_features": 100},
    "output": {"type": "linear", "out_features": 10},
}


def rows(input_shape: tuple[int, ...], blocks: dict[str, Any]) -> dict[str, LayerRow]:
    complaints = Complaints()
    plan = plan_network(input_shape, blocks, complaints)
    complaints.raise_if_any()
    assert plan is not None
    return {row.path: row for row in plan.rows}


def test_sizes_and_parameters_of_every_layer() -> None:
    table = rows((1, 28, 28), CP20_CP40_FC100)
    assert {path: (row.output_shape, row.parameters) for path, row in table.items()} == {
        "conv1": ((20, 24, 24), 20 * (5 * 5 * 1 + 1)),  # 28 − 5 + 1
        "pool1": ((20, 12, 12), 0),
        "conv2": ((40, 8, 8), 40 * (5 * 5 * 20 + 1)),  # 12 − 5 + 1
        "pool2": ((40, 4, 4), 0),
        "flatten": ((640,), 0),  # 40·4·4
        "hidden": ((100,), 100 * (640 + 1)),
        "output": ((10,), 10 * (100 + 1)),
    }


def rendered(input_shape: tuple[int, ...], blocks: dict[str, Any]) -> list[str]:
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(render_table(list(rows(input_shape, blocks).values()), input_shape))
    return [line[1:] for line in capture.get().splitlines()]  # without the frame


def conv(out_channels: int, kernel_size: int = 3, **settings: Any) -> dict[str, Any]:
    return {"type": "conv", "out_channels": out_channels, "kernel_size": kernel_size, **settings}


def test_nested_layers_stand_below_their_container_with_their_own_macs() -> None:
    inner = {"conv1": conv(16, stride=2, padding=1), "relu": "relu"}
    stage = {"type": "sequential", "blocks": {"block": {"type": "residual", "blocks": inner}}}
    assert [(row.path, row.depth, row.macs) for row in rows((8, 8, 8), {"stage": stage, "act": "relu"}).values()] == [
        ("stage", 0, 0),
        ("stage.block", 1, 0),
        ("stage.block.blocks.conv1", 2, 4 * 4 * 16 * 3 * 3 * 8),
        ("stage.block.blocks.relu", 2, 0),
        ("stage.block.projection.conv", 2, 4 * 4 * 16 * 1 * 1 * 8),
        ("stage.block.projection.norm", 2, 0),
        ("act", 0, 0),
    ]


@pytest.mark.parametrize(
    ("spec", "block"),
    [
        (conv(1), "conv 3×3"),
        (conv(1, stride=[1, 2]), "conv 3×3 / 1×2"),
        ({"type": "max_pool", "kernel_size": [2, 3]}, "max_pool 2×3 / 2×3"),
        ("torch.nn.Hardswish", "torch.nn.Hardswish"),
    ],
    ids=str,
)
def test_a_window_is_noted_beside_the_block(spec: Any, block: str) -> None:
    assert rows((1, 6, 6), {"layer": spec})["layer"].block == block


def test_the_rendered_table_has_a_line_for_input_layers_and_total() -> None:
    lines = [line.split() for line in rendered((1, 28, 28), CP20_CP40_FC100) if line.strip()]
    start = next(number for number, line in enumerate(lines) if line[0] == "input")
    assert [line[0] for line in lines[start:]] == ["input", *CP20_CP40_FC100, "total"]
    assert lines[start + 1] == ["conv1", "conv", "5×5", "20×24×24", "520", "288,000", "5×5"]
    macs = 24 * 24 * 20 * 25 + 8 * 8 * 40 * 25 * 20 + 640 * 100 + 100 * 10
    assert lines[-1] == ["total", "85,670", f"{macs:,}"]


def test_remarks_have_a_column_only_where_there_are_some_and_nested_layers_are_indented() -> None:
    assert not any("remark" in line for line in rendered((1, 7, 7), {"conv": conv(1)}))
    lines = rendered((1, 7, 7), {"stage": {"type": "sequential", "blocks": {"conv": conv(1, stride=3)}}})
    assert any("remark" in line for line in lines)
    assert any(line.startswith("  conv ") and line.rstrip().endswith("drops 1 row, 1 column") for line in lines)


NETWORK = {"stage": {"type": "sequential", "blocks": {"conv": conv(1, stride=3)}}, "hidden": "flatten"}


def columns_at(width: int | None) -> list[str]:
    """The headings of the table for a terminal of this width."""
    return [str(column.header) for column in table_at(width).columns]


def table_at(width: int | None) -> Table:
    return render_table(list(rows((1, 7, 7), NETWORK).values()), (1, 7, 7), width)


def test_a_narrow_terminal_gets_shorter_numbers_then_fewer_columns() -> None:
    every = ["layer", "block", "output", "parameters", "MACs", "receptive\nfield", "remark"]
    short = ["layer", "block", "output", "params", "MACs", "receptive\nfield", "remark"]
    assert columns_at(None) == every
    seen = [columns_at(width) for width in range(100, 40, -1)]
    assert list(dict.fromkeys(map(tuple, seen))) == [
        tuple(every),
        tuple(short),
        tuple(name for name in short if "field" not in name),
        tuple(short[:5]),
    ]
    console = Console(width=200)
    widths = [Measurement.get(console, console.options, table_at(width)).maximum for width in range(100, 48, -1)]
    assert all(found <= width for found, width in zip(widths, range(100, 48, -1), strict=True))


def test_numbers_are_shortened_to_two_digits_or_more() -> None:
    blocks = {"conv": conv(20, kernel_size=5), "flatten": "flatten", "output": {"type": "linear", "out_features": 1000}}
    table = render_table(list(rows((1, 28, 28), blocks).values()), (1, 28, 28), 50)
    assert list(table.columns[3].cells) == ["", "520", "", "12M"]  # 1000 · (20·24·24 + 1)
    assert list(table.columns[4].cells) == ["", "288k", "", "12M"]


@pytest.mark.parametrize(
    ("spec", "remark"),
    [
        ({"type": "max_pool", "kernel_size": 2}, "drops 1 row, 1 column"),  # of 7
        (conv(1, kernel_size=1, stride=2), ""),  # it skips every other pixel in any case
        (conv(1, kernel_size=3, stride=2, padding=1), ""),
        (conv(1, kernel_size=2, stride=3), ""),
    ],
    ids=str,
)
def test_a_stride_that_does_not_fit_is_a_remark_where_windows_cover_all_else(spec: Any, remark: str) -> None:
    assert rows((1, 7, 7), {"layer": spec})["layer"].remark == remark
