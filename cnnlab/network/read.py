"""Specs become layers: each name looked up, each argument bound, every complaint collected."""

import typing
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from cnnlab.blocks import BLOCKS
from cnnlab.blocks.facts import Facts
from cnnlab.blocks.graph import INPUT, Graph
from cnnlab.blocks.initialization import INITIALIZERS, Initializer
from cnnlab.blocks.join import JOINS
from cnnlab.blocks.normalization import NORMS
from cnnlab.blocks.sequential import Sequential
from cnnlab.components import Component, Factory, Registry, Trust, bind, find_factory, split_spec, type_hints
from cnnlab.network.arithmetic import calculated, find_expressions, waits
from cnnlab.network.order import TAKEN_IN_BRANCHES, check_names, default_sources, in_order, sources_of
from cnnlab.runtime.checks import integer
from cnnlab.runtime.errors import ArgumentError, Complaints, ConfigError

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
Value = TypeVar("Value")


@dataclass
class Layer:
    """One named layer of the plan.

    A container has columns of `nested` layers by the constructor parameter they are for, and runs its own operation on
    their outputs: `inputs` names those parameters in order. A column that is not given passes the container's input on.
    """

    name: str
    component: Component
    initialize: Initializer | None = None
    nested: dict[str, "Column"] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()  # what it reads: names of earlier layers, or INPUT
    expressions: dict[str, Any] = field(default_factory=dict)  # arguments that depend on the incoming shape
    repeats: bool = False  # a repetition after the first
    # filled when the layer is fitted
    inferred: dict[str, Any] = field(default_factory=dict)
    skeleton: nn.Module | None = None  # on the meta device
    facts: Facts | None = None


@dataclass
class Column:
    """Layers in the order in which they run; its output is the last one's, of `parallel` branches every one's."""

    layers: list[Layer]
    parallel: bool = False

    def outputs(self, by_name: Mapping[str, Value]) -> list[Value]:
        """What stands at the column's end, of something that every layer has."""
        values = [by_name[layer.name] for layer in self.layers]
        return values if self.parallel else values[-1:]

    def redirected(self) -> list[Layer]:
        """The layers that read something else than a chain's layers do."""
        usual = [INPUT] * len(self.layers) if self.parallel else default_sources([layer.name for layer in self.layers])
        return [layer for layer, one in zip(self.layers, usual, strict=True) if layer.sources != (one,)]

    def assemble(self, modules: Mapping[str, nn.Module]) -> nn.Module:
        """A chain is an `nn.Sequential`."""
        if self.parallel:
            return nn.ModuleDict(modules)
        if self.redirected():
            return Graph(modules, {layer.name: layer.sources for layer in self.layers})
        return nn.Sequential(OrderedDict(modules))


