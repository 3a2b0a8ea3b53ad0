"""A spec from the config becomes a class and its arguments, with every complaint collected.

A spec is a name (`relu`) or a mapping with `type` and arguments (`{type: conv, out_channels: 20}`). A name
without a dot is looked up in its registry; `torch.nn.Hardswish` is taken from the registry's own torch
namespaces; any other dotted path is the user's own class. Nothing here is ever called before it was found to be
of the right class.
"""

import functools
import importlib
import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from torch import nn

from cnnlab.runtime.errors import Complaints, ConfigError, did_you_mean, first_line, listing

Factory = Callable[..., Any]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Registry:
    """What one group of the config may name: its table, and which torch classes go by their dotted names."""

    noun: str
    table: Mapping[str, Factory]
    base: type | None = None  # None: only the table's own names are taken
    namespaces: tuple[str, ...] = ()

    def name_of(self, factory: Factory) -> str:
        """The table's name of a factory, or its own."""
        names = [name for name, known in self.table.items() if known is factory]
        return names[0] if names else factory.__name__


@dataclass(frozen=True)
class Trust:
    """Which of the user's own classes may be imported.

    A command line and the YAML it composes are trusted like code (`everything`); a saved config is data: only
    the dotted names that this command repeats are imported.
    """

    everything: bool = True
    names: tuple[str, ...] = ()
    again: Callable[[list[str]], str] = str  # the command that trusts these names, too

    def check(self, key: str, name: str) -> None:
        if not self.everything and name not in self.names:
            raise ConfigError(
                f"{key}: the saved config names the class {name!r}, which is not part of cnnlab; "
                f"if you know its code, repeat it: {self.again([*self.names, name])}"
            )


@dataclass
class Component:
    """A factory and the arguments that the config gave it; `key` is where in the config it stands."""

    key: str
    type: str
    factory: Factory
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        return parameters_of(self.factory)

    def build(self, **provided: Any) -> Any:
        """Calls the factory. Raises `ConfigError` with the component's key for any value it does not take."""
        try:
            return self.factory(**{**self.arguments, **provided})
        except (TypeError, ValueError, ArithmeticError, LookupError, NotImplementedError) as error:
            complaints = Complaints()
            complaints.add_error(self.key, error)
            raise ConfigError(complaints.messages[0]) from error


def split_spec(spec: Any, key: str) -> tuple[str, dict[str, Any]]:
    """A spec's type and its arguments. Raises `ConfigError` where it is neither a name nor has a `type`."""
    if isinstance(spec, str) and spec:
        return spec, {}
    if isinstance(spec, Mapping):
        arguments = {str(name): value for name, value in spec.items()}
        name = arguments.pop("type", None)
        if isinstance(name, str) and name:
            return name, arguments
        raise ConfigError(f"{key}: expected a mapping with a 'type', received {shorten(dict(spec))}")
    raise ConfigError(f"{key}: expected a name or a mapping with a 'type', received {spec!r}")


def find_factory(name: str, key: str, registry: Registry, trust: Trust) -> Factory:
    """The class or function that `name` stands for. Raises `ConfigError` with the nearest legal name."""
    if name in registry.table:
        return registry.table[name]
    if "." not in name or registry.base is None:
        dotted = f", or a dotted name such as {[*registry.namespaces, 'my.package'][0]}.Name" if registry.base else ""
        raise ConfigError(
            f"{key}: there is no {registry.noun} {name!r};{did_you_mean(name, registry.table)} "
            f"expected one of {listing(sorted(registry.table))}{dotted}"
        )
    module_name, _, attribute = name.rpartition(".")
    if not all(part.isidentifier() for part in name.split(".")):
        example = [*registry.namespaces, "my.package"][0]
        raise ConfigError(f"{key}: expected a dotted name such as {example}.Name, received {name!r}")
    if module_name not in registry.namespaces:
        trust.check(key, name)
    factory = _import(module_name, attribute, name, key)
    if not (isinstance(factory, type) and issubclass(factory, registry.base)):
        raise ConfigError(
            f"{key}: {name} is no {registry.noun}: expected a subclass of "
            f"{registry.base.__module__}.{registry.base.__qualname__}"
        )
    if inspect.isabstract(factory):
        raise ConfigError(f"{key}: {name} is abstract: expected a {registry.noun} that can be built")
    return factory


