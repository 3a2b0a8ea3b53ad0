"""A mapping of layer name → spec becomes a network.

Three passes: `Reader` binds every spec to its class and collects complaints; `_fit` builds each layer on the meta
device, infers arguments from the incoming shape and asks for the layer's facts; `_construct` builds the network with
weights, which do not exist before.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from cnnlab.blocks.conv import Conv
from cnnlab.blocks.facts import Shape, format_shape
from cnnlab.blocks.initialization import Initializer, default
from cnnlab.blocks.normalization import BatchNorm
from cnnlab.blocks.receptive_field import START, Field
from cnnlab.blocks.sequential import Residual, Sequential
from cnnlab.blocks.torchvision_networks import torchvision_network
from cnnlab.components import Component, Trust
from cnnlab.network.freeze import Frozen, check_freeze, freeze_matching, freeze_remark
from cnnlab.network.read import INFERRED, Layer, Reader
from cnnlab.network.shape_inference import measure
from cnnlab.network.table import LayerRow, make_row
from cnnlab.runtime.errors import Complaints, ConfigError


@dataclass(frozen=True)
class NetworkPlan:
    """A network that is checked but not yet built: `rows` is its layer table, `build` makes the weights."""

    layers: list[Layer]
    input_shape: Shape
    output_shape: Shape
    rows: list[LayerRow]
    initialize: Initializer
    freeze: Mapping[str, Frozen] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """Builds the network on the CPU; draws its weights from torch's global generator.

        What is frozen in some epochs alone trains, until `freeze_matching` is called for an epoch.
        """
        network = _construct(self.layers, self.initialize)
        freeze_matching(network, self.freeze)
        return network

    def named_layers(self) -> Iterator[tuple[str, Layer]]:
        """Every layer by its path in the network, nested ones after their container."""
        return _named_layers(self.layers)

    @property
    def output_type(self) -> type[nn.Module]:
        """The class of the last layer, of a sequential that of its last block: the loss has to match it."""
        layer = self.layers[-1]
        while layer.component.factory is Sequential:
            layer = layer.nested["blocks"][-1]
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
    layers = reader.read(blocks, f"{key}.blocks")
    if len(complaints.messages) > before:
        return None
    try:
        with torch.device("meta"), torch.no_grad():
            skeleton, output_shape = _fit(layers, input_shape, initialize)
            frozen = check_freeze(freeze, skeleton, f"{key}.freeze", complaints)
            freeze_matching(skeleton.train(), frozen)
            if len(complaints.messages) > before:
                return None
            rows, _ = _rows(layers, START)
            rows = [_with_remark(row, freeze_remark(row.path, skeleton, frozen)) for row in rows]
    except ConfigError as error:
        complaints.add("", str(error))
        return None
    return NetworkPlan(layers, input_shape, output_shape, rows, initialize, frozen)


def _fit(layers: list[Layer], shape: Shape, initialize: Initializer) -> tuple[nn.Sequential, Shape]:
    """Builds the layers on the meta device, each for the shape that reaches it. Raises `ConfigError`."""
    column = nn.Sequential()
    for layer in layers:
        with _at(layer.component.key):
            module, shape = _fit_one(layer, shape, layer.initialize or initialize)
        column.add_module(layer.name, module)
    return column, shape


def _fit_one(layer: Layer, shape: Shape, initialize: Initializer) -> tuple[nn.Module, Shape]:
    component = layer.component
    fitted = {parameter: _fit(nested, shape, initialize) for parameter, nested in layer.nested.items()}
    if component.factory is Residual and "projection" not in fitted and fitted["blocks"][1] != shape:
        layer.nested["projection"] = _default_projection(component.key, shape, fitted["blocks"][1])
        fitted["projection"] = _fit(layer.nested["projection"], shape, initialize)
    columns = {parameter: column for parameter, (column, _) in fitted.items()}
    layer.inferred = _infer(component, shape)
    module = component.build(**layer.inferred, **columns)
    assert isinstance(module, nn.Module)
    module.eval()
    # what reaches the block's own operation: of a container, the outputs of its columns
    inputs = [fitted[parameter][1] if parameter in fitted else shape for parameter in layer.inputs]
    nested_macs = sum(_macs(nested) for nested in layer.nested.values())
    layer.facts = facts = measure(module, component.key, shape, inputs, nested_macs)
    layer.skeleton = module
    _initialize(module, columns, initialize)  # on the meta device: only to find weights that do not fit
    assert facts.output_shape is not None
    return module, facts.output_shape


def _macs(layers: list[Layer]) -> int:
    own = sum(layer.facts.macs for layer in layers if layer.facts)
    return own + sum(_macs(nested) for layer in layers for nested in layer.nested.values())


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


def _default_projection(key: str, shape: Shape, target: Shape) -> list[Layer]:
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
    return [
        Layer("conv", Component(f"{key}.projection.conv", "conv", Conv, conv)),
        Layer("norm", Component(f"{key}.projection.norm", "batch_norm", BatchNorm)),
    ]


@contextmanager
def _at(key: str) -> Iterator[None]:
    """Adds the layer's key to what a user's own class raises while it is fitted."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        complaints = Complaints()
        complaints.add_error(key, error)
        raise ConfigError(complaints.messages[0]) from error


