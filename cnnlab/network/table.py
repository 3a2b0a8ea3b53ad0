"""The layer table: output shape, parameters, MACs and receptive field of each layer."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass

from rich import box
from rich.table import Table
from torch import nn

from cnnlab.blocks.facts import Facts, Shape, format_shape
from cnnlab.blocks.normalization import NORMS
from cnnlab.blocks.receptive_field import START, Field


@dataclass(frozen=True)
class LayerRow:
    """One layer: `macs` are multiply-accumulates for one image, bias excluded; containers count nothing."""

    path: str
    block: str
    depth: int
    output_shape: Shape
    parameters: int
    macs: int
    receptive_field: str
    remark: str = ""
    frozen: int = 0  # of the parameters, those that do not train


def make_row(
    path: str,
    block: str,
    depth: int,
    module: nn.Module,
    facts: Facts,
    field: Field,
    nested: Rows[nn.Module] = (),
) -> LayerRow:
    """The row of one layer with known facts; `field` is that of its units, `nested` layers have their own rows."""
    assert facts.output_shape is not None
    inner = {id(parameter) for layer in nested for parameter in layer.parameters()}
    own = [parameter for parameter in module.parameters() if id(parameter) not in inner]
    frozen = sum(parameter.numel() for parameter in own if not parameter.requires_grad)
    return LayerRow(
        path,
        f"{block} {facts.label}".rstrip(),
        depth,
        facts.output_shape,
        sum(parameter.numel() for parameter in own),
        facts.macs,
        str(field or "–"),
        ", ".join(filter(None, (_frozen_note(module, own), facts.remark))),
        frozen,
    )


def _frozen_note(module: nn.Module, own: list[nn.Parameter]) -> str:
    training = [parameter.requires_grad for parameter in own]
    if not own:  # a norm without parameters still has statistics
        return "frozen" if isinstance(module, NORMS) and not module.training else ""
    return "" if all(training) else "partly frozen" if any(training) else "frozen"


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
        frozen = sum(row.frozen for row in rows)
        table.add_column("remark", footer=f"{total - frozen:,} train" if frozen else "")
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