def _import(module_name: str, attribute: str, name: str, key: str) -> Any:
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(f"{key}: cannot import {name!r}: {type(error).__name__}: {first_line(error)}") from error
    if not hasattr(module, attribute):
        public = [option for option in dir(module) if not option.startswith("_")]
        raise ConfigError(
            f"{key}: module {module_name!r} has no {attribute!r};{did_you_mean(attribute, public)}".rstrip(";")
        )
    return getattr(module, attribute)


def bind(
    spec: Any,
    key: str,
    registry: Registry,
    complaints: Complaints,
    *,
    provided: Collection[str] = (),
    withheld: Collection[str] = (),
    constants: Mapping[str, Any] | None = None,
    trust: Trust | None = None,
) -> Component | None:
    """Binds a spec to the signature of what it names; adds every complaint and returns None where there are any.

    `provided` names the parameters that the caller fills later where the config does not give them, `withheld` those
    that the config may not give. `constants` are words that stand for a number, such as `classes`.
    """
    try:
        name, arguments = split_spec(spec, key)
        factory = find_factory(name, key, registry, trust or Trust())
    except ConfigError as error:
        complaints.add("", str(error))
        return None
    before = len(complaints.messages)
    bound = bind_arguments(
        factory, arguments, key, name, complaints, provided=provided, withheld=withheld, constants=constants
    )
    if len(complaints.messages) > before:
        return None
    return Component(key, name, factory, bound)


def bind_arguments(
    factory: Factory,
    arguments: Mapping[str, Any],
    key: str,
    name: str,
    complaints: Complaints,
    *,
    provided: Collection[str] = (),
    withheld: Collection[str] = (),
    constants: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The arguments as the factory takes them, constants put in; complains of unknown, missing and ill-typed."""
    parameters = parameters_of(factory)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if getattr(factory, "__init__", None) is nn.Module.__init__:
        takes_any = False  # a module without a constructor of its own inherits one that takes nothing
    named = [
        parameter
        for parameter in parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    legal = [parameter.name for parameter in named if parameter.name not in withheld]
    hints = type_hints(factory)
    bound: dict[str, Any] = {}
    for argument, given in arguments.items():
        place = f"{key}.{argument}" if key else argument
        if argument not in legal and not takes_any:
            options = [option for option in legal if option not in HIDDEN]
            takes = f"it takes {listing(options)}" if options else "it takes none"
            complaints.add(place, f"{name} has no argument {argument!r};{did_you_mean(argument, legal)} {takes}")
            continue
        value = _substitute(given, constants or {})
        problem = type_problem(value, hints.get(argument, Any))
        if problem:
            complaints.add(place, f"expected {problem}, received {given!r}{_constant_hint(given, constants)}")
            continue
        bound[argument] = value
    for parameter in named:
        required = parameter.default is parameter.empty
        if required and parameter.name not in arguments and parameter.name not in (*provided, *withheld):
            place = f"{key}.{parameter.name}" if key else parameter.name
            complaints.add(place, f"{name} needs it, and it is missing")
    return bound


def attempt(check: Callable[[], Result], complaints: Complaints) -> Result | None:
    """What `check` returns, or None with the `ConfigError` that it raised among the complaints."""
    try:
        return check()
    except ConfigError as error:
        complaints.add("", str(error))
        return None


def build_component(spec: Any, key: str, registry: Registry, complaints: Complaints, trust: Trust | None = None) -> Any:
    """What a spec names, built with its arguments alone; None with complaints."""
    component = bind(spec, key, registry, complaints, trust=trust)
    return attempt(component.build, complaints) if component else None


def build_settings(
    factory: Callable[..., Result], given: Mapping[str, Any], key: str, complaints: Complaints
) -> Result | None:
    """A dataclass of settings from a section of the config, or None with complaints."""
    before = len(complaints.messages)
    bound = bind_arguments(factory, given, key, key, complaints)
    if len(complaints.messages) > before:
        return None
    component = Component(key, key, factory, bound)
    return attempt(lambda: cast(Result, component.build()), complaints)


HIDDEN = ("device", "dtype")
PLAIN = (bool, int, float, str, type(None))


def _substitute(value: Any, constants: Mapping[str, Any]) -> Any:
    """Constants in, lists to tuples (torch compares and unpacks sizes as tuples)."""
    if isinstance(value, str):
        return constants.get(value, value)
    if isinstance(value, list | tuple):
        return tuple(_substitute(item, constants) for item in value)
    return value


def _constant_hint(value: Any, constants: Mapping[str, Any] | None) -> str:
    hint = did_you_mean(value, constants or {}) if isinstance(value, str) else ""
    return f";{hint}" if hint else ""


@functools.cache
def parameters_of(factory: Factory) -> Mapping[str, inspect.Parameter]:
    """The parameters of a factory's signature, by name."""
    return inspect.signature(factory).parameters


@functools.cache
def type_hints(factory: Factory) -> Mapping[str, Any]:
    """The annotations of a factory's parameters, as far as they can be evaluated."""
    target = factory.__init__ if isinstance(factory, type) else factory  # type: ignore[misc]
    try:
        return typing.get_type_hints(target)
    except Exception:  # third-party annotations that cannot be evaluated check nothing
        return {}


def type_problem(value: Any, hint: Any) -> str | None:
    """What was expected, where `value` clearly is not of the annotated type; None where it is, or is unknowable.

    An int does for a float, a bool for neither; a number must be finite.
    """
    if any(isinstance(item, float) and not math.isfinite(item) for item in _leaves(value)):
        return "a finite number"
    return None if _conforms(value, hint) else _describe(hint)


def _leaves(value: Any) -> list[Any]:
    return [leaf for item in value for leaf in _leaves(item)] if isinstance(value, list | tuple) else [value]


_PLAIN: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "a string"),
    bool: ((bool,), "true or false"),
    type(None): ((type(None),), "null"),
    None: ((type(None),), "null"),
}