def _construct(layers: list[Layer], initialize: Initializer) -> nn.Sequential:
    column = nn.Sequential()
    for layer in layers:
        own = layer.initialize or initialize
        columns = {parameter: _construct(nested, own) for parameter, nested in layer.nested.items()}
        module = layer.component.build(**layer.inferred, **columns)
        _initialize(module, columns, own)
        column.add_module(layer.name, module)
    return column


def _initialize(module: nn.Module, columns: Mapping[str, nn.Module], initialize: Initializer) -> None:
    """Fills a layer's own weights; its nested layers have theirs already."""
    nested = {inner for column in columns.values() for inner in column.modules()}
    for inner in module.modules():
        if inner not in nested:
            initialize(inner)


def _rows(layers: list[Layer], field: Field, prefix: str = "", depth: int = 0) -> tuple[list[LayerRow], Field]:
    """The rows of fitted layers, nested ones under their container, and the receptive field of the last one's units."""
    rows: list[LayerRow] = []
    for layer in layers:
        assert layer.skeleton is not None
        assert layer.facts is not None
        path = f"{prefix}{layer.name}"
        inner = {
            parameter: _rows(nested, field, _inner_prefix(layer, path, parameter), depth + 1)
            for parameter, nested in layer.nested.items()
        }
        inputs = [inner[parameter][1] if parameter in inner else field for parameter in layer.inputs]
        field = layer.facts.field(*(inputs or [field]))
        skeletons = [below.skeleton for nested in layer.nested.values() for below in nested if below.skeleton]
        rows.append(make_row(path, _block_name(layer), depth, layer.skeleton, layer.facts, field, skeletons))
        rows.extend(row for nested_rows, _ in inner.values() for row in nested_rows)
    return rows, field


def _with_remark(row: LayerRow, remark: str) -> LayerRow:
    """A container's remarks are those of its layers."""
    return replace(row, remark=f"{row.remark}, {remark}".strip(", ")) if remark and row.parameters else row


def _named_layers(layers: list[Layer], prefix: str = "") -> Iterator[tuple[str, Layer]]:
    for layer in layers:
        path = f"{prefix}{layer.name}"
        yield path, layer
        for parameter, nested in layer.nested.items():
            yield from _named_layers(nested, _inner_prefix(layer, path, parameter))


def _inner_prefix(layer: Layer, path: str, parameter: str) -> str:
    """The prefix of a nested column's layers: a sequential has them as its own children."""
    return f"{path}." if isinstance(layer.skeleton, Sequential) else f"{path}.{parameter}."


def _block_name(layer: Layer) -> str:
    component = layer.component
    return f"torchvision {component.arguments['name']}" if component.factory is torchvision_network else component.type
