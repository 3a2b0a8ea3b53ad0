"""Specs become layers: each name looked up, each argument bound, every complaint collected."""

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from cnnlab.blocks import BLOCKS
from cnnlab.blocks.facts import Facts
from cnnlab.blocks.initialization import INITIALIZERS, Initializer
from cnnlab.blocks.normalization import NORMS
from cnnlab.blocks.sequential import Sequential
from cnnlab.components import Component, Factory, Registry, Trust, bind, find_factory, split_spec
from cnnlab.runtime.checks import integer
from cnnlab.runtime.errors import ArgumentError, Complaints, ConfigError, did_you_mean, listing

BLOCK = Registry("block", BLOCKS, nn.Module, ("torch.nn",))
INITIALIZER = Registry("initialization", INITIALIZERS)
INFERRED = (
    "in_channels",
    "in_features",
    "num_features",
    "num_channels",
    "input_size",
    "input_shape",
    "normalized_shape",
)
MOST_REPETITIONS = 1000
RESERVED = ("after", "init")  # keys of a layer that are not arguments of its block


@dataclass
class Layer:
    """One named layer of the plan.

    A container has columns of `nested` layers by the constructor parameter they are for, and runs its own operation on
    their outputs: `inputs` names those parameters in order. A column that is not given passes the container's input on.
    """

    name: str
    component: Component
    initialize: Initializer | None = None
    nested: dict[str, "list[Layer]"] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    # filled when the layer is fitted
    inferred: dict[str, Any] = field(default_factory=dict)
    skeleton: nn.Module | None = None  # on the meta device
    facts: Facts | None = None


