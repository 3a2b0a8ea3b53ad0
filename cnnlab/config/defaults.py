"""Every key that can be set, with its default, for `--cfg job`: what YAML leaves out stands in signatures."""

import inspect
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cnnlab.components import HIDDEN, Factory, Registry, Trust, find_factory, split_spec
from cnnlab.config.check_data import AUGMENTATION, SOURCE
from cnnlab.config.check_model import LOSS
from cnnlab.config.check_reporting import OBSERVER
from cnnlab.config.check_training import OPTIMIZER, PROVIDED_TO_SCHEDULES, SCHEDULE
from cnnlab.data.settings import DataSettings
from cnnlab.engine.execution import Execution
from cnnlab.engine.settings import TrainerSettings
from cnnlab.network.read import BLOCK, INFERRED
from cnnlab.runtime.errors import ConfigError

WITHOUT = (*HIDDEN, *INFERRED, *PROVIDED_TO_SCHEDULES)
NESTED = ("blocks", "projection", "branches")  # arguments of a block that are blocks
MODEL: dict[str, Any] = {
    "init": "default",  # of the weights: a name or a mapping with a type; a layer may have its own `init`
    "init_from": None,  # starting weights: a run's directory or a .safetensors file, or a mapping
    "freeze": [],  # patterns of names that do not train; or a mapping, such as {conv*: {until: 3}} for three epochs
}


def with_defaults(config: DictConfig) -> DictConfig:
    """The config with every default that a signature has; interpolations stay unresolved.

    A section that cannot be understood stays as it is: it is shown, not checked.
    """
    content: Any = OmegaConf.to_container(config, resolve=False)
    sections = {key: value for key, value in content.items() if isinstance(value, Mapping)}
    if "data" in sections:
        data = _filled(sections["data"], SOURCE)
        data = {**data, **defaults_of(DataSettings, data)}
        content["data"] = {**data, "augment": _all_filled(data["augment"], AUGMENTATION)}
    if "model" in sections:
        content["model"] = {**MODEL, **sections["model"], "blocks": _blocks(sections["model"].get("blocks"))}
    if "trainer" in sections:
        given = sections["trainer"]
        execution = given.get("execution") or {}
        filled = {**given, **defaults_of(TrainerSettings, given)}
        content["trainer"] = {**filled, "execution": {**execution, **defaults_of(Execution, execution)}}
    for key, registry in {"loss": LOSS, "optimizer": OPTIMIZER, "schedule": SCHEDULE}.items():
        content[key] = _filled(content.get(key), registry)
    content["observers"] = _all_filled(content.get("observers"), OBSERVER)
    return OmegaConf.create(content)


def _all_filled(specs: Any, registry: Registry) -> Any:
    return {name: _filled(spec, registry) for name, spec in specs.items()} if isinstance(specs, Mapping) else specs


def _blocks(blocks: Any) -> Any:
    """Blocks with their arguments, nested ones among them."""
    if not isinstance(blocks, Mapping):
        return blocks
    return {name: _block(spec) for name, spec in blocks.items()}


def _block(spec: Any) -> Any:
    filled = _filled(spec, BLOCK)  # a branch of several blocks needs no type
    if not isinstance(filled, Mapping):
        return filled
    return {key: _blocks(value) if key in NESTED else value for key, value in filled.items()}


def _filled(spec: Any, registry: Registry) -> Any:
    """A spec as a mapping with its type, what it was given, and the defaults of the other arguments."""
    try:
        name, given = split_spec(spec, "")
        factory = find_factory(name, "", registry, Trust())
    except ConfigError:
        return spec
    return {"type": name, **given, **defaults_of(factory, given)}


def defaults_of(factory: Factory, given: Collection[str] = ()) -> dict[str, Any]:
    """The plain values among the defaults of a signature, without those that are given."""
    if is_dataclass(factory):
        made = {
            field.name: field.default_factory() for field in fields(factory) if field.default_factory is not MISSING
        }
        own = {field.name: field.default for field in fields(factory) if field.default is not MISSING}
        found = {**own, **made}
    else:
        found = {name: parameter.default for name, parameter in inspect.signature(factory).parameters.items()}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in found.items()
        if name not in (*given, *WITHOUT) and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str) or value == {}
