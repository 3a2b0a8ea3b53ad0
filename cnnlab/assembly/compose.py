"""What Hydra composed becomes the config of one job.

Hydra merges a mapping over a mapping and refuses what the YAML does not mention. Here a mapping of another `type`
replaces the old one, and a component takes every argument that its constructor takes: the value overrides of a job
are applied again, by these rules, over the same config without them.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cnnlab.runtime.errors import ConfigError, did_you_mean, first_line, listing

_PACKAGE = Path(__file__).parent.parent
CONFIGS = next(folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir())

# below these, keys are constructor arguments: legal ones need not stand in the YAML
_COMPONENT = re.compile(
    r"(model\.blocks\.[^.=]+|model\.init|observers\.[^.=]+|data|loss|optimizer|schedule|trainer\.execution)\.[^=]+="
)


# and these are whole components: a mapping may bring arguments that the old one has not
_WHOLE_COMPONENT = re.compile(r"(model\.blocks\.[^.=]+|model\.init|observers\.[^.=]+)=\s*\{")


def allow_constructor_arguments(arguments: Sequence[str]) -> list[str]:
    """`optimizer.amsgrad=true` becomes `++optimizer.amsgrad=true`, which Hydra accepts; legality is checked later."""
    return [
        f"++{argument}" if _COMPONENT.match(argument) or _WHOLE_COMPONENT.match(argument) else argument
        for argument in arguments
    ]


def compose_job(composed: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The config of a job: Hydra's, with the value overrides applied by our rules. Raises `ConfigError`."""
    loader = GlobalHydra.instance().config_loader()
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    groups = [override for override in parsed if loader.get_group_options(override.key_or_group)]
    values = [override for override in parsed if override not in groups]
    if not values:
        return composed
    config = loader.load_configuration(
        config_name=HydraConfig.get().job.config_name,
        overrides=[*HydraConfig.get().overrides.hydra, *(str(override.input_line) for override in groups)],
        run_mode=RunMode.RUN,
    )
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    apply_overrides(config, values)
    return config


def value_overrides(overrides: Sequence[str]) -> list[Override]:
    """The overrides, which have to be of values. Raises `ConfigError` for one of a group."""
    loader = GlobalHydra.instance().config_loader()
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    for override in parsed:
        if loader.get_group_options(override.key_or_group):
            raise ConfigError(
                f"{override.key_or_group}: a resumed run keeps its {override.key_or_group}; expected values such "
                f"as trainer.epochs=20, received {override.input_line}"
            )
    return parsed


def apply_overrides(config: DictConfig, overrides: Iterable[Override]) -> None:
    """Applies value overrides in their order. Raises `ConfigError` for a key that has no place."""
    for override in overrides:
        path = str(override.key_or_group).split(".")
        parent = _parent(config, path)
        name = path[-1]
        if override.is_delete():
            if name not in parent:
                raise _no_such_key(parent, path)
            del parent[name]
            continue
        if name not in parent and override.is_force_add() and _WHOLE_COMPONENT.match(f"{'.'.join(path)}={{"):
            raise _no_such_key(parent, path, f"; '+{'.'.join(path)}=…' adds one")
        value = OmegaConf.create({"value": override.value()})["value"]
        parent[name] = _merged(parent._get_node(name), value)


def _parent(config: DictConfig, path: list[str]) -> DictConfig:
    """The mapping that the last key stands in; a component given by its name alone becomes a mapping."""
    node = config
    for depth, key in enumerate(path[:-1]):
        if key not in node:
            raise _no_such_key(node, path[: depth + 1])
        child = node._get_node(key)
        assert child is not None
        if not isinstance(child, DictConfig) or child._is_none():
            value = child._value()
            if not isinstance(value, str):
                raise ConfigError(
                    f"{'.'.join(path)}: {'.'.join(path[: depth + 1])} is {value!r}: expected a component that "
                    f"could take {path[depth + 1]!r}"
                )
            node[key] = {"type": value}
        node = node[key]
    return node


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(new, DictConfig) or not isinstance(old, DictConfig) or old._is_none():
        return new
    if "type" in new and new.get("type") != old.get("type"):
        return new
    return OmegaConf.merge(old, new)


def _no_such_key(parent: DictConfig, path: list[str], hint: str = "") -> ConfigError:
    names = [str(name) for name in parent]
    return ConfigError(
        f"{'.'.join(path)}: there is no {path[-1]!r} here;{did_you_mean(path[-1], names)} "
        f"expected one of {listing(names)}{hint}"
    )


def explain(error: Exception) -> str:
    """What Hydra or OmegaConf found, in one message: key, expected, received, nearest legal name."""
    cause = error.__cause__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        options = list(error.options or [])
        if options:
            return f"{group}: there is no {name!r};{did_you_mean(name, options)} expected one of {listing(options)}"
        return f"there is no config {name!r} in {CONFIGS}"
    if isinstance(cause, OmegaConfBaseException) and getattr(cause, "key", None) is not None:
        parent = cause.parent_node
        names = [str(name) for name in parent if name != "hydra"] if isinstance(parent, DictConfig) else []
        key = str(cause.full_key or cause.key)
        if "." not in key:
            names = sorted({*names, *(folder.name for folder in CONFIGS.iterdir() if folder.is_dir())})
        return f"{key}: there is no such key;{did_you_mean(cause.key, names)} expected one of {listing(names)}"
    text = str(error)
    if cause is not None and (not text or text == "None"):
        text = str(cause)
    for ending in ("\nTo append", "\nConfig search path", "\nSee https", "\nfull_key", "\n    full_key"):
        text = text.split(ending)[0]
    return text.strip() or first_line(error)
