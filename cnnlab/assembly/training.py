"""One run, from a composed config to `summary.json`."""

import io
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

import cnnlab
from cnnlab.assembly.blueprint import Blueprint, check_config, schedule_depends_on_length
from cnnlab.assembly.compose import apply_overrides, value_overrides
from cnnlab.assembly.material import (
    TrainingData,
    held_out_loader,
    load_network,
    load_weights,
    read_split,
    read_training_data,
    train_loader,
)
from cnnlab.assembly.run_directory import RunDirectory
from cnnlab.assembly.saved import load_saved_config, resolved
from cnnlab.components import Trust
from cnnlab.engine.checkpoint import Checkpoint, Checkpoints
from cnnlab.engine.ema import EMA
from cnnlab.engine.evaluation import evaluate
from cnnlab.engine.execution import make_deterministic
from cnnlab.engine.records import Finished, Metrics, Notice, Started
from cnnlab.engine.trainer import Learner, Trainer
from cnnlab.network import render_table
from cnnlab.observers import Observers
from cnnlab.runtime.device import describe_environment
from cnnlab.runtime.errors import ConfigError, Interrupted, TrainingError, first_line, listing
from cnnlab.runtime.randomness import derive, seed_generators

# what a resumed run may change: how long it goes on, what is logged and saved, where the data lies, the device
CHANGEABLE = (
    "trainer.epochs",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.log_every",
    "trainer.checkpoint_every",
    "schedule.total_steps",
    "observers",
    "data.root",
    "device",
)
# what says nothing about what was learned
NO_HYPERPARAMETERS = ("name", "run_dir", "resume", "trust", "observers", "device")


def run_training(config: DictConfig, overrides: Sequence[str], job_directory: str | None) -> None:
    """Trains or resumes. Raises `ConfigError`, `TrainingError` or, once it has saved after a signal, `Interrupted`."""
    if config.resume is not None:
        _resume(Path(str(config.resume)), overrides, list(config.trust))
        return
    blueprint = check_config(resolved(config), Trust())
    print(_table_text(blueprint))
    if blueprint.settings.max_steps == 0:
        return
    blueprint.source.check()
    wanted = blueprint.run_dir or (Path(job_directory) if job_directory else None)
    directory = RunDirectory.create(blueprint.name, wanted)
    with _failures_in_summary(directory):
        _write_config(directory, config, list(overrides))
        _run(blueprint, directory, resolved(config), None)


def _resume(path: Path, overrides: Sequence[str], trusted: list[str]) -> None:
    directory = RunDirectory.open(path, "resume")
    config = load_saved_config(path / "config.yaml")
    before = resolved(config)
    changes = [override for override in value_overrides(overrides) if override.key_or_group not in ("resume", "trust")]
    _check_changes(changes, before)
    apply_overrides(config, changes)
    blueprint = check_config(resolved(config), Trust(False, tuple(trusted), f"python train.py resume={path}"))
    _check_lengthening(blueprint, before, resolved(config))
    print(_table_text(blueprint))
    blueprint.source.check()
    directory.lock()
    with _failures_in_summary(directory):
        said: list[str] = []
        checkpoint = Checkpoints(path / "checkpoints", said.append).newest_whole()
        for text in said:
            print(text)
        if checkpoint is None:
            print(f"{path} has no checkpoint yet: starting this run again in its directory")
        given: Any = OmegaConf.load(path / "overrides.yaml") if (path / "overrides.yaml").is_file() else []
        _write_config(directory, config, [*map(str, given), *(str(c.input_line) for c in changes)])
        _run(blueprint, directory, resolved(config), checkpoint)


def _check_changes(changes: Sequence[Any], saved: Mapping[str, Any]) -> None:
    for change in changes:
        key = str(change.key_or_group)
        if any(key == legal or key.startswith(f"{legal}.") for legal in CHANGEABLE):
            continue
        value: Any = saved
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if not change.is_delete() and change.value() == value:
            continue
        raise ConfigError(
            f"{key}: the run was started with {value!r}, and a resumed run keeps it: expected changes of "
            f"{listing(CHANGEABLE)} only, received {change.input_line}"
        )


