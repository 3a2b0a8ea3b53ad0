"""`model.svg`: the boxes of a network's layers; and its layers for TensorBoard's Graphs."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from cnnlab.blocks.facts import format_shape
from cnnlab.blocks.join import Branches
from cnnlab.blocks.sequential import Residual, Sequential
from cnnlab.engine.records import LayerNode
from cnnlab.network import LayerRow, NetworkPlan
from cnnlab.network.read import Column, Layer
from cnnlab.visualization.diagram import INPUT, Box, network_svg

Rows = Mapping[int, LayerRow]  # by the layer's id


def diagram(network: NetworkPlan) -> str:
    """A network as an SVG."""
    rows = {id(layer): row for (_, layer), row in zip(network.named_layers(), network.rows, strict=True)}
    return network_svg(format_shape(network.input_shape), _boxes(network.column, rows))


def layer_nodes(network: NetworkPlan) -> tuple[LayerNode, ...]:
    """Every layer, repetitions one by one, with the layers that it reads; containers are parts of a path."""
    nodes = [LayerNode(INPUT, "", (), network.input_shape, 0)]
    rows = {id(layer): row for (_, layer), row in zip(network.named_layers(), network.rows, strict=True)}
    _add_nodes(network.column, rows, "", (INPUT,), nodes)
    return tuple(nodes)


def _add_nodes(
    column: Column, rows: Rows, prefix: str, arriving: tuple[str, ...], nodes: list[LayerNode]
) -> tuple[str, ...]:
    """Appends a column's nodes; returns the paths of those that its output comes from."""
    ends: dict[str, tuple[str, ...]] = {"": arriving}
    for layer in column.layers:
        row, path = rows[id(layer)], f"{prefix}{layer.name}"
        sources = tuple(end for source in layer.sources for end in ends[source])
        if not layer.nested:
            nodes.append(LayerNode(path, row.block, sources, row.output_shape, row.parameters))
            ends[layer.name] = (path,)
            continue
        inside: list[str] = []
        for parameter in layer.inputs:
            below = layer.nested.get(parameter)
            scope = f"{path}/" if len(layer.nested) == 1 else f"{path}/{parameter}/"
            inside += _add_nodes(below, rows, scope, sources, nodes) if below else sources
        if layer.component.factory is not Sequential:
            operation = "add" if layer.component.factory is Residual else row.block.rpartition(" ")[2]
            nodes.append(LayerNode(f"{path}/({operation})", row.block, tuple(inside), row.output_shape, row.parameters))
            inside = [f"{path}/({operation})"]
        ends[layer.name] = tuple(inside)
    return tuple(end for one in column.outputs(ends) for end in one)


def _boxes(column: Column, rows: Rows, prefix: str = ".") -> list[Box]:
    return [_box(layer, rows, prefix) for layer in column.layers]


def _box(layer: Layer, rows: Rows, prefix: str) -> Box:
    row = rows[id(layer)]
    factory = layer.component.factory
    counts = f", {row.parameters:,} parameters, {row.macs:,} MACs" if row.parameters else ""
    box = Box(
        key=f"{prefix}{layer.name}",
        name=layer.name,
        block="" if factory is Sequential else layer.component.type if layer.nested else row.block,
        shape=format_shape(row.output_shape),
        sources=tuple(f"{prefix}{source}" if source else INPUT for source in layer.sources),
        style="weights" if row.parameters else "join" if len(layer.sources) > 1 else "plain",
        detail=f"{row.path}: {row.block} {format_shape(row.output_shape)}{counts}",
    )
    if factory is Sequential:
        column = layer.nested["blocks"]
        inside = _boxes(column, rows)
        repeats = any(one.repeats for one in column.layers)
        return _repeated(box, inside) if repeats else replace(box, inside=tuple(inside))
    return replace(box, inside=_with_operation(layer, rows)) if layer.nested else box


def _with_operation(layer: Layer, rows: Rows) -> tuple[Box, ...]:
    """The boxes in a container's columns, and the operation that it runs on their outputs."""
    boxes: list[Box] = []
    ends: list[str] = []
    for parameter in layer.inputs:
        if parameter not in layer.nested:
            ends.append(INPUT)
            continue
        column = layer.nested[parameter]
        below = _boxes(column, rows, f".{parameter}.")
        boxes += below
        ends += [box.key for box in (below if column.parallel else below[-1:])]
    factory = layer.component.factory
    row = rows[id(layer)]
    name = "add" if factory is Residual else layer.component.type
    if factory is Branches:
        name = row.block.rpartition(" ")[2]
    operation = Box(
        "", name, name, format_shape(row.output_shape), tuple(ends), style="join", detail=f"{row.path}: {name}"
    )
    return (*boxes, operation)


def _repeated(box: Box, repetitions: Sequence[Box]) -> Box:
    """A container of repetitions; those that differ only in sizes are drawn once."""
    groups = [[*group] for _, group in itertools.groupby(repetitions, _form)]
    if len(groups) == 1:
        together = _together(groups[0])
        return replace(box, name=f"{box.name} ×{len(repetitions)}", inside=together.inside)
    inside: list[Box] = []
    for group in groups:
        first, last = group[0].name, group[-1].name
        name = first if first == last else f"{first}…{last} ×{len(group)}"
        source = inside[-1].key if inside else INPUT
        inside.append(replace(_together(group), key=f".{name}", name=name, sources=(source,)))
    return replace(box, inside=tuple(inside))


def _form(box: Box) -> tuple[object, ...]:
    """What equal repetitions have in common."""
    return box.block, box.style, tuple((one.name, one.sources, *_form(one)) for one in box.inside)


def _together(group: Sequence[Box]) -> Box:
    """One box for several of one form, with the range of their shapes."""
    first, last = group[0], group[-1]
    shape = _range(first.shape, last.shape)
    inside = tuple(_together(boxes) for boxes in zip(*(box.inside for box in group), strict=True))
    return replace(first, shape=shape, inside=inside)


def _range(first: str, last: str) -> str:
    """`48…64×13×13` where the channels alone differ."""
    channels, _, sides = first.partition("×")
    if first == last:
        return first
    return f"{channels}…{last}" if last.partition("×")[2] == sides else f"{first}…{last}"
