"""Composing a config outside the two commands, as a notebook does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from cnnlab.config import hydra_internals as internals
from cnnlab.config.compose import CONFIGS, allow_constructor_arguments, compose_job
from cnnlab.config.explain import COMPOSITION_ERRORS, explain
from cnnlab.runtime.errors import ConfigError

Config: TypeAlias = DictConfig


def evaluation_defaults() -> dict[str, Any]:
    """The keys of `python evaluate.py` with their defaults."""
    content = yaml.safe_load((CONFIGS / "evaluate.yaml").read_text(encoding="utf-8"))
    return {key: value for key, value in content.items() if key not in ("defaults", "hydra")}


def compose_config(overrides: Sequence[str], config_dir: str | Path | None) -> Config:
    """The config that `python train.py --config-dir CONFIG_DIR OVERRIDES` would run. Raises `ConfigError`."""
    given = allow_constructor_arguments(overrides)
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError(f"config_dir: expected a folder with YAML, received {str(config_dir)!r}, which is none")
    try:
        with internals.state_restored(), initialize_config_dir(str(CONFIGS), version_base="1.3"):
            if config_dir is not None:
                internals.add_config_dir(Path(config_dir))
            composed = hydra_compose("train", overrides=given, return_hydra_config=True)
            HydraConfig.instance().set_config(composed)
            with open_dict(composed):
                del composed["hydra"]
            config = compose_job(composed, given)
    except COMPOSITION_ERRORS as error:
        raise ConfigError(explain(error, CONFIGS)) from error
    OmegaConf.set_struct(config, False)  # an unknown key is reported with the others when training starts
    return config
