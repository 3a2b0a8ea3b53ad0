"""Freezing: name patterns are matched with layers and parameters, for the whole run or for some of its epochs."""

import fnmatch
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from cnnlab.blocks.normalization import NORMS
from cnnlab.components import build_settings
from cnnlab.runtime.checks import integer
from cnnlab.runtime.errors import ArgumentError, Complaints, did_you_mean, listing

SHOWN = 8
BACKBONE = "backbone"  # a pattern that stands for all layers but the last with parameters


@dataclass(frozen=True)
class Frozen:
    """When a pattern of `model.freeze` holds: in the whole run, or in some epochs of it. Raises `ArgumentError`."""

    after: int = 0  # epochs that it trains before
    until: int | None = None  # epochs of the run after which it trains; null: none

    def __post_init__(self) -> None:
        integer("after", self.after, 0)
        if self.until is not None:
            integer("until", self.until, 1)
            if self.until <= self.after:
                raise ArgumentError("until", f"expected more than after={self.after}, received {self.until}")

    def holds(self, epoch: int | None) -> bool:
        """True in that epoch, counted from 0; for None, if it holds in every epoch."""
        if epoch is None:
            return not self.after and self.until is None
        return self.after <= epoch and (self.until is None or epoch < self.until)

    @property
    def remark(self) -> str:
        """For the layer table, which counts epochs from 1 as the console does."""
        if self.until is None:
            return f"frozen after epoch {self.after}" if self.after else "frozen"
        first = self.after + 1
        return f"frozen in epoch {first}" if first == self.until else f"frozen in epochs {first}–{self.until}"


def freeze_matching(network: nn.Module, freeze: Mapping[str, Frozen], epoch: int | None = None) -> bool:
    """Freezes what a pattern matches in that epoch: a parameter by its name, or a layer with all below it.

    What a pattern matches in other epochs trains again. Without an epoch, what is frozen in every one counts. A norm
    without trainable parameters is in evaluation mode, so that its running statistics are frozen, too. Returns whether
    anything changed.
    """
    now = [pattern for pattern, frozen in freeze.items() if frozen.holds(epoch)]
    named = [*network.named_parameters(remove_duplicate=False)]
    before = [parameter.requires_grad for _, parameter in named], [norm.training for _, norm in _norms(network)]
    still = {id(parameter) for name, parameter in named if _matches(name, now)}  # a tied one by any of its names
    for name, parameter in named:
        if _matches(name, freeze):
            parameter.requires_grad_(id(parameter) not in still)
    for path, norm in _norms(network):
        own = dict(norm.named_parameters(recurse=False))
        if not any(parameter.requires_grad for parameter in own.values()) if own else _matches(path, now):
            norm.eval()
        elif any(_matches(name, freeze) for name in (path, *(f"{path}.{name}" for name in own))):
            norm.train()
    return before != (
        [parameter.requires_grad for _, parameter in named],
        [norm.training for _, norm in _norms(network)],
    )


def freeze_remark(path: str, network: nn.Module, freeze: Mapping[str, Frozen]) -> str:
    """When parameters of the layer are frozen for some epochs, in words; empty where none are."""
    passing = {pattern: frozen for pattern, frozen in freeze.items() if not frozen.holds(None)}
    if not passing:
        return ""
    names = [f"{path}.{name}" for name, _ in network.get_submodule(path).named_parameters()]
    found = {
        f"{'' if all(_matches(name, [pattern]) for name in names) else 'partly '}{frozen.remark}": None
        for pattern, frozen in passing.items()
        if any(_matches(name, [pattern]) for name in names)
    }
    return ", ".join(found)


