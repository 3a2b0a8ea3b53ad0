"""The layer table: output shape, parameters, MACs and receptive field of each layer."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass

from rich import box
from rich.table import Table
from torch import nn

from cnnlab.blocks.facts import Facts, Shape, format_shape
from cnnlab.blocks.normalization import NORMS
from cnnlab.blocks.receptive_field import START, Field
from cnnlab.runtime.terminal import fitting


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
    field: Field = None  # what `receptive_field` prints; None is unknown


def make_row(
    path: str,
    block: str,
    depth: int,
    module: nn.Module,
    facts: Facts,
    field: Field,
    nested: Rows[nn.Module] = (),
    note: str = "",
) -> LayerRow:
    """The row of one layer with known facts; `field` is that of its units, `nested` layers have their own rows.

    `note` is a remark about its place in the network.
    """
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
        ", ".join(filter(None, (note, _frozen_note(module, own), facts.remark))),
        frozen,
        field,
    )


def _frozen_note(module: nn.Module, own: list[nn.Parameter]) -> str:
    training = [parameter.requires_grad for parameter in own]
    if not own:  # a norm without parameters still has statistics
        return "frozen" if isinstance(module, NORMS) and not module.training else ""
    return "" if all(training) else "partly frozen" if any(training) else "frozen"


def render_table(rows: Rows[LayerRow], input_shape: Shape, columns: int | None = None) -> Table:
    """The rows for `model.txt`, or for a terminal with so many columns.

    A narrow terminal gets shorter numbers, then no receptive fields, then no remarks.
    """
    variants = ((False, True, True), (True, True, True), (True, False, True), (True, False, False))
    return fitting((_table(rows, input_shape, *variant) for variant in variants), columns)


def _table(rows: Rows[LayerRow], input_shape: Shape, short: bool, fields: bool, remarks: bool) -> Table:
    count = _shortened if short else _exact
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
    total = sum(row.parameters for row in rows)
    remarks = remarks and any(row.remark for row in rows)
    table.add_column("layer", footer="total", no_wrap=True)
    table.add_column("block", no_wrap=True)
    table.add_column("output", justify="right", no_wrap=True)
    table.add_column("params" if short else "parameters", footer=count(total), justify="right", no_wrap=True)
    table.add_column("MACs", footer=count(sum(row.macs for row in rows)), justify="right", no_wrap=True)
    if fields:
        table.add_column("receptive\nfield", justify="right", no_wrap=True)
    if remarks:
        frozen = sum(row.frozen for row in rows)
        table.add_column("remark", footer=f"{count(total - frozen)} train" if frozen else "", no_wrap=True)
    start = [str(START) if len(input_shape) == 3 else ""]
    table.add_row("input", "", format_shape(input_shape), "", "", *(start * fields))
    for row in rows:
        name = "  " * row.depth + (row.path.rpartition(".")[2] if row.depth else row.path)
        counts = [count(number) if number else "" for number in (row.parameters, row.macs)]
        further = [row.receptive_field] * fields + [row.remark] * remarks
        table.add_row(name, row.block, format_shape(row.output_shape), *counts, *further)
    return table


def _exact(number: int) -> str:
    return f"{number:,}"


def _shortened(number: int) -> str:
    """Such as 159k or 9.3M."""
    for unit, factor in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= factor:
            return f"{number / factor:.{0 if number >= 10 * factor else 1}f}{unit}"
    return str(number)
