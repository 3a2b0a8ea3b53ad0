"""The functions of `import cnnlab`: compose, train, evaluate and read a run's history, from a program or a notebook."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cnnlab.config.from_python import Config, compose_config, evaluation_defaults
from cnnlab.config.run_config import RunConfig
from cnnlab.runtime.errors import ConfigError, Interrupted
from cnnlab.runtime.terminal import silenced


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


def evaluate(
    run: str | Path,
    split: str = "test",
    *,
    checkpoint: str | int = "best",
    tta: str = "none",
    top_k: int | None = None,
    layers: Sequence[str] = (),
    index: int = 0,
    explain: bool = False,
    device: str = "auto",
    data_root: str | Path | None = None,
    trust: Sequence[str] = (),
) -> dict[str, Any]:
    """Measures a run on its `train`, `val` or `test` split and returns what is in its `evaluation-*.json`.

    That is `loss`, `accuracy`, `metrics`, `per_class` (precision, recall and F1), `macro`, `top_k`, `most_confused`,
    `calibration_error`, … The files that `python evaluate.py run=RUN` writes are written, too, and nothing is printed.
    The arguments are its keys, `data_root` the new folder of images that have moved. Raises `ConfigError`.
    """
    from cnnlab.inference.evaluate_command import run_evaluation

    request = {
        **evaluation_defaults(),
        "run": str(run),
        "split": split,
        "layers": list(layers),
        "index": index,
        "explain": explain,
        "data": {"root": None if data_root is None else str(data_root)},
        "checkpoint": checkpoint,
        "tta": tta,
        "top_k": top_k,
        "device": device,
        "trust": list(trust),
    }
    with silenced(True):
        return run_evaluation(request)


def history(run: str | Path, split: str | None = None) -> dict[str, list[Any]]:
    """What a run has measured so far: columns of equal length for `pandas.DataFrame`, one row a step.

    The columns are `step`, `epoch` and the tags of TensorBoard: `loss/train`, `loss/val`, `accuracy/val`, `lr`, … What
    was not measured at a step is NaN; with a `split` there are only the steps and the columns of that split, to draw a
    line without gaps. A run may be in progress, interrupted or resumed: each step is there once. Raises `ConfigError`.
    """
    from cnnlab.run.history import read_history

    return read_history(Path(run), split)
