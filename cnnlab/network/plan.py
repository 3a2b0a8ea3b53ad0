"""A mapping of layer name → spec becomes a network.

Three passes: `_read` binds every spec to its class and collects complaints; `_fit` builds each layer on the meta
device, fills in what follows from the incoming shape, and checks that it fits; `_construct` builds the network
anew, for real. No weights exist before the last.
"""

import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from cnnlab.blocks import BLOCKS
from cnnlab.blocks.containers import Residual, Sequence
from cnnlab.blocks.conv import Conv
from cnnlab.blocks.initialization import INITIALIZERS, Initializer, default
from cnnlab.blocks.normalization import BatchNorm
from cnnlab.components import Component, Kind, Trust, bind
from cnnlab.network.fit import Fit, Shape, check_fit, format_shape, measure
from cnnlab.network.receptive_field import START, ReceptiveField, receptive_field
from cnnlab.network.table import LayerRow, make_row
from cnnlab.runtime.errors import ArgumentError, Complaints, ConfigError, did_you_mean, listing

BLOCK = Kind("block", BLOCKS, nn.Module, ("torch.nn",))
INITIALIZER = Kind("initialization", INITIALIZERS)
INFERRED = (
    "in_channels",
    "in_features",
    "num_features",
    "num_channels",
    "input_size",
    "input_shape",
    "normalized_shape",
)
RESERVED = ("after", "init")  # keys of a layer that are not arguments of its block
PROBE = 5040  # stands for a channel count that is not known yet; divisible by 1 to 10


@dataclass
class Layer:
    """One named layer of the plan. `parts` holds nested layers by the constructor parameter they are for."""

    name: str
    component: Component
    initialize: Initializer | None = None
    parts: dict[str, "list[Layer]"] = field(default_factory=dict)
    inferred: dict[str, Any] = field(default_factory=dict)
    skeleton: nn.Module | None = None  # on the meta device
    fit: Fit | None = None


@dataclass(frozen=True)
class NetworkPlan:
    """A network that was checked and not yet built: `rows` is its layer table, `build` makes the weights."""

    layers: list[Layer]
    input_shape: Shape
    output_shape: Shape
    rows: list[LayerRow]
    initialize: Initializer

    def build(self) -> nn.Sequential:
        """Builds the network on the CPU; draws its weights from torch's global generator."""
        return _construct(self.layers, self.initialize)

    @property
    def output_type(self) -> type[nn.Module]:
        """The class of the last layer that is not a container: what the loss has to go with."""
        layer = self.layers[-1]
        while layer.parts.get("body"):
            layer = layer.parts["body"][-1]
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
    trust: Trust | None = None,
    key: str = "model",
) -> NetworkPlan | None:
    """Checks a network without building it; None where a complaint was added."""
    before = len(complaints.messages)
    constants = {} if classes is None else {"classes": classes}
    reader = _Reader(complaints, constants, trust or Trust())
    initialize = reader.initializer(init, f"{key}.init") or default()
    layers = reader.read(blocks, f"{key}.blocks")
    if len(complaints.messages) > before:
        return None
    try:
        with torch.device("meta"), torch.no_grad():
            _, output_shape = _fit(layers, input_shape)
            rows = _rows(layers)
    except ConfigError as error:
        complaints.add("", str(error))
        return None
    return NetworkPlan(layers, input_shape, output_shape, rows, initialize)


