"""A saved config is data, perhaps from a stranger: read within limits, resolved only within itself."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cnnlab.runtime.errors import ConfigError, first_line, listing
from cnnlab.runtime.files import read_regular

LARGEST = 1 << 20
DEEPEST = 32
MOST_EXPANSIONS = 1000
EXPECTED = {  # for the keys that YAML leaves to the user with ???
    "run": "expected a run's directory, as in run=runs/digits/…",
    "data.type": "expected a data set, as in data=mnist",
    "data.root": "expected the folder of your images, as in data.root=my_images, or for data=arrays their file",
}
# what a saved config may refer to: its own keys, and the folder of the data
_LEGAL_INTERPOLATION = re.compile(r"(\.*[A-Za-z_][\w.]*|oc\.env:CNNLAB_DATA(,[^${}]*)?)")
_INTERPOLATION = re.compile(r"\$\{\s*([^{}]*)")


def find_config(run: Path, key: str) -> Path:
    """The `config.yaml` of a run directory, which the config names at `key`. Raises `ConfigError`."""
    path = run / "config.yaml"
    if not os.path.isfile(path):  # False for a name that is too long, where Path.is_file raises
        raise ConfigError(
            f"{key}: expected a run's directory with a config.yaml, received {str(run)!r}"
            + ("" if os.path.exists(run) else f"; {run.absolute()} does not exist")
        )
    return path


def load_saved_config(path: Path) -> DictConfig:
    """Reads a run's `config.yaml`. Raises `ConfigError` for what a config written by cnnlab never holds."""
    config = _load(path, yaml.MappingStartEvent, "a mapping")
    assert isinstance(config, DictConfig)
    content = OmegaConf.to_container(config, resolve=False)
    assert isinstance(content, dict)
    forbidden = sorted({"hydra", "defaults"} & set(map(str, content)))
    if forbidden:
        raise ConfigError(f"{path}: expected a composed config, received one with {listing(forbidden)}")
    _check_interpolations(content, path)
    return config


def load_mapping(path: Path) -> dict[str, Any]:
    """The content of any YAML file whose top is a mapping, within the limits, as plain text. Raises `ConfigError`."""
    try:
        content = yaml.safe_load(_read(path, yaml.MappingStartEvent, "a mapping"))
    except (yaml.YAMLError, ValueError) as error:
        raise _no_yaml(path, error) from error
    return {str(key): value for key, value in content.items()}


def load_saved_overrides(path: Path) -> tuple[str, ...]:
    """Reads a run's `overrides.yaml`; empty where there is none. Raises `ConfigError`."""
    if not path.is_file():
        return ()
    try:
        overrides = yaml.safe_load(_read(path, yaml.SequenceStartEvent, "a list"))
    except (yaml.YAMLError, ValueError) as error:
        raise _no_yaml(path, error) from error
    return tuple(map(str, overrides))  # text, never resolved


def _load(path: Path, kind: type[yaml.Event], noun: str) -> DictConfig | ListConfig:
    """Parses YAML within the limits, its top a mapping or a list."""
    text = _read(path, kind, noun)
    try:
        return OmegaConf.create(text)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise _no_yaml(path, error) from error


def _read(path: Path, kind: type[yaml.Event], noun: str) -> str:
    """The text of YAML whose size, depth and aliases were checked."""
    try:
        text = read_regular(path, LARGEST).decode()
        _check_structure(text, path, kind, noun)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise _no_yaml(path, error) from error
    return text


def _no_yaml(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{path}: expected YAML, but {getattr(error, 'problem', None) or first_line(error)}")


def _check_structure(text: str, path: Path, kind: type[yaml.Event], noun: str) -> None:
    """Reads events only, one by one: what would explode is refused before it is built."""
    depth = 0
    top: yaml.Event | None = None
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"{path}: expected no YAML aliases in a saved config")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ConfigError(f"{path}: expected YAML of at most {DEEPEST} levels")
        if depth == 1:
            top = top or event
    if not isinstance(top, kind):
        raise ConfigError(f"{path}: expected {noun}, received something else")


def _check_interpolations(content: Mapping[Any, Any], path: Path) -> None:
    """Only the config's own keys and the folder of the data, and within a bound on their number."""
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
    """The strings with their places; keys are among them."""
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
    """How many interpolations resolving the string at `place` takes; a cycle exceeds any limit."""
    if place not in known:
        known[place] = MOST_EXPANSIONS + 1  # while it is counted: reached again, it is a cycle
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
    """Plain values, interpolations resolved. Raises `ConfigError` for a value that is missing or cannot be resolved."""
    unresolved = OmegaConf.to_container(config, resolve=False)
    missing = sorted(".".join(place) for place, text in _leaves(unresolved) if text == "???")
    if missing:
        expected = [f"{key}: {EXPECTED.get(key, 'expected a value')}, received none" for key in missing]
        raise ConfigError("\n  ".join(expected))
    try:
        content = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or error.key}: {first_line(error)}") from error
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def trusted_names(trust: Any) -> tuple[str, ...]:
    """The classes that a command trusts. Raises `ConfigError` for anything but a list of dotted names."""
    if not isinstance(trust, list | tuple) or not all(isinstance(name, str) and "." in name for name in trust):
        raise ConfigError(f"trust: expected a list of dotted names such as [my.package.Block], received {trust!r}")
    return tuple(trust)
