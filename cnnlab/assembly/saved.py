"""A saved config is data: it may come from a stranger. It is read with limits and resolved without reach."""

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from cnnlab.runtime.errors import ConfigError, first_line, listing

LARGEST = 1 << 20
# what a saved config may ask for: its own keys, and the folder of the data
_LEGAL_INTERPOLATION = re.compile(r"(\.*[A-Za-z_][\w.]*|oc\.env:CNNLAB_DATA(,[^${}]*)?)")
_INTERPOLATION = re.compile(r"\$\{\s*([^{}]*)")


def load_saved_config(path: Path) -> DictConfig:
    """Reads a run's `config.yaml`. Raises `ConfigError` for what a config written by cnnlab never holds."""
    if path.stat().st_size > LARGEST:
        raise ConfigError(f"{path}: expected at most {LARGEST:,} bytes, received {path.stat().st_size:,}")
    try:
        text = path.read_text()
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ConfigError(f"{path}: expected no YAML aliases in a saved config")
        content = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: expected YAML, received {first_line(error)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping, received {type(content).__name__}")
    forbidden = sorted({"hydra", "defaults"} & set(map(str, content)))
    if forbidden:
        raise ConfigError(f"{path}: expected a composed config, received one with {listing(forbidden)}")
    _check_interpolations(content, path)
    config = OmegaConf.create(content)
    assert isinstance(config, DictConfig)
    return config


def _check_interpolations(node: Any, path: Path) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            _check_interpolations(key, path)
            _check_interpolations(value, path)
    elif isinstance(node, list):
        for value in node:
            _check_interpolations(value, path)
    elif isinstance(node, str):
        for inner in _INTERPOLATION.findall(node):
            if not _LEGAL_INTERPOLATION.fullmatch(inner.strip()):
                raise ConfigError(
                    f"{path}: {node!r} is not resolved: expected only keys of the config itself and "
                    f"${{oc.env:CNNLAB_DATA}} in a saved config"
                )


def resolved(config: DictConfig) -> dict[str, Any]:
    """Plain values, interpolations resolved."""
    content = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}