class _Reader:
    """Specs to layers; every complaint is collected."""

    def __init__(self, complaints: Complaints, constants: Mapping[str, Any], trust: Trust) -> None:
        self.complaints = complaints
        self.constants = constants
        self.trust = trust

    def read(self, blocks: Any, key: str) -> list[Layer]:
        if not isinstance(blocks, Mapping):
            self.complaints.add(key, f"expected a mapping of layer name → block, received {blocks!r}")
            return []
        layers = [layer for name in self._ordered(blocks, key) if (layer := self._layer(name, blocks[name], key))]
        if not any(spec is not None for spec in blocks.values()):
            self.complaints.add(key, "expected at least one block, received none; try model=cnn")
        return layers

    def initializer(self, spec: Any, key: str) -> Initializer | None:
        if spec is None:
            return None
        component = bind(spec, key, INITIALIZER, self.complaints)
        try:
            return component.build() if component else None
        except ConfigError as error:
            self.complaints.add("", str(error))
            return None

    def _ordered(self, blocks: Mapping[str, Any], key: str) -> list[str]:
        """YAML order, then `after`; a layer that is null has no place in the network but can be an anchor."""
        names = [str(name) for name in blocks]
        for name in names:
            if not name.isidentifier():
                self.complaints.add(
                    f"{key}.{name}",
                    "expected a layer name of letters, digits and underscores, starting with no digit",
                )
        order = list(names)
        last_behind: dict[str, str] = {}
        for name in names:
            spec = blocks[name]
            anchor = spec.get("after") if isinstance(spec, Mapping) else None
            if anchor is None:
                continue
            if anchor not in names or anchor == name:
                self.complaints.add(
                    f"{key}.{name}.after",
                    f"there is no other layer {anchor!r};{did_you_mean(anchor, names)} "
                    f"expected one of {listing(other for other in names if other != name)}",
                )
                continue
            order.remove(name)
            order.insert(order.index(last_behind.get(anchor, str(anchor))) + 1, name)
            last_behind[anchor] = name
        return [name for name in order if blocks[name] is not None]

    def _layer(self, name: str, spec: Any, parent: str) -> Layer | None:
        key = f"{parent}.{name}"
        reserved: dict[str, Any] = {}
        if isinstance(spec, Mapping):
            reserved = {option: spec[option] for option in RESERVED if option in spec}
            spec = {argument: value for argument, value in spec.items() if argument not in RESERVED}
            spec = self._with_repeat(spec, key)
        nested, spec = _split_nested(spec)
        component = bind(
            spec,
            key,
            BLOCK,
            self.complaints,
            provided=(*INFERRED, "body", *nested),
            constants=self.constants,
            trust=self.trust,
        )
        layer = None
        if component:
            layer = Layer(name, component, self.initializer(reserved.get("init"), f"{key}.init"))
            self._probe(component)
        for argument, blocks in nested.items():
            parameter = "body" if argument == "blocks" else argument
            if component and parameter not in _module_parameters(component):
                self.complaints.add(f"{key}.{argument}", f"{component.type} takes no blocks of its own")
                continue
            layers = self.read(blocks, f"{key}.{argument}")
            if layer:
                layer.parts[parameter] = layers
        if component and "body" in _module_parameters(component) and "blocks" not in nested:
            self.complaints.add(f"{key}.blocks", f"{component.type} needs blocks of its own, and has none")
        return layer

    def _with_repeat(self, spec: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        """`{type: sequence, repeat: 2, blocks: …}` as a sequence of two sequences named r0 and r1."""
        if spec.get("type") != "sequence" or "repeat" not in spec:
            return spec
        count = spec["repeat"]
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            self.complaints.add(f"{key}.repeat", f"expected a whole number ≥ 1, received {count!r}")
            count = 1
        inner = {argument: value for argument, value in spec.items() if argument != "repeat"}
        return {"type": "sequence", "blocks": {f"r{index}": inner for index in range(count)}}

    def _probe(self, component: Component) -> None:
        """Builds one of our own blocks with made-up sizes, to find each value that no size would make legal."""
        if component.factory not in BLOCKS.values() or _module_parameters(component):
            return
        unknown = {name: PROBE for name in INFERRED if name in component.parameters}
        try:
            with torch.device("meta"):
                component.factory(**{**unknown, **component.arguments})
        except ArgumentError as error:
            self.complaints.add_error(component.key, error)
        except Exception:  # what depends on sizes is found when the layer is fitted
            return


def _split_nested(spec: Any) -> tuple[dict[str, Any], Any]:
    """Nested mappings of blocks (`blocks`, and any other mapping but `type`'s siblings), and the rest."""
    if not isinstance(spec, Mapping):
        return {}, spec
    nested = {str(name): value for name, value in spec.items() if name == "blocks" or isinstance(value, Mapping)}
    return nested, {name: value for name, value in spec.items() if name not in nested}


def _module_parameters(component: Component) -> list[str]:
    """The constructor's parameters that are modules: the network builds them from nested blocks."""
    factory = component.factory
    try:
        hints = typing.get_type_hints(factory.__init__) if isinstance(factory, type) else {}  # type: ignore[misc]
    except Exception:  # annotations that cannot be evaluated name no modules
        return []
    return [
        name
        for name, hint in hints.items()
        if any(isinstance(part, type) and issubclass(part, nn.Module) for part in (hint, *typing.get_args(hint)))
    ]


def _fit(layers: list[Layer], shape: Shape) -> tuple[nn.Sequential, Shape]:
    """Builds the layers on the meta device, each for the shape that reaches it. Raises `ConfigError`."""
    column = nn.Sequential()
    for layer in layers:
        with _at(layer.component.key):
            module, shape = _fit_one(layer, shape)
        column.add_module(layer.name, module)
    return column, shape


def _fit_one(layer: Layer, shape: Shape) -> tuple[nn.Module, Shape]:
    component = layer.component
    parts: dict[str, nn.Module] = {}
    part_shapes: dict[str, Shape] = {}
    for parameter, layers in layer.parts.items():
        parts[parameter], part_shapes[parameter] = _fit(layers, shape)
    if component.factory is Residual:
        if "projection" not in parts and part_shapes["body"] != shape:
            layer.parts["projection"] = _default_projection(component.key, shape, part_shapes["body"])
            parts["projection"], part_shapes["projection"] = _fit(layer.parts["projection"], shape)
        skip = part_shapes.get("projection", shape)
        if skip != part_shapes["body"]:
            raise ConfigError(
                f"{component.key}: the body gives {format_shape(part_shapes['body'])} and the projection "
                f"{format_shape(skip)} from an input of {format_shape(shape)}: expected one shape, to add them"
            )
    layer.inferred = _infer(component, shape)
    module = component.build(**layer.inferred, **parts)
    assert isinstance(module, nn.Module)
    module.eval()
    check_fit(module, component.key, shape)
    layer.skeleton = module
    if isinstance(module, Sequence | Residual):
        layer.fit = Fit(shape, part_shapes["body"], 0)  # its parts count their own MACs
    else:
        layer.fit = measure(module, component.key, shape)
    return module, layer.fit.output_shape


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
    """A 1×1 convolution with the body's stride and a batch norm, as in arXiv 1512.03385 (option B)."""
    fits = len(shape) == len(target) == 3 and all(target)
    strides = tuple(-(-size // wanted) for size, wanted in zip(shape[1:], target[1:], strict=fits)) if fits else ()
    reached = tuple((size - 1) // stride + 1 for size, stride in zip(shape[1:], strides, strict=fits))
    if not fits or reached != target[1:]:
        raise ConfigError(
            f"{key}: the body changes {format_shape(shape)} to {format_shape(target)}, which no 1×1 "
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
        if not parts:
            module.apply(own)
        column.add_module(layer.name, module)
    return column


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
        rows.append(make_row(path, layer.component.type, depth, layer.skeleton, layer.fit, field))
        for parameter, nested in layer.parts.items():
            inner = path if isinstance(layer.skeleton, Sequence) else f"{path}.{parameter}"
            rows.extend(_rows(nested, f"{inner}.", depth + 1, before))
    return rows