class Reader:
    """Reads mappings of layer name → spec; `constants` are words that stand for a number, such as `classes`.

    `index` counts the repetitions of the container that is read.
    """

    def __init__(
        self, complaints: Complaints, constants: Mapping[str, int], trust: Trust, index: int | None = None
    ) -> None:
        self.complaints = complaints
        self.constants = constants
        self.trust = trust
        self.known = {**constants, **({} if index is None else {"index": index})}

    def read(self, blocks: Any, key: str) -> Column:
        """The layers in their order, without those that had complaints."""
        if not isinstance(blocks, Mapping):
            self.complaints.add(key, f"expected a mapping of layer name → block, received {blocks!r}")
            return Column([])
        blocks = {str(name): spec for name, spec in blocks.items()}
        if all(spec is None for spec in blocks.values()):
            self.complaints.add(key, "expected at least one block, received none")
        check_names(blocks, key, self.complaints)
        order = in_order(blocks, key, self.complaints)
        sources = sources_of(blocks, order, key, self.complaints)
        for name in order:
            spec = blocks[name]
            if _type_of(spec) in JOINS and (isinstance(spec, str) or spec.get("from") is None):
                self.complaints.add(
                    f"{key}.{name}.from", "it is missing: expected a list of the layers that are joined"
                )
        read = [self._layer(name, blocks[name], key, sources.get(name, ())) for name in order]
        return Column([layer for layer in read if layer])

    def read_branches(self, branches: Any, key: str) -> Column:
        """Blocks that all read the input; `{blocks: …}` stands for a sequential."""
        branches = {str(name): _as_block(spec) for name, spec in branches.items()}
        if all(spec is None for spec in branches.values()):
            self.complaints.add(key, "expected at least one branch, received none")
        check_names(branches, key, self.complaints, TAKEN_IN_BRANCHES)
        for name, spec in branches.items():
            if _type_of(spec) in JOINS:
                self.complaints.add(f"{key}.{name}", f"a branch reads one input: expected no {_type_of(spec)}")
            elif isinstance(spec, Mapping) and spec.get("from") is not None:
                self.complaints.add(f"{key}.{name}.from", "every branch reads the input of its block: expected none")
        read = [self._layer(name, branches[name], key, (INPUT,)) for name in in_order(branches, key, self.complaints)]
        return Column([layer for layer in read if layer], parallel=True)

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

    def _layer(self, name: str, spec: Any, parent: str, sources: tuple[str, ...]) -> Layer | None:
        key = f"{parent}.{name}"
        found = self._found(spec, key)
        if found is None:
            return None
        type_name, arguments, factory = found
        for reserved in ("after", "from"):
            arguments.pop(reserved, None)
        init = arguments.pop("init", None)
        if init in ("zeros", {"type": "zeros"}) and isinstance(factory, type) and issubclass(factory, NORMS):
            init = {"type": "given", "weight": 0}  # elsewhere, norms keep their ones
        initialize = self.initializer(init, f"{key}.init")
        repetitions = self._repetitions(arguments, key) if factory is Sequential else None
        modules = module_parameters(factory)
        nested = {
            argument: arguments.pop(argument)
            for argument in list(arguments)
            if argument in modules and isinstance(arguments[argument], Mapping)
        }
        expressions = self._expressions(arguments, factory, key)
        component = bind(
            {"type": type_name, **arguments},
            key,
            BLOCK,
            self.complaints,
            provided=(*INFERRED, *nested, *expressions),
            constants=self.constants,
            trust=self.trust,
        )
        columns = {
            argument: self._nested(blocks, modules[argument], repetitions, f"{key}.{argument}")
            for argument, blocks in nested.items()
        }
        if component is None:
            return None
        if not modules and not expressions:
            self._probe(component)
        return Layer(name, component, initialize, columns, tuple(modules), sources, expressions)

    def _nested(
        self, blocks: Any, kind: type[nn.Module], repetitions: Sequence[Mapping[str, Any]] | None, key: str
    ) -> Column:
        if kind is nn.ModuleDict:
            return self.read_branches(blocks, key)
        return self.read(blocks, key) if repetitions is None else self._repeated(blocks, repetitions, key)

    def _expressions(self, arguments: dict[str, Any], factory: Factory, key: str) -> dict[str, Any]:
        """Takes arithmetic out of the arguments, as far as it depends on the incoming shape; the rest is calculated."""
        waiting: dict[str, Any] = {}
        hints = type_hints(factory)
        for argument, given in [*arguments.items()]:
            try:
                value = find_expressions(given, hints.get(argument, Any), self.known)
                if not waits(value):
                    arguments[argument] = calculated(value)
                    continue
            except ConfigError as error:
                self.complaints.add(f"{key}.{argument}", str(error))
                value = None
            del arguments[argument]
            waiting[argument] = value
        return waiting

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

    def _repetitions(self, arguments: dict[str, Any], key: str) -> list[Mapping[str, Any]] | None:
        """For each repetition, what is merged over its blocks; None where there is no `repeat`."""
        first = arguments.pop("first", None)
        if first is not None and not isinstance(first, Mapping):
            self.complaints.add(f"{key}.first", f"expected a mapping like that of blocks, received {first!r}")
            first = None
        if arguments.get("repeat") is None:
            if first is not None:
                self.complaints.add(f"{key}.first", "it changes the first repetition: expected 'repeat' beside it")
            arguments.pop("repeat", None)
            return None
        try:
            count = integer("repeat", arguments.pop("repeat"), 1, MOST_REPETITIONS)
        except ArgumentError as error:
            self.complaints.add_error(key, error)
            count = 1
        return [first or {}, *({} for _ in range(1, count))]

    def _repeated(self, blocks: Any, changes: Sequence[Mapping[str, Any]], key: str) -> Column:
        """The blocks as often as they are repeated, each time with layers of its own."""
        layers: list[Layer] = []
        before = len(self.complaints.messages)
        for index, change in enumerate(changes):
            column = Reader(self.complaints, self.constants, self.trust, index).read(merged(blocks, change), key)
            self._rename(before, key, blocks, change, f" (in repetition r{index})" if index else "")
            if len(self.complaints.messages) > before:  # the other repetitions have the same mistakes
                break
            component = Component(key.removesuffix(".blocks"), "sequential", Sequential)
            sources = (f"r{index - 1}" if index else INPUT,)
            layers.append(
                Layer(f"r{index}", component, None, {"blocks": column}, ("blocks",), sources, repeats=index > 0)
            )
        return Column(layers)

    def _rename(self, before: int, key: str, blocks: Any, change: Any, where: str) -> None:
        """Adds `where` to complaints since `before`; what they are about may stand in `first`."""
        messages = self.complaints.messages
        for number in range(before, len(messages)):
            messages[number] += where
            path, _, problem = messages[number].removeprefix(f"{key}.").partition(": ")
            if messages[number].startswith(f"{key}.") and _stands_in(change, blocks, path.split(".")):
                messages[number] = f"{key.removesuffix('blocks')}first.{path}: {problem}"

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


