"""What `import cnnlab` offers: the command line's compose and train, from a notebook."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from cnnlab.config.compose import CONFIGS, allow_constructor_arguments, compose_job
from cnnlab.config.explain import explain
from cnnlab.runtime.errors import ConfigError, Interrupted


def compose(*overrides: str, config_dir: str | Path | None = None) -> DictConfig:
    """The config that `python train.py OVERRIDES` would run: `compose("data=mnist", "optimizer.lr=0.1")`.

    `config_dir` is a folder with YAML of your own, as `--config-dir` takes it. The answer can be changed before it is
    given to `train`. Raises `ConfigError`.
    """
    given = allow_constructor_arguments(overrides)
    places = [] if config_dir is None else [f"hydra.searchpath=[file://{Path(config_dir).absolute()}]"]
    try:
        with _hydra():
            composed = hydra_compose("train", overrides=[*places, *given], return_hydra_config=True)
            HydraConfig.instance().set_config(composed)
            with open_dict(composed):
                del composed["hydra"]
            config = compose_job(composed, given)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(explain(error, CONFIGS)) from error
    OmegaConf.set_struct(config, False)  # a key that is not legal is told with the others, when training is asked for
    return config


def train(config: DictConfig) -> Path:
    """Trains what `compose` gave and returns the run's directory. Raises `ConfigError` or `TrainingError`.

    An interruption saves first, and is then Python's usual `KeyboardInterrupt`; `compose("resume=RUN")` goes on.
    """
    from cnnlab.run.training import run_training

    try:
        with _hydra():
            directory = run_training(config, [])
    except Interrupted as interruption:
        raise KeyboardInterrupt from interruption
    if directory is None:
        raise ConfigError("trainer.max_steps: expected a run with steps, received 0")
    return directory


@contextmanager
def _hydra() -> Iterator[None]:
    """Hydra at our configs; whatever else this process uses it for is put back."""
    before = Singleton.get_state()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            yield
    finally:
        Singleton.set_state(before)