def _conforms(value: Any, hint: Any) -> bool:
    if hint in _PLAIN:
        legal, _ = _PLAIN[hint]
        return isinstance(value, legal) and (hint is bool or not isinstance(value, bool))
    origin = typing.get_origin(hint)
    parts = typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_conforms(value, part) for part in parts)
    if origin is typing.Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin is tuple:
        return isinstance(value, tuple) and _items_conform(value, parts)
    if origin in (list, Sequence):
        return isinstance(value, tuple | list) and all(_conforms(item, parts[0]) for item in value)
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        return isinstance(value, Mapping)
    if isinstance(hint, type) and hint.__module__.startswith("torch"):
        return not isinstance(value, (list, tuple, *PLAIN) if issubclass(hint, nn.Module) else PLAIN)
    return True


def _items_conform(value: tuple[Any, ...], parts: tuple[Any, ...]) -> bool:
    if len(parts) == 2 and parts[1] is Ellipsis:
        return all(_conforms(item, parts[0]) for item in value)
    return len(value) == len(parts) and all(_conforms(item, part) for item, part in zip(value, parts, strict=True))


def _describe(hint: Any) -> str:
    if hint in _PLAIN:
        return _PLAIN[hint][1]
    origin = typing.get_origin(hint)
    parts = typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(
            dict.fromkeys(_describe(part) for part in parts if getattr(part, "__name__", "") != "Tensor")
        )
    if origin is typing.Literal:
        return f"one of {listing(parts)}"
    if origin is tuple:
        return f"a list of {len(parts)}" if Ellipsis not in parts else "a list"
    if origin in (list, Sequence):
        return f"a list (each item {_describe(parts[0])})"
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        return "a mapping"
    if hint is nn.ModuleDict:
        return "a mapping of branch name → block"
    if isinstance(hint, type) and hint.__name__ in ("Module", "Sequential"):
        return "a mapping of layer name → block"
    return getattr(hint, "__name__", str(hint))


def shorten(value: Any, length: int = 80) -> str:
    """`repr` of a value, cut where it is long."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"