def _check_lengthening(blueprint: Blueprint, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Another length is refused where it would change the learning rate of steps that are already done."""
    old = check_config({**before, "device": "cpu"}, Trust(True))
    if old.schedule_steps == blueprint.schedule_steps:
        return
    if schedule_depends_on_length(after["schedule"]):
        raise ConfigError(
            f"trainer: the run's schedule {blueprint.schedule.type!r} was made for {old.schedule_steps} steps and "
            f"depends on their number: expected the same length, or schedule.total_steps={old.schedule_steps} to go "
            f"on behind its end, received a length of {blueprint.total_steps} steps"
        )
    if isinstance(blueprint.schedule.factory, type):
        raise ConfigError(
            f"schedule.total_steps: {blueprint.schedule.type} keeps its length in its state: expected "
            f"{old.schedule_steps}, received {blueprint.schedule_steps}"
        )


def _write_config(directory: RunDirectory, config: DictConfig, overrides: list[str]) -> None:
    saved = config.copy()
    OmegaConf.set_struct(saved, False)
    saved.resume, saved.trust = None, []
    saved.run_dir = None
    directory.write_text("config.yaml", OmegaConf.to_yaml(saved, resolve=False))
    directory.write_text("overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(overrides)))


def _table_text(blueprint: Blueprint) -> str:
    """The layer table at its own width, whatever the terminal's: a remark is never cut."""
    text = io.StringIO()
    Console(file=text, width=240).print(render_table(blueprint.network.rows, blueprint.network.input_shape))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip("\n") + "\n"


@contextmanager
def _failures_in_summary(directory: RunDirectory) -> Iterator[None]:
    """A run that fails says so in its `summary.json`; the lock is given back whatever happens."""
    try:
        yield
    except Exception as error:
        directory.write_json(
            "summary.json",
            {**directory.read_json("summary.json"), "status": "failed", "error": first_line(error)},
        )
        raise
    finally:
        directory.release()


def _run(
    blueprint: Blueprint, directory: RunDirectory, config: Mapping[str, Any], checkpoint: Checkpoint | None
) -> None:
    """Reads the data, builds what the blueprint says, trains, and measures the test split once."""
    table = _table_text(blueprint)
    directory.write_text("model.txt", table)
    data = read_training_data(blueprint)
    environment = _environment(blueprint, data)
    meta = {
        "environment": environment,
        "normalization": {"mean_C": data.normalization.mean_C, "sd_C": data.normalization.sd_C},
        "input_shape": blueprint.spec.input_shape,
        "class_names": blueprint.spec.class_names,
    }
    notices = _compare_environments(checkpoint, environment)
    if blueprint.deterministic and blueprint.device.type == "cuda":
        notices.append("trainer.deterministic=true: the same bits each time, at the cost of slower kernels")
    directory.write_json("environment.json", environment)

    make_deterministic(blueprint.deterministic)
    learner = _build_learner(blueprint, checkpoint)
    observers = Observers(blueprint.observers)
    with _stop_signals() as stopped_by:
        trainer = Trainer(
            learner,
            train_loader(blueprint, data.train, data.normalization),
            _held_out(blueprint, data),
            blueprint.settings,
            Checkpoints(directory.path / "checkpoints"),
            observers.log,
            meta=meta,
            interrupted=lambda: bool(stopped_by),
        )
        seed_generators(blueprint.seed)
        if checkpoint:
            trainer.load_state_dict(checkpoint.state())
        try:
            observers.log(
                Started(
                    directory.path,
                    trainer.progress.step,
                    trainer.total_steps,
                    trainer.total_epochs,
                    _flatten({key: value for key, value in config.items() if key not in NO_HYPERPARAMETERS}),
                    table,
                )
            )
            for notice in notices:
                observers.log(Notice(notice))
            status = _fit(trainer, blueprint)
            summary = _summary(status, trainer)
            directory.write_json("summary.json", summary)
            if status == "completed":
                summary["test"] = _measure_test(blueprint, directory, data, trainer, observers)
                directory.write_json("summary.json", summary)
            observers.log(Finished(_final_metrics(summary)))
        finally:
            observers.close()
    _say_goodbye(summary, directory)
    if status == "interrupted":
        raise Interrupted(stopped_by[0])


def _environment(blueprint: Blueprint, data: TrainingData) -> dict[str, Any]:
    return {
        "cnnlab": cnnlab.__version__,
        **describe_environment(blueprint.device),
        "precision": blueprint.execution.precision,
        "layout": blueprint.execution.layout,
        "deterministic": blueprint.deterministic,
        "seed": blueprint.seed,
        "data_digest": data.digest,
    }


def _compare_environments(checkpoint: Checkpoint | None, now: Mapping[str, Any]) -> list[str]:
    """What changed since the checkpoint. Raises `ConfigError` for other data."""
    if checkpoint is None:
        return []
    then = checkpoint.meta["environment"]
    if then["data_digest"] != now["data_digest"]:
        raise ConfigError(
            f"data: the pictures or labels are not those that the run was trained with (SHA-256 "
            f"{then['data_digest'][:12]}… then, {now['data_digest'][:12]}… now): expected the same data"
        )
    return [
        f"{key} was {then.get(key)} and is {now[key]}: the run goes on, but not to the same bits"
        for key in ("torch", "platform", "device", "threads", "precision", "deterministic")
        if then.get(key) != now[key]
    ]


def _build_learner(blueprint: Blueprint, checkpoint: Checkpoint | None) -> Learner:
    torch.manual_seed(derive(blueprint.seed, "weights"))
    network = blueprint.network.build()
    if checkpoint:
        load_weights(network, checkpoint, trained=True)
    network_on_device = blueprint.execution.place(network, blueprint.device)
    ema = EMA(network_on_device, blueprint.settings.ema) if blueprint.settings.ema is not None else None
    if ema and checkpoint:
        load_weights(ema.network, checkpoint)
    optimizer = blueprint.build_optimizer(network_on_device)
    return Learner(
        network_on_device,
        blueprint.loss.to(blueprint.device),
        optimizer,
        blueprint.build_schedule(optimizer),
        blueprint.execution,
        blueprint.execution.scaler(blueprint.device),
        ema,
    )


def _held_out(blueprint: Blueprint, data: TrainingData) -> dict[str, Any]:
    """The splits that validation measures: the test split is among them only where `monitor_test` says so."""
    splits = {}
    if len(data.val):
        splits["val"] = held_out_loader(blueprint, data.val, data.normalization)
    if blueprint.settings.monitor_test:
        splits["test"] = held_out_loader(blueprint, read_split(blueprint, "test"), data.normalization)
    return splits


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM only leave their number here; the second of a kind acts at once."""
    received: list[int] = []
    previous: dict[signal.Signals, Any] = {}

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handle)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _fit(trainer: Trainer, blueprint: Blueprint) -> str:
    try:
        return trainer.fit()
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"out of memory at data.batch_size={blueprint.data.batch_size}: {first_line(error)} "
            f"Try trainer.accumulate={2 * blueprint.settings.accumulate} or a smaller batch"
        ) from error


def _measure_test(
    blueprint: Blueprint, directory: RunDirectory, data: TrainingData, trainer: Trainer, observers: Observers
) -> dict[str, float]:
    """Loss and accuracy of the best checkpoint on the test split, read here for the first and only time."""
    best = Checkpoints(directory.path / "checkpoints").resolve("best")
    loader = held_out_loader(blueprint, read_split(blueprint, "test"), data.normalization)
    values = evaluate(load_network(blueprint, best), blueprint.loss, loader, blueprint.execution)
    observers.log(Metrics(trainer.progress.step, trainer.epoch, "test", values, final=True))
    return values


def _summary(status: str, trainer: Trainer) -> dict[str, Any]:
    progress, settings = trainer.progress, trainer.settings
    return {
        "status": status,
        "step": progress.step,
        "epoch": trainer.epoch,
        "best": {
            "monitor": settings.monitor,
            "step": progress.best_step,
            "epoch": progress.best_epoch,
            **progress.best_values,
        },
        "monitor_test": settings.monitor_test,
        "train": {
            "seconds": progress.seconds,
            "pictures": progress.pictures,
            "images_per_second": progress.pictures / max(progress.seconds, 1e-9),
        },
        "parameters": sum(parameter.numel() for parameter in trainer.learner.network.parameters()),
    }


def _final_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    metrics = {tag: value for tag, value in summary["best"].items() if "/" in tag}
    return metrics | {f"{name}/test": value for name, value in summary.get("test", {}).items()}


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"optimizer.lr": 0.05, …}`: the config's leaves by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _say_goodbye(summary: Mapping[str, Any], directory: RunDirectory) -> None:
    path = directory.path
    best, test = summary["best"], summary.get("test")
    if test:
        print(f"\ntest accuracy {test['accuracy']:.4f}, loss {test['loss']:.4f} (best checkpoint: step {best['step']})")
    print(f"{summary['status']}: {path}")
    python = _program("python", Path(sys.executable))
    if summary["status"] == "interrupted":
        print(f"  go on      {python} train.py resume={path}")
    print(
        f"  curves     {_program('tensorboard', Path(sys.executable).with_name('tensorboard'))} --logdir {path.parent}"
    )
    print(f"  evaluate   {python} evaluate.py run={path}")


def _program(name: str, ours: Path) -> str:
    """How to call this environment's program here: by its name, or by its path where the name is another's."""
    found = shutil.which(name)
    return name if found and Path(found).absolute() == ours.absolute() else os.path.relpath(ours)
