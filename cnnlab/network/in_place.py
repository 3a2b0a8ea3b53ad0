"""A layer that works in place must be the only one that reads its input: torch would give others changed numbers."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from cnnlab.blocks.dropout import DropPath
from cnnlab.blocks.graph import INPUT
from cnnlab.blocks.sequence import FirstToken, ImageToSequence
from cnnlab.blocks.sequential import Sequential
from cnnlab.network.read import Column, Layer
from cnnlab.runtime.errors import ConfigError

# their output may be their input, or a view of it
PASSING_ON = (nn.Identity, nn.Flatten, nn.Unflatten, _DropoutNd, DropPath, ImageToSequence, FirstToken)


class Effect(NamedTuple):
    """What layers do with their input: who writes to it, and whether it is their output unchanged."""

    writer: Layer | None
    passed_on: bool


def check_in_place(column: Column) -> Effect:
    """Raises `ConfigError` where a fitted layer writes to what another one reads, too."""
    effects = {layer.name: _effect_of(layer) for layer in column.layers}
    origin = {INPUT: INPUT}  # of each output, the layer that made it
    written: list[Layer] = []
    for layer in column.layers:
        effect = effects[layer.name]
        origin[layer.name] = origin[layer.sources[0]] if effect.passed_on else layer.name
        if effect.writer:
            _check_alone(layer, effect.writer, column, origin)
            written += [effect.writer] if origin[layer.sources[0]] == INPUT else []
    return Effect(written[0] if written else None, origin[column.layers[-1].name] == INPUT)


def _effect_of(layer: Layer) -> Effect:
    if not layer.nested:
        in_place = bool(getattr(layer.skeleton, "inplace", False))
        return Effect(layer if in_place else None, isinstance(layer.skeleton, PASSING_ON) and not in_place)
    effects = [check_in_place(column) for column in layer.nested.values()]
    writer = next((effect.writer for effect in effects if effect.writer), None)
    if writer and len(layer.inputs) > 1:
        raise _refused(writer, f"{layer.name!r} reads its input twice")
    return Effect(writer, isinstance(layer.skeleton, Sequential) and effects[0].passed_on)


def _check_alone(layer: Layer, writer: Layer, column: Column, origin: Mapping[str, str]) -> None:
    before = {one.name: one.sources[0] for one in column.layers}
    source = layer.sources[0]
    made_by = origin[source]
    on_the_way = {layer.name}
    while source != made_by:  # layers that passed it on
        on_the_way.add(source)
        source = before[source]
    for one in column.layers:
        if one.name not in on_the_way and any(origin.get(read) == made_by for read in one.sources):
            what = "the same input" if made_by == INPUT else f"the output of {made_by!r}"
            raise _refused(writer, f"{one.name!r} reads {what}, too")


def _refused(writer: Layer, why: str) -> ConfigError:
    return ConfigError(f"{writer.component.key}.inplace: it would change what others see, as {why}: expected false")
