"""A mapping of layer name → spec becomes a network.

Three passes: `Reader` binds every spec to its class and collects complaints; `_fit` builds each layer on the meta
device, infers arguments from the incoming shape and asks for the layer's facts; `_construct` builds the network with
weights, which do not exist before.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from cnnlab.blocks.conv import Conv
from cnnlab.blocks.facts import Shape, format_shape
from cnnlab.blocks.graph import INPUT
from cnnlab.blocks.initialization import Initializer, default
from cnnlab.blocks.normalization import BatchNorm
from cnnlab.blocks.receptive_field import START, Field
from cnnlab.blocks.sequential import Residual, Sequential
from cnnlab.blocks.timm_networks import timm_network
from cnnlab.blocks.torchvision_networks import torchvision_network
from cnnlab.components import Component, Trust
from cnnlab.network.arithmetic import calculated, texts
from cnnlab.network.freeze import Frozen, check_freeze, freeze_matching, freeze_remark
from cnnlab.network.in_place import check_in_place
from cnnlab.network.order import OWN_INPUT
from cnnlab.network.read import INFERRED, Column, Layer, Reader
from cnnlab.network.shape_inference import measure, one_input
from cnnlab.network.table import LayerRow, make_row
from cnnlab.runtime.errors import Complaints, ConfigError, listing


@dataclass(frozen=True)
class NetworkPlan:
    """A network that is checked but not yet built: `rows` is its layer table, `build` makes the weights."""

    column: Column
    input_shape: Shape
    output_shape: Shape
    rows: list[LayerRow]
    initialize: Initializer
    freeze: Mapping[str, Frozen] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """Builds the network on the CPU; draws its weights from torch's global generator.

        What is frozen in some epochs alone trains, until `freeze_matching` is called for an epoch.
        """
        network = _construct(self.column, self.initialize)
        freeze_matching(network, self.freeze)
        return network

    @property
    def layers(self) -> list[Layer]:
        """Those at the top, in the order in which they run."""
        return self.column.layers

    def named_layers(self) -> Iterator[tuple[str, Layer]]:
        """Every layer by its path in the network, nested ones after their container."""
        return _named_layers(self.column)

    @property
    def output_type(self) -> type[nn.Module]:
        """The class of the last layer, of a sequential that of its last block: the loss has to match it."""
        layer = self.layers[-1]
        while layer.component.factory is Sequential:
            layer = layer.nested["blocks"].layers[-1]
        factory = layer.component.factory
        return factory if isinstance(factory, type) else nn.Module


def build_network(
    input_shape: Shape, blocks: Mapping[str, Any], classes: int | None = None, init: Any = "default"
) -> nn.Module:
    """A network from blocks, for example `build_network((1, 28, 28), {"flatten": "flatten", "output": …}, 10)`.

    `input_shape` is (C, H, W) without the batch. Raises `ConfigError` with every complaint.
    """
    complaints = Complaints()
    plan = plan_network(input_shape, blocks, complaints, classes=classes, init=init)
    complaints.raise_if_any()
    assert plan is not None
    return plan.build()


def plan_network(
    input_shape: Shape,
    blocks: Any,
    complaints: Complaints,
    *,
    classes: int | None = None,
    init: Any = "default",
    freeze: Any = (),
    trust: Trust | None = None,
    key: str = "model",
) -> NetworkPlan | None:
    """Checks a network without building it; None where a complaint was added."""
    before = len(complaints.messages)
    constants = {} if classes is None else {"classes": classes}
    reader = Reader(complaints, constants, trust or Trust())
    initialize = reader.initializer(init, f"{key}.init") or default()
    column = reader.read(blocks, f"{key}.blocks")
    if len(complaints.messages) > before:
        return None
    try:
        with torch.device("meta"), torch.no_grad():
            skeleton, (output_shape,) = _fit(column, input_shape, initialize)
            check_in_place(column)
            frozen = check_freeze(freeze, skeleton, f"{key}.freeze", complaints)
            freeze_matching(skeleton.train(), frozen)
            if len(complaints.messages) > before:
                return None
            rows, _ = _rows(column, START)
            rows = [_with_remark(row, freeze_remark(row.path, skeleton, frozen)) for row in rows]
    except ConfigError as error:
        complaints.add("", str(error))
        return None
    return NetworkPlan(column, input_shape, output_shape, rows, initialize, frozen)


def _fit(column: Column, shape: Shape, initialize: Initializer) -> tuple[nn.Module, list[Shape]]:
    """Builds the layers on the meta device, each for the shapes that reach it. Raises `ConfigError`."""
    modules: dict[str, nn.Module] = {}
    shapes = {INPUT: shape}
    for layer in column.layers:
        with _at(layer.component.key, f" (in repetition {layer.name})" if layer.repeats else ""):
            arriving = [shapes[source] for source in layer.sources]
            modules[layer.name], shapes[layer.name] = _fit_one(layer, arriving, layer.initialize or initialize)
    return column.assemble(modules), column.outputs(shapes)


def _fit_one(layer: Layer, shapes: list[Shape], initialize: Initializer) -> tuple[nn.Module, Shape]:
    component, shape = layer.component, shapes[0]
    if layer.inputs and len(shapes) > 1:
        raise ConfigError(f"{component.key}.from: {component.type} {one_input(len(shapes))}")
    fitted = {parameter: _fit(nested, shape, initialize) for parameter, nested in layer.nested.items()}
    if component.factory is Residual and "projection" not in fitted and fitted["blocks"][1] != [shape]:
        layer.nested["projection"] = _default_projection(component.key, shape, *fitted["blocks"][1])
        fitted["projection"] = _fit(layer.nested["projection"], shape, initialize)
    columns = {parameter: column for parameter, (column, _) in fitted.items()}
    layer.inferred = _infer(component, shape) | _resolved(layer, shape)
    module = _build(layer, columns)
    module.eval()
    # what reaches the block's own operation: of a container, the outputs of its columns
    ends = {parameter: outputs for parameter, (_, outputs) in fitted.items()}
    inputs = [output for parameter in layer.inputs for output in ends.get(parameter, [shape])] or shapes
    nested_macs = sum(_macs(nested) for nested in layer.nested.values())
    layer.facts = facts = measure(module, component.key, shapes, inputs, _joined(layer), nested_macs)
    layer.skeleton = module
    _initialize(module, columns, initialize)  # on the meta device: only to find weights that do not fit
    assert facts.output_shape is not None
    return module, facts.output_shape


def _resolved(layer: Layer, shape: Shape) -> dict[str, Any]:
    """The arguments that depend on the incoming shape. Raises `ConfigError`."""
    resolved = {}
    for argument, value in layer.expressions.items():
        try:
            resolved[argument] = calculated(value, shape)
        except ConfigError as error:
            raise ConfigError(f"{layer.component.key}.{argument}: {error}") from error
    return resolved


def _build(layer: Layer, columns: Mapping[str, nn.Module]) -> nn.Module:
    """Raises `ConfigError`, of an argument that was calculated with its arithmetic."""
    try:
        module = layer.component.build(**layer.inferred, **columns)
    except ConfigError as error:
        for argument, value in layer.expressions.items():
            if str(error).startswith(f"{layer.component.key}.{argument}:"):
                raise ConfigError(f"{error} from {texts(value)}") from error
        raise
    assert isinstance(module, nn.Module)
    return module


def _joined(layer: Layer) -> list[str]:
    """The names of several inputs: of branches, or of the layers that are read."""
    parallel = [nested.layers for nested in layer.nested.values() if nested.parallel]
    return [one.name for layers in parallel for one in layers] if parallel else _names(layer.sources)


def _names(sources: Sequence[str]) -> list[str]:
    return [OWN_INPUT if source == INPUT else source for source in sources]


def _macs(column: Column) -> int:
    own = sum(layer.facts.macs for layer in column.layers if layer.facts)
    return own + sum(_macs(nested) for layer in column.layers for nested in layer.nested.values())


def _infer(component: Component, shape: Shape) -> dict[str, Any]:
    values = {
        "in_channels": shape[0],
        "in_features": shape[-1],
        "num_features": shape[0],
        "num_channels": shape[0],
        "input_size": shape[-1],
        "input_shape": shape,
        "normalized_shape": shape[-1:] if len(shape) == 2 else shape,  # of a sequence, the features of a position
    }
    return {name: values[name] for name in INFERRED if name in component.parameters and name not in component.arguments}


def _default_projection(key: str, shape: Shape, target: Shape) -> Column:
    """A 1×1 convolution with a stride that matches the blocks' size, and a batch norm (arXiv 1512.03385, option B)."""
    fits = len(shape) == len(target) == 3 and all(target)
    strides = tuple(-(-size // wanted) for size, wanted in zip(shape[1:], target[1:], strict=fits)) if fits else ()
    reached = tuple((size - 1) // stride + 1 for size, stride in zip(shape[1:], strides, strict=fits))
    if not fits or reached != target[1:]:
        raise ConfigError(
            f"{key}: its blocks change {format_shape(shape)} to {format_shape(target)}, which no 1×1 "
            f"convolution with a stride does: expected a 'projection' of blocks that gives the same shape"
        )
    conv = {"out_channels": target[0], "kernel_size": 1, "stride": strides, "bias": False}
    return Column(
        [
            Layer("conv", Component(f"{key}.projection.conv", "conv", Conv, conv), sources=(INPUT,)),
            Layer("norm", Component(f"{key}.projection.norm", "batch_norm", BatchNorm), sources=("conv",)),
        ]
    )


@contextmanager
def _at(key: str, where: str) -> Iterator[None]:
    """Adds the layer's key to what a user's own class raises while it is fitted, and `where` to every error."""
    try:
        yield
    except ConfigError as error:
        if not where:
            raise
        raise ConfigError(f"{error}{where}") from error
    except Exception as error:
        complaints = Complaints()
        complaints.add_error(key, error)
        raise ConfigError(f"{complaints.messages[0]}{where}") from error


def _construct(column: Column, initialize: Initializer) -> nn.Module:
    modules: dict[str, nn.Module] = {}
    for layer in column.layers:
        own = layer.initialize or initialize
        columns = {parameter: _construct(nested, own) for parameter, nested in layer.nested.items()}
        module = layer.component.build(**layer.inferred, **columns)
        _initialize(module, columns, own)
        modules[layer.name] = module
    return column.assemble(modules)


def _initialize(module: nn.Module, columns: Mapping[str, nn.Module], initialize: Initializer) -> None:
    """Fills a layer's own weights; its nested layers have theirs already."""
    nested = {inner for column in columns.values() for inner in column.modules()}
    for inner in module.modules():
        if inner not in nested:
            initialize(inner)


def _rows(column: Column, field: Field, prefix: str = "", depth: int = 0) -> tuple[list[LayerRow], list[Field]]:
    """The rows of fitted layers, nested ones under their container, and the receptive fields of the outputs."""
    rows: list[LayerRow] = []
    fields = {INPUT: field}
    redirected = [layer.name for layer in column.redirected()]
    for layer in column.layers:
        assert layer.skeleton is not None
        assert layer.facts is not None
        path = f"{prefix}{layer.name}"
        arriving = [fields[source] for source in layer.sources]
        inner = {
            parameter: _rows(nested, arriving[0], _inner_prefix(layer, path, parameter), depth + 1)
            for parameter, nested in layer.nested.items()
        }
        ends = {parameter: outputs for parameter, (_, outputs) in inner.items()}
        inputs = [output for parameter in layer.inputs for output in ends.get(parameter, arriving[:1])] or arriving
        fields[layer.name] = own = layer.facts.field(*inputs)
        below = [one.skeleton for nested in layer.nested.values() for one in nested.layers if one.skeleton]
        note = f"from {listing(_names(layer.sources))}" if layer.name in redirected else ""
        rows.append(make_row(path, _block_name(layer), depth, layer.skeleton, layer.facts, own, below, note))
        rows.extend(row for nested_rows, _ in inner.values() for row in nested_rows)
    return rows, column.outputs(fields)


def _with_remark(row: LayerRow, remark: str) -> LayerRow:
    """A container's remarks are those of its layers."""
    return replace(row, remark=f"{row.remark}, {remark}".strip(", ")) if remark and row.parameters else row


def _named_layers(column: Column, prefix: str = "") -> Iterator[tuple[str, Layer]]:
    for layer in column.layers:
        path = f"{prefix}{layer.name}"
        yield path, layer
        for parameter, nested in layer.nested.items():
            yield from _named_layers(nested, _inner_prefix(layer, path, parameter))


def _inner_prefix(layer: Layer, path: str, parameter: str) -> str:
    """The prefix of a nested column's layers: a sequential has them as its own children."""
    return f"{path}." if isinstance(layer.skeleton, Sequential) else f"{path}.{parameter}."


def _block_name(layer: Layer) -> str:
    component = layer.component
    by_name = component.factory in (torchvision_network, timm_network)
    return f"{component.type} {component.arguments['name']}" if by_name else component.type
