"""The functions of `import cnnlab`: compose and train, as the command line does, from a notebook."""

from pathlib import Path

from cnnlab.config.from_python import Config, compose_config
from cnnlab.config.run_config import RunConfig
from cnnlab.runtime.errors import ConfigError, Interrupted


def compose(*overrides: str, config_dir: str | Path | None = None) -> Config:
    """The config that `python train.py OVERRIDES` would run: `compose("data=mnist", "optimizer.lr=0.1")`.

    `config_dir` is a folder with YAML of your own, as `--config-dir` takes it. With `resume=RUN` it is that run's
    config. The config can be changed before it is given to `train`. Raises `ConfigError`.
    """
    return compose_config(overrides, config_dir)


def train(config: Config) -> Path:
    """Trains what `compose` returned and returns the run's directory. Raises `ConfigError` or `TrainingError`.

    An interruption saves first, and is then Python's usual `KeyboardInterrupt`; `compose("resume=RUN")` continues.
    """
    from cnnlab.run.training import run_training

    try:
        directory = run_training(RunConfig(config))
    except Interrupted as interruption:
        raise KeyboardInterrupt from interruption
    if directory is None:
        raise ConfigError("trainer.max_steps: expected a run with steps, received 0")
    return directory