def check_freeze(given: Any, network: nn.Module, key: str, complaints: Complaints) -> dict[str, Frozen]:
    """The patterns and when they hold, by default in the whole run; `backbone` is all but the last layer.

    Complains of a pattern without a match, of other values, and of an epoch in which nothing is left to train.
    """
    if isinstance(given, list | tuple) and all(isinstance(pattern, str) for pattern in given):
        given = dict.fromkeys(given)
    if not isinstance(given, Mapping):
        complaints.add(
            key,
            f"expected a list of name patterns such as [conv1, norm*], or a mapping of them such as "
            f"{{conv1: {{until: 3}}}}, received {given!r}",
        )
        return {}
    freeze = {str(pattern): _check_epochs(value, f"{key}.{pattern}", complaints) for pattern, value in given.items()}
    if BACKBONE in freeze and not hasattr(network, BACKBONE):
        when = freeze.pop(BACKBONE)
        freeze = {**dict.fromkeys(_backbone(network), when), **freeze}
        if not freeze:
            complaints.add(key, f"{BACKBONE} stands for the layers before the last, and there is one layer alone")
    names = [name for name, _ in network.named_parameters(remove_duplicate=False)]
    names += [path for path, norm in _norms(network) if not [*norm.parameters(recurse=False)]]
    places = dict.fromkeys(place for name in names for place in _places(name))
    for pattern in freeze:
        if not any(_matches(name, [pattern]) for name in names):
            layers = list(dict.fromkeys(name.split(".")[0] for name in names))
            more = ", …" if len(layers) > SHOWN else ""
            complaints.add(
                key,
                f"{pattern!r} matches no parameter and no layer that has any;{did_you_mean(pattern, places)} "
                f"there are {listing(layers[:SHOWN])}{more}, and all below them",
            )
    if freeze and names:
        _check_something_trains(freeze, [name for name, _ in network.named_parameters()], key, complaints)
    return freeze


def _backbone(network: nn.Module) -> list[str]:
    """What names all parameters but those of the last layer: the largest layers without it, and single parameters."""
    last = [path for path, module in network.named_modules() if [*module.parameters(recurse=False)]][-1:]
    names: list[str] = []
    for path, module in network.named_modules():
        if last and path not in last and (not path or f"{last[0]}.".startswith(f"{path}.")):  # on the way to it
            before = f"{path}." if path else ""
            own = [f"{before}{name}" for name, _ in module.named_parameters(recurse=False)]
            children = [(f"{before}{name}", child) for name, child in module.named_children()]
            parts = [name for name, child in children if not f"{last[0]}.".startswith(f"{name}.") and _holds(child)]
            names += [*own, *parts]
    return names


def _holds(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in _norms(module))


def _check_epochs(given: Any, key: str, complaints: Complaints) -> Frozen:
    """A pattern's value: null, or a mapping with `after`, `until` or both."""
    if given is None:
        return Frozen()
    if isinstance(given, Mapping) and given:
        return build_settings(Frozen, given, key, complaints) or Frozen()
    complaints.add(key, f"expected null, {{until: EPOCHS}} or {{after: EPOCHS}}, or both in one, received {given!r}")
    return Frozen()


def _check_something_trains(freeze: Mapping[str, Frozen], names: list[str], key: str, complaints: Complaints) -> None:
    changes = {0, *(frozen.after for frozen in freeze.values()), *(frozen.until or 0 for frozen in freeze.values())}
    for epoch in sorted(changes):
        now = [pattern for pattern, frozen in freeze.items() if frozen.holds(epoch)]
        if all(_matches(name, now) for name in names):
            when = f" in epoch {epoch + 1}" if len(changes) > 1 else ""
            complaints.add(key, f"{listing(now)} matches every parameter{when}: there is nothing to train")
            return


def _norms(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((path, module) for path, module in network.named_modules() if isinstance(module, NORMS))


def _matches(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatch.fnmatchcase(place, pattern) for place in _places(name) for pattern in patterns)


def _places(name: str) -> list[str]:
    """`a`, `a.b` and `a.b.weight` for the last: a parameter matches by the names of its layers, too."""
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]
