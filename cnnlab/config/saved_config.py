"""A saved config is data: it may come from a stranger. It is read with limits and resolved without reach."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cnnlab.runtime.errors import ConfigError, first_line, listing

LARGEST = 1 << 20
DEEPEST = 32
MOST_EXPANSIONS = 1000
# what a saved config may ask for: its own keys, and the folder of the data
_LEGAL_INTERPOLATION = re.compile(r"(\.*[A-Za-z_][\w.]*|oc\.env:CNNLAB_DATA(,[^${}]*)?)")
_INTERPOLATION = re.compile(r"\$\{\s*([^{}]*)")


def load_saved_config(path: Path) -> DictConfig:
    """Reads a run's `config.yaml`. Raises `ConfigError` for what a config written by cnnlab never holds."""
    if path.stat().st_size > LARGEST:
        raise ConfigError(f"{path}: expected at most {LARGEST:,} bytes, received {path.stat().st_size:,}")
    try:
        text = path.read_text()
        _check_structure(text, path)
        config = OmegaConf.create(text)
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError(
            f"{path}: expected YAML, but {getattr(error, 'problem', None) or first_line(error)}"
        ) from error
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{path}: expected a mapping, received {type(config).__name__}")
    content = OmegaConf.to_container(config, resolve=False)
    assert isinstance(content, dict)
    forbidden = sorted({"hydra", "defaults"} & set(map(str, content)))
    if forbidden:
        raise ConfigError(f"{path}: expected a composed config, received one with {listing(forbidden)}")
    _check_interpolations(content, path)
    return config


def _check_structure(text: str, path: Path) -> None:
    """Reads events only, one by one: what would explode is refused before it is built."""
    depth = 0
    mapping = False
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"{path}: expected no YAML aliases in a saved config")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ConfigError(f"{path}: expected YAML of at most {DEEPEST} levels")
        if depth == 1:
            mapping = mapping or isinstance(event, yaml.MappingStartEvent)
    if not mapping:
        raise ConfigError(f"{path}: expected a mapping, received something else")


def _check_interpolations(content: Mapping[Any, Any], path: Path) -> None:
    """Only the config's own keys and the folder of the data, and not so that they multiply."""
    leaves = dict(_leaves(content))
    for text in leaves.values():
        for inner in _INTERPOLATION.findall(text):
            if not _LEGAL_INTERPOLATION.fullmatch(inner.strip()):
                raise ConfigError(
                    f"{path}: {text!r} is not resolved: expected only keys of the config itself and "
                    f"${{oc.env:CNNLAB_DATA}} in a saved config"
                )
    expansions: dict[tuple[str, ...], int] = {}
    for place in leaves:
        if _expansions(place, leaves, expansions) > MOST_EXPANSIONS:
            raise ConfigError(f"{path}: {'.'.join(place)} refers to keys that refer to keys without end")


def _leaves(node: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """The places of strings, and those strings; a key is a string like another."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield (*place, str(key), "(key)"), str(key)
            yield from _leaves(value, (*place, str(key)))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _leaves(value, (*place, str(index)))
    elif isinstance(node, str):
        yield place, node


def _expansions(place: tuple[str, ...], leaves: dict[tuple[str, ...], str], known: dict[tuple[str, ...], int]) -> int:
    """How many interpolations resolving the string at `place` takes; a circle takes more than any limit."""
    if place not in known:
        known[place] = MOST_EXPANSIONS + 1  # while it is counted: who comes by again goes in a circle
        count = 0
        for inner in _INTERPOLATION.findall(leaves[place]):
            target = _target(inner.strip(), place)
            inside = [leaf for leaf in leaves if leaf[: len(target)] == target and leaf[-1] != "(key)"]
            count += 1 + sum(_expansions(leaf, leaves, known) for leaf in inside)
        known[place] = count
    return known[place]


def _target(inner: str, place: tuple[str, ...]) -> tuple[str, ...]:
    """The place that `a.b`, `.sibling` or `..of_the_parent` means at `place`; none for the environment."""
    if inner.startswith("oc.env:"):
        return ("(environment)",)
    name = inner.lstrip(".")
    dots = len(inner) - len(name)
    return (*(place[: len(place) - dots] if dots else ()), *name.split("."))


def resolved(config: DictConfig) -> dict[str, Any]:
    """Plain values, interpolations resolved."""
    content = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def trusted_names(trust: Any) -> tuple[str, ...]:
    """The classes that a command trusts. Raises `ConfigError` for anything but a list of dotted names."""
    if not isinstance(trust, list | tuple) or not all(isinstance(name, str) and "." in name for name in trust):
        raise ConfigError(f"trust: expected a list of dotted names such as [my.package.Block], received {trust!r}")
    return tuple(trust)