def merged(old: Any, new: Any) -> Any:
    """A mapping over a mapping, also in depth; one of another `type` replaces it."""
    if isinstance(old, str) and isinstance(new, Mapping):
        old = {"type": old}
    if (
        not isinstance(old, Mapping)
        or not isinstance(new, Mapping)
        or new.get("type", old.get("type")) != old.get("type")
    ):
        return new
    return {**old, **{name: merged(old.get(name), value) for name, value in new.items()}}


def _stands_in(change: Any, blocks: Any, path: Sequence[str]) -> bool:
    """Whether what stands at the path comes from the change: a value, or a mapping that the blocks have not."""
    if not path or not isinstance(change, Mapping):
        return not isinstance(change, Mapping) or blocks is None
    below = blocks.get(path[0]) if isinstance(blocks, Mapping) else None
    return path[0] in change and _stands_in(change[path[0]], below, path[1:])


def _type_of(spec: Any) -> Any:
    return spec.get("type") if isinstance(spec, Mapping) else spec


def _as_block(spec: Any) -> Any:
    return {"type": "sequential", **spec} if isinstance(spec, Mapping) and "type" not in spec else spec


def _with_key(initialize: Initializer, key: str) -> Initializer:
    """An initialization's error with the initialization's key."""

    def initialize_with_key(module: nn.Module) -> None:
        try:
            initialize(module)
        except ArgumentError as error:
            raise ConfigError(f"{key}.{error.argument}: {error.message}") from error

    return initialize_with_key


def module_parameters(factory: Factory) -> dict[str, type[nn.Module]]:
    """The constructor's parameters that are modules: the network builds them from nested mappings of blocks."""
    hints = type_hints(factory) if isinstance(factory, type) else {}
    found: dict[str, type[nn.Module]] = {}
    for name, hint in hints.items():
        for part in (hint, *typing.get_args(hint)):
            if isinstance(part, type) and issubclass(part, nn.Module):
                found[name] = part
    return found
