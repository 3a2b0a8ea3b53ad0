"""A mapping of layer name → spec becomes a network.

Three passes: `Reader` binds every spec to its class and collects complaints; `_fit` builds each layer on the meta
device, fills in what follows from the incoming shape, and checks that it fits; `_construct` builds the network
anew, for real. No weights exist before the last.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from cnnlab.blocks.conv import Conv
from cnnlab.blocks.initialization import Initializer, default
from cnnlab.blocks.normalization import BatchNorm
from cnnlab.blocks.sequential import Residual, Sequential
from cnnlab.blocks.torchvision_networks import torchvision_network
from cnnlab.components import Component, Trust
from cnnlab.network.freeze import check_freeze, freeze_matching
from cnnlab.network.read import INFERRED, Layer, Reader
from cnnlab.network.receptive_field import START, ReceptiveField, receptive_field
from cnnlab.network.shape_inference import Fit, Shape, check_fit, check_image, format_shape, measure
from cnnlab.network.table import LayerRow, make_row
from cnnlab.runtime.errors import Complaints, ConfigError


@dataclass(frozen=True)
class NetworkPlan:
    """A network that was checked and not yet built: `rows` is its layer table, `build` makes the weights."""

    layers: list[Layer]
    input_shape: Shape
    output_shape: Shape
    rows: list[LayerRow]
    initialize: Initializer
    freeze: tuple[str, ...] = ()

    def build(self) -> nn.Sequential:
        """Builds the network on the CPU; draws its weights from torch's global generator."""
        network = _construct(self.layers, self.initialize)
        freeze_matching(network, self.freeze)
        return network

    def named_layers(self) -> Iterator[tuple[str, Layer]]:
        """Every layer by its path in the network, nested ones behind their container."""
        return _named_layers(self.layers)

    @property
    def output_type(self) -> type[nn.Module]:
        """The class of the last layer, that of a sequence being its last block's: what the loss has to go with."""
        layer = self.layers[-1]
        while layer.component.factory is Sequential:
            layer = layer.parts["blocks"][-1]
        factory = layer.component.factory
        return factory if isinstance(factory, type) else nn.Module


def build_network(
    input_shape: Shape, blocks: Mapping[str, Any], classes: int | None = None, init: Any = "default"
) -> nn.Sequential:
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
            rows = _rows(layers)
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
    parts: dict[str, nn.Module] = {}
    part_shapes: dict[str, Shape] = {}
    for parameter, layers in layer.parts.items():
        parts[parameter], part_shapes[parameter] = _fit(layers, shape, initialize)
    if component.factory is Residual:
        if "projection" not in parts and part_shapes["blocks"] != shape:
            layer.parts["projection"] = _default_projection(component.key, shape, part_shapes["blocks"])
            parts["projection"], part_shapes["projection"] = _fit(layer.parts["projection"], shape, initialize)
        skip = part_shapes.get("projection", shape)
        if skip != part_shapes["blocks"]:
            raise ConfigError(
                f"{component.key}: the blocks give {format_shape(part_shapes['blocks'])} and the projection "
                f"{format_shape(skip)} from an input of {format_shape(shape)}: expected one shape, to add them"
            )
    check_image(component.factory, component.key, shape)
    layer.inferred = _infer(component, shape)
    module = component.build(**layer.inferred, **parts)
    assert isinstance(module, nn.Module)
    module.eval()
    check_fit(module, component.key, shape)
    _initialize(module, parts, initialize)  # on the meta device: only to hear of weights that do not fit
    layer.skeleton = module
    if isinstance(module, Sequential | Residual):
        layer.fit = Fit(shape, part_shapes["blocks"], 0)  # its parts count their own MACs
    else:
        layer.fit = measure(module, component.key, shape)
        nested = sum(_macs(layers) for layers in layer.parts.values())
        layer.fit = replace(layer.fit, macs=layer.fit.macs - nested)
    return module, layer.fit.output_shape


def _macs(layers: list[Layer]) -> int:
    return sum(
        (layer.fit.macs if layer.fit else 0) + sum(_macs(nested) for nested in layer.parts.values()) for layer in layers
    )


def _infer(component: Component, shape: Shape) -> dict[str, Any]:
    values = {
        "in_channels": shape[0],
        "in_features": shape[-1],
        "num_features": shape[0],
        "num_channels": shape[0],
        "input_size": shape[-1],
        "input_shape": shape,
        "normalized_shape": shape,
    }
    return {name: values[name] for name in INFERRED if name in component.parameters and name not in component.arguments}


def _default_projection(key: str, shape: Shape, target: Shape) -> list[Layer]:
    """A 1×1 convolution whose stride gives the blocks' size, and a batch norm (arXiv 1512.03385, option B)."""
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
    """Whatever a user's own class raises while it is fitted is told with the layer's key."""
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
        parts = {parameter: _construct(nested, own) for parameter, nested in layer.parts.items()}
        module = layer.component.build(**layer.inferred, **parts)
        _initialize(module, parts, own)
        column.add_module(layer.name, module)
    return column


def _initialize(module: nn.Module, parts: Mapping[str, nn.Module], initialize: Initializer) -> None:
    """Fills a layer's own weights; its nested layers have theirs already."""
    nested = {inner for part in parts.values() for inner in part.modules()}
    for inner in module.modules():
        if inner not in nested:
            initialize(inner)


def _rows(
    layers: list[Layer], prefix: str = "", depth: int = 0, field: ReceptiveField | None = START
) -> list[LayerRow]:
    """The rows of fitted layers, nested ones under their container."""
    rows: list[LayerRow] = []
    for layer in layers:
        assert layer.skeleton is not None
        assert layer.fit is not None
        path, before = f"{prefix}{layer.name}", field
        field = receptive_field(layer.skeleton, before)
        parts = [nested.skeleton for layers in layer.parts.values() for nested in layers if nested.skeleton]
        rows.append(make_row(path, _block_name(layer), depth, layer.skeleton, layer.fit, field, parts))
        for parameter, nested_layers in layer.parts.items():
            rows.extend(_rows(nested_layers, _inner_prefix(layer, path, parameter), depth + 1, before))
    return rows


def _named_layers(layers: list[Layer], prefix: str = "") -> Iterator[tuple[str, Layer]]:
    for layer in layers:
        path = f"{prefix}{layer.name}"
        yield path, layer
        for parameter, nested_layers in layer.parts.items():
            yield from _named_layers(nested_layers, _inner_prefix(layer, path, parameter))


def _inner_prefix(layer: Layer, path: str, parameter: str) -> str:
    """What stands before the names of a container's layers: a sequence holds them as its own."""
    return f"{path}." if isinstance(layer.skeleton, Sequential) else f"{path}.{parameter}."


def _block_name(layer: Layer) -> str:
    component = layer.component
    return f"torchvision {component.arguments['name']}" if component.factory is torchvision_network else component.type
