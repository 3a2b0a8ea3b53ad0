"""Freezing: name patterns are matched with layers and parameters."""

import fnmatch
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from cnnlab.blocks.normalization import NORMS
from cnnlab.runtime.errors import Complaints, did_you_mean, listing

SHOWN = 8


def freeze_matching(network: nn.Module, patterns: Sequence[str]) -> None:
    """Freezes what a pattern matches: a parameter by its name, or a layer with all below it.

    A norm without trainable parameters stays in evaluation mode, so that its running statistics are frozen, too.
    """
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if _matches(name, patterns):
            parameter.requires_grad_(False)
    for path, norm in _norms(network):
        own = [*norm.parameters(recurse=False)]
        if not any(parameter.requires_grad for parameter in own) if own else _matches(path, patterns):
            norm.eval()


def check_freeze(patterns: Any, network: nn.Module, key: str, complaints: Complaints) -> tuple[str, ...]:
    """The patterns; complains of anything but a list, of a pattern without a match, and if nothing is left to train."""
    if not isinstance(patterns, list | tuple) or not all(isinstance(pattern, str) for pattern in patterns):
        complaints.add(key, f"expected a list of name patterns such as [conv1, norm*], received {patterns!r}")
        return ()
    names = [name for name, _ in network.named_parameters(remove_duplicate=False)]
    names += [path for path, norm in _norms(network) if not [*norm.parameters(recurse=False)]]
    places = dict.fromkeys(place for name in names for place in _places(name))
    for pattern in patterns:
        if not any(_matches(name, [pattern]) for name in names):
            layers = list(dict.fromkeys(name.split(".")[0] for name in names))
            more = ", …" if len(layers) > SHOWN else ""
            complaints.add(
                key,
                f"{pattern!r} matches no parameter and no layer that has any;{did_you_mean(pattern, places)} "
                f"there are {listing(layers[:SHOWN])}{more}, and all below them",
            )
    if patterns and names and all(_matches(name, patterns) for name, _ in network.named_parameters()):
        complaints.add(key, f"{listing(patterns)} matches every parameter: there is nothing to train")
    return tuple(patterns)


def _norms(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((path, module) for path, module in network.named_modules() if isinstance(module, NORMS))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(place, pattern) for place in _places(name) for pattern in patterns)


def _places(name: str) -> list[str]:
    """`a`, `a.b` and `a.b.weight` for the last: a parameter matches by the names of its layers, too."""
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]
