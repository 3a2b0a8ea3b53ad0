"""What we use of Hydra and OmegaConf beyond their documented interfaces: in this file alone.

`tests/config/test_hydra_internals.py` calls each function, so that a release that changes one of them is noticed.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.utils import get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Transformer
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf


def command_line_parser() -> argparse.ArgumentParser:
    """Hydra's own options; what else a command line holds are overrides."""
    return get_args_parser()


def options() -> Mapping[str, argparse.Action]:
    """Hydra's options by their flags."""
    return command_line_parser()._option_string_actions


def config_loader() -> ConfigLoaderImpl:
    """The loader of the Hydra that is running."""
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    return loader


def add_config_dir(folder: Path) -> None:
    """What --config-dir does: `folder` is searched after our own configs."""
    loader = config_loader()
    path = f"file://{folder.absolute()}"
    loader.config_search_path.prepend("command-line", path, anchor=SearchPathQuery(provider="schema"))
    loader.repository = ConfigRepository(config_search_path=loader.config_search_path)


def groups() -> list[str]:
    """Every group of configs, Hydra's own among them."""
    application = GlobalHydra.instance().hydra
    assert application is not None
    return sorted(application.list_all_config_groups())


def choices(group: str) -> list[str]:
    """The configs of a group; empty where there is no such group."""
    return sorted(config_loader().repository.get_group_options(group))  # the loader's own copies all of it first


def load(config_name: str, overrides: list[str]) -> DictConfig:
    """What Hydra composes for a single run, its own section included."""
    return config_loader().load_configuration(config_name=config_name, overrides=overrides, run_mode=RunMode.RUN)


def load_file(path: str) -> Any:
    """One YAML file of the search path by its name, such as experiment/mnist, not composed; empty where missing."""
    found = config_loader().repository.load_config(path)
    return found.config if found else {}


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """The grammar of the command line. Raises `HydraException`."""
    return OverridesParser.create(config_loader=config_loader()).parse_overrides(list(overrides))


def parse_alone(override: str) -> Override:
    """One override, where no Hydra is running yet. Raises `HydraException`."""
    return OverridesParser.create().parse_override(override)


def as_override_value(value: Any) -> str:
    """A parsed value as it is written on a command line."""
    return Transformer.str(value)


def raw_node(parent: DictConfig, key: str) -> Any:
    """The node at `key`, its interpolation unresolved; None where there is none."""
    return parent._get_node(key)


def raw_value(node: Any) -> Any:
    """The value that a node holds, its interpolation unresolved."""
    return node._value()


def is_mapping(node: Any) -> bool:
    """Whether a node is a mapping and not null."""
    return isinstance(node, DictConfig) and not node._is_none()


def as_raw_node(value: Any) -> Any:
    """A plain value as a node, its interpolations unresolved."""
    return raw_node(OmegaConf.create({"value": value}), "value")


def returned_error(returned: JobReturn) -> Any:
    """What the job of a launcher returned or raised; its public property would raise it."""
    return returned._return_value


@contextmanager
def hydra_config(config: DictConfig) -> Iterator[None]:
    """`HydraConfig` holds `config`, as it does while Hydra runs a job."""
    holder = HydraConfig.instance()
    before = holder.cfg
    holder.set_config(config)
    try:
        yield
    finally:
        holder.cfg = before


@contextmanager
def state_restored() -> Iterator[None]:
    """A clean Hydra; the state that other code of this process left in it is restored afterwards."""
    before = Singleton.get_state()
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        Singleton.set_state(before)