class Reader:
    """Reads mappings of layer name → spec; `constants` are words that stand for a number, such as `classes`."""

    def __init__(self, complaints: Complaints, constants: Mapping[str, Any], trust: Trust) -> None:
        self.complaints = complaints
        self.constants = constants
        self.trust = trust

    def read(self, blocks: Any, key: str) -> list[Layer]:
        """The layers in their order, without those that had complaints."""
        if not isinstance(blocks, Mapping):
            self.complaints.add(key, f"expected a mapping of layer name → block, received {blocks!r}")
            return []
        blocks = {str(name): spec for name, spec in blocks.items()}
        if all(spec is None for spec in blocks.values()):
            self.complaints.add(key, "expected at least one block, received none")
        self._check_names(blocks, key)
        return [layer for name in self._ordered(blocks, key) if (layer := self._layer(name, blocks[name], key))]

    def initializer(self, spec: Any, key: str) -> Initializer | None:
        """The initialization of a spec; None without a spec or with a new complaint."""
        if spec is None:
            return None
        component = bind(spec, key, INITIALIZER, self.complaints)
        try:
            return _with_key(component.build(), key) if component else None
        except ConfigError as error:
            self.complaints.add("", str(error))
            return None

    def _check_names(self, blocks: Mapping[str, Any], key: str) -> None:
        taken = nn.Sequential()
        for name in blocks:
            if not name.isidentifier():
                self.complaints.add(
                    f"{key}.{name}",
                    "expected a layer name of letters, digits and underscores, starting with no digit",
                )
            elif hasattr(taken, name):
                self.complaints.add(
                    f"{key}.{name}", f"torch's modules use the name {name!r} themselves: expected another"
                )

    def _ordered(self, blocks: Mapping[str, Any], key: str) -> list[str]:
        """YAML order, each layer followed by those that stand `after` it; a null layer can still be an anchor."""
        followers: dict[str, list[str]] = {name: [] for name in blocks}
        roots = []
        for name, spec in blocks.items():
            anchor = spec.get("after") if isinstance(spec, Mapping) else None
            if anchor is None:
                roots.append(name)
            elif isinstance(anchor, str) and anchor in blocks and anchor != name:
                followers[anchor].append(name)
            else:
                others = [other for other in blocks if other != name]
                self.complaints.add(
                    f"{key}.{name}.after",
                    f"there is no other layer {anchor!r};{did_you_mean(anchor, others)} "
                    f"expected one of {listing(others)}",
                )
                roots.append(name)
        order: list[str] = []
        waiting = roots[::-1]
        while waiting:
            name = waiting.pop()
            order.append(name)
            waiting.extend(reversed(followers[name]))
        circle = [name for name in blocks if name not in order]
        if circle:
            self.complaints.add(
                f"{key}.{circle[0]}.after", f"the layers {listing(circle)} stand after each other in a circle"
            )
        return [name for name in order if blocks[name] is not None]

    def _layer(self, name: str, spec: Any, parent: str) -> Layer | None:
        key = f"{parent}.{name}"
        found = self._found(spec, key)
        if found is None:
            return None
        type_name, arguments, factory = found
        arguments.pop("after", None)
        init = arguments.pop("init", None)
        if init in ("zeros", {"type": "zeros"}) and isinstance(factory, type) and issubclass(factory, NORMS):
            init = {"type": "given", "weight": 0}  # elsewhere, norms keep their ones
        initialize = self.initializer(init, f"{key}.init")
        repeat = self._repeat(arguments.pop("repeat"), key) if factory is Sequential and "repeat" in arguments else None
        modules = module_parameters(factory)
        nested = {
            argument: arguments.pop(argument)
            for argument in list(arguments)
            if argument in modules and isinstance(arguments[argument], Mapping)
        }
        component = bind(
            {"type": type_name, **arguments},
            key,
            BLOCK,
            self.complaints,
            provided=(*INFERRED, *nested),
            constants=self.constants,
            trust=self.trust,
        )
        columns = {argument: self.read(blocks, f"{key}.{argument}") for argument, blocks in nested.items()}
        if component is None:
            return None
        if repeat is not None and "blocks" in columns:
            columns["blocks"] = self._repeated(columns["blocks"], nested["blocks"], repeat, key)
        if not modules:
            self._probe(component)
        return Layer(name, component, initialize, columns, tuple(modules))

    def _found(self, spec: Any, key: str) -> tuple[str, dict[str, Any], Factory] | None:
        """A spec's type, arguments and class; None where a complaint was added."""
        try:
            type_name, arguments = split_spec(spec, key)
            factory = find_factory(type_name, key, BLOCK, self.trust)
        except ConfigError as error:
            self.complaints.add("", str(error))
            return None
        if isinstance(factory, type) and issubclass(factory, LazyModuleMixin):
            self.complaints.add(
                key, f"expected {type_name.replace('Lazy', '')}, received {type_name}: sizes are inferred here anyway"
            )
            return None
        return type_name, arguments, factory

    def _repeated(self, first: list[Layer], blocks: Any, count: int, key: str) -> list[Layer]:
        """The column as often as it is repeated, each time with layers of its own."""
        columns = [first, *(self.read(blocks, f"{key}.blocks") for _ in range(1, count))]
        return [
            Layer(f"r{index}", Component(key, "sequential", Sequential), None, {"blocks": column}, ("blocks",))
            for index, column in enumerate(columns)
        ]

    def _repeat(self, count: Any, key: str) -> int:
        try:
            return integer("repeat", count, 1, MOST_REPETITIONS)
        except ArgumentError as error:
            self.complaints.add_error(key, error)
            return 1

    def _probe(self, component: Component) -> None:
        """Builds one of our own blocks with placeholder sizes, to find values that are illegal for all sizes."""
        if component.factory not in BLOCKS.values():
            return
        size = 1  # a channel count that every count of groups or heads divides
        for name in ("groups", "num_groups", "num_heads"):
            count = component.arguments.get(name, 1)
            size *= count if isinstance(count, int) and count > 0 else 1
        unknown = {name: size for name in INFERRED if name in component.parameters}
        try:
            with torch.device("meta"):
                component.factory(**{**unknown, **component.arguments})
        except ArgumentError as error:
            self.complaints.add_error(component.key, error)
        except Exception:  # what depends on sizes is found when the layer is fitted
            return


def _with_key(initialize: Initializer, key: str) -> Initializer:
    """An initialization's error with the initialization's key."""

    def initialize_with_key(module: nn.Module) -> None:
        try:
            initialize(module)
        except ArgumentError as error:
            raise ConfigError(f"{key}.{error.argument}: {error.message}") from error

    return initialize_with_key


def module_parameters(factory: Factory) -> list[str]:
    """The constructor's parameters that are modules: the network builds them from nested mappings of blocks."""
    try:
        hints = typing.get_type_hints(factory.__init__) if isinstance(factory, type) else {}  # type: ignore[misc]
    except Exception:  # annotations that cannot be evaluated name no modules
        return []
    return [
        name
        for name, hint in hints.items()
        if any(isinstance(part, type) and issubclass(part, nn.Module) for part in (hint, *typing.get_args(hint)))
    ]
