"""The layer table: what each layer gives, what it costs, how far it sees."""

import warnings
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn

from cnnlab.blocks.containers import Residual, Sequence
from cnnlab.network.fit import Shape, dropped, format_shape, window
from cnnlab.network.receptive_field import START, ReceptiveField, receptive_field


@dataclass(frozen=True)
class LayerRow:
    """One layer: `macs` are multiply-accumulates for one picture, bias excluded; containers count nothing."""

    path: str
    block: str
    depth: int
    output_shape: Shape
    parameters: int
    macs: int
    receptive_field: str
    remark: str = ""


def tabulate(skeleton: nn.Sequential, input_shape: Shape, layers: list[tuple[str, str, int]]) -> list[LayerRow]:
    """The rows of a network on the meta device; `layers` are (module path, block's type, depth)."""
    modules = dict(skeleton.named_modules())
    shapes: dict[str, tuple[Shape, Shape]] = {}
    handles = [
        modules[path].register_forward_hook(
            lambda module, inputs, output, path=path: shapes.__setitem__(
                path, (tuple(inputs[0].shape[1:]), tuple(output.shape[1:]))
            )
        )
        for path, _, _ in layers
    ]
    macs = _count_macs(skeleton, torch.empty(2, *input_shape))
    for handle in handles:
        handle.remove()
    fields = _fields(skeleton)
    rows = []
    for path, block, depth in layers:
        module = modules[path]
        container = isinstance(module, Sequence | Residual)
        rows.append(
            LayerRow(
                path,
                block + _window_note(module),
                depth,
                shapes[path][1],
                0 if container else sum(parameter.numel() for parameter in module.parameters()),
                0 if container else macs.get(path, 0),
                str(fields.get(path) or "–"),
                _remark(module, shapes[path][0]),
            )
        )
    return rows


def _count_macs(skeleton: nn.Sequential, x_NCHW: Tensor) -> dict[str, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing it probes for triton
        from torch.utils.flop_counter import FlopCounterMode
    counter = FlopCounterMode(display=False)
    with counter:
        skeleton(x_NCHW)
    name = type(skeleton).__name__
    counts = counter.get_flop_counts()
    return {
        path.removeprefix(f"{name}."): sum(flops.values()) // (2 * x_NCHW.shape[0]) for path, flops in counts.items()
    }


def _fields(module: nn.Module, prefix: str = "", start: ReceptiveField | None = START) -> dict[str, Any]:
    """The receptive field behind each named module."""
    fields: dict[str, Any] = {}
    field = start
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        parts = list(child.named_children()) if isinstance(child, Residual) else []
        for part, column in parts:
            fields.update(_fields(column, f"{path}.{part}.", field))
        if isinstance(child, Sequence):
            fields.update(_fields(child, f"{path}.", field))
        field = receptive_field(child, field)
        fields[path] = field
    return fields


def _window_note(module: nn.Module) -> str:
    if not isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return ""
    kernel, stride, _, _ = window(module)
    note = f" {format_shape(kernel)}"
    if stride == (1, 1):
        return note
    return f"{note} / {stride[0] if stride[0] == stride[1] else format_shape(stride)}"


def _remark(module: nn.Module, shape: Shape) -> str:
    if len(shape) != 3:
        return ""
    lost = [
        f"{count} {name}{'s' if count > 1 else ''}"
        for count, name in zip(dropped(module, shape), ("row", "column"), strict=True)
        if count
    ]
    return f"drops {', '.join(lost)}" if lost else ""


def render_table(rows: Rows[LayerRow], input_shape: Shape) -> Table:
    """The rows for the terminal and for `model.txt`."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
    total = sum(row.parameters for row in rows)
    macs = sum(row.macs for row in rows)
    table.add_column("layer", footer="total", no_wrap=True)
    table.add_column("block", no_wrap=True)
    table.add_column("output", justify="right", no_wrap=True)
    table.add_column("parameters", footer=f"{total:,}", justify="right", no_wrap=True)
    table.add_column("MACs", footer=f"{macs:,}", justify="right", no_wrap=True)
    table.add_column("receptive\nfield", justify="right", no_wrap=True)
    if any(row.remark for row in rows):
        table.add_column("remark")
    table.add_row("input", "", format_shape(input_shape), "", "", str(START) if len(input_shape) == 3 else "")
    for row in rows:
        name = "  " * row.depth + (row.path.rpartition(".")[2] if row.depth else row.path)
        table.add_row(
            name,
            row.block,
            format_shape(row.output_shape),
            f"{row.parameters:,}" if row.parameters else "",
            f"{row.macs:,}" if row.macs else "",
            row.receptive_field,
            *([row.remark] if len(table.columns) == 7 else []),
        )
    return table
