"""One run, from a composed config to `summary.json`."""

import gc
import io
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from cnnlab.components import Trust
from cnnlab.config.check import check_config
from cnnlab.config.programs import command, program
from cnnlab.config.run_config import RunConfig
from cnnlab.config.run_plan import RunPlan
from cnnlab.config.saved_config import trusted_names
from cnnlab.engine.autotune import Trial, table
from cnnlab.engine.checkpoint import Checkpoint, Checkpoints
from cnnlab.engine.evaluation import evaluate
from cnnlab.engine.execution import make_deterministic
from cnnlab.engine.profiling import make_profiler
from cnnlab.engine.records import Finished, Metrics, Notice, Started
from cnnlab.engine.trainer import Trainer
from cnnlab.network import render_table
from cnnlab.observers import Observers
from cnnlab.run.loaders import (
    TrainingData,
    describe_placement,
    describe_splits,
    held_out_loader,
    load_loss,
    load_network,
    read_split,
    read_training_data,
    train_loader,
)
from cnnlab.run.resuming import (
    Resumption,
    changes_of_environment,
    check_classes,
    check_data,
    prepare_resume,
)
from cnnlab.run.run_directory import RunDirectory
from cnnlab.run.starting_weights import read_starting_weights
from cnnlab.run.train_state import build_train_state, check_machine, resolve_execution
from cnnlab.runtime.device import describe_environment
from cnnlab.runtime.errors import ConfigError, Interrupted, TrainingError, first_line
from cnnlab.runtime.memory import keep_freed_memory
from cnnlab.runtime.randomness import seed_generators
from cnnlab.version import __version__

# what says nothing about what was learned
NO_HYPERPARAMETERS = ("name", "run_dir", "resume", "trust", "published", "observers", "device")
_TRAINING = threading.Lock()


@contextmanager
def the_only_training() -> Iterator[None]:
    """Raises `ConfigError` while another thread of this process trains."""
    if not _TRAINING.acquire(blocking=False):
        raise ConfigError(
            "another training runs in this process, and both would draw from the same random generators: expected one "
            "at a time, or a process for each"
        )
    try:
        yield
    finally:
        _TRAINING.release()


@the_only_training()
def run_training(config: RunConfig) -> Path | None:
    """Trains or resumes; returns the run's directory, or None where only the table was wanted.

    Raises `ConfigError`, `TrainingError` or, once it has saved after a signal, `Interrupted`.
    """
    trusted = trusted_names(config.values.get("trust", []))
    if config.values.get("resume") is not None:
        return _resume(prepare_resume(config, trusted))
    plan = check_config(config.values, Trust())
    _print_plan(plan)
    if plan.settings.max_steps == 0:
        return None
    check_machine(plan)
    plan.source.check()
    plan = _with_starting_weights(plan)
    print(describe_placement(plan), end="\n\n")
    directory = RunDirectory.create(plan.name, plan.run_dir)
    try:
        data = read_training_data(plan)
        if "test" in plan.spec.counts:
            read_split(plan, "test")  # a damaged test image is told now, not after the training
    except BaseException:
        directory.discard()
        raise
    with _failures_in_summary(directory):
        _write_config(directory, config)
        _run(plan, directory, config.values, data, None)
    return directory.path


def _resume(run: Resumption) -> Path:
    plan = run.plan
    _print_plan(plan)
    if run.restarted:
        (start, _), end = plan.cycles[-1], plan.total_steps
        until = f" and ends at step {end}" if end is not None else ""
        print(f"schedule: {plan.schedule.type} begins anew after step {start}{until}; momentum and best stay")
    check_machine(plan)
    plan.source.check()
    run.directory.lock()
    try:  # what is refused here leaves the run as it was
        checkpoint = run.newest_checkpoint()
        check_classes(checkpoint, plan.spec.class_names)
        if checkpoint is None:
            plan = _with_starting_weights(plan)
        print(describe_placement(plan), end="\n\n")
        data = read_training_data(plan)
        check_data(checkpoint, data.digest)
    except ConfigError:
        run.directory.release()
        raise
    with _failures_in_summary(run.directory):
        _write_config(run.directory, run.config)
        _run(plan, run.directory, run.config.values, data, checkpoint)
    return run.directory.path


def _with_starting_weights(plan: RunPlan) -> RunPlan:
    weights = read_starting_weights(plan.network, plan.init_from, plan.data.normalize)
    return replace(plan, starting_weights=weights)


def _write_config(directory: RunDirectory, config: RunConfig) -> None:
    directory.write_text("config.yaml", config.config_yaml())
    directory.write_text("overrides.yaml", config.overrides_yaml())


def _print_plan(plan: RunPlan) -> None:
    """The network and the data that a run is going to use."""
    print(_table_text(plan))
    print(describe_splits(plan))
    for note in plan.source.notes():
        print(note)


def _table_text(plan: RunPlan) -> str:
    """The layer table at its own width, whatever the terminal's: a remark is never cut."""
    text = io.StringIO()
    Console(file=text, width=240).print(render_table(plan.network.rows, plan.network.input_shape))
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
    plan: RunPlan,
    directory: RunDirectory,
    config: Mapping[str, Any],
    data: TrainingData,
    checkpoint: Checkpoint | None,
) -> None:
    """Builds what the plan says, trains, and measures the test split once."""
    table = _table_text(plan)
    directory.write_text("model.txt", table)
    make_deterministic(plan.deterministic)
    if plan.device.type == "cpu":
        keep_freed_memory()
    with _stop_signals() as stopped_by:
        asked_to_trace = plan.execution.trace is True
        plan, trials = resolve_execution(plan, data.normalization, directory.read_json("environment.json"))
        environment = _environment(plan, data)
        directory.write_json("environment.json", environment)
        observers = Observers(plan.observers)
        trainer = _build_trainer(
            plan,
            directory,
            data,
            environment,
            checkpoint,
            observers,
            stopped_by,
            notify_trace=asked_to_trace,
        )
        try:
            observers.log(
                Started(
                    directory.path,
                    step=trainer.progress.step,
                    total_steps=trainer.total_steps,
                    epochs=trainer.total_epochs,
                    hyperparameters=_flatten({k: v for k, v in config.items() if k not in NO_HYPERPARAMETERS}),
                    model_table=table,
                    watched=plan.settings.watch_every is not None,
                )
            )
            for notice in [*changes_of_environment(checkpoint, environment), *_costs(plan, trials)]:
                observers.log(Notice(notice))
            status = _fit(trainer, plan)
            summary = _summary(status, trainer)
            directory.write_json("summary.json", summary)
            if status == "completed" and "test" in plan.spec.counts:
                summary["test"] = _measure_test(plan, directory, data, trainer, observers)
                directory.write_json("summary.json", summary)
            observers.log(Finished(_final_metrics(summary)))
        finally:
            observers.close()
            trainer.close()
    _print_summary(summary, directory, plan)
    if status == "interrupted":
        raise Interrupted(stopped_by[0])


def _costs(plan: RunPlan, trials: Sequence[Trial]) -> list[str]:
    """What the choices that a run begins with cost, in words."""
    costs = [table(trials)] if trials else []
    if plan.deterministic and plan.device.type == "cuda":
        costs.append("trainer.deterministic=true: the same bits each time, with slower kernels")
    if plan.execution.compile != "none":
        costs.append(f"compiling the {plan.execution.compile}: the first steps take longer, seconds to minutes")
    return costs


def _build_trainer(
    plan: RunPlan,
    directory: RunDirectory,
    data: TrainingData,
    environment: Mapping[str, Any],
    checkpoint: Checkpoint | None,
    observers: Observers,
    stopped_by: list[int],
    *,
    notify_trace: bool,
) -> Trainer:
    """The trainer at the beginning of the run, or where the checkpoint left it."""

    def notify(text: str) -> None:
        observers.log(Notice(text))

    trainer = Trainer(
        build_train_state(plan, checkpoint, notify if notify_trace else None),
        train_loader(plan, data.train, data.normalization),
        _held_out(plan, data),
        plan.settings,
        Checkpoints(directory.path / "checkpoints"),
        observers.log,
        meta={
            "environment": environment,
            "normalization": {"mean_C": data.normalization.mean_C, "sd_C": data.normalization.sd_C},
            "input_shape": plan.spec.input_shape,
            "class_names": plan.spec.class_names,
            "class_counts": data.class_counts,
            "counts": plan.spec.counts,
        },
        meter=plan.meter(),
        profiler=make_profiler(directory.path, notify) if plan.settings.profile else None,
        stop=lambda: "interrupted" if stopped_by else None,
    )
    seed_generators(plan.seed)
    if checkpoint:
        trainer.load_state_dict(checkpoint.state())
    return trainer


def _environment(plan: RunPlan, data: TrainingData) -> dict[str, Any]:
    return {
        "cnnlab": __version__,
        **describe_environment(plan.device),
        "precision": plan.execution.precision,
        "layout": plan.execution.layout,
        "compile": plan.execution.compile,
        "cuda_graph": plan.execution.cuda_graph,
        "trace": plan.execution.trace,
        "deterministic": plan.deterministic,
        "seed": plan.seed,
        "data_digest": data.digest,
    }


def _held_out(plan: RunPlan, data: TrainingData) -> dict[str, Any]:
    """The splits that validation measures: the test split is among them only where `monitor_test` says so."""
    splits = {}
    if len(data.val):
        splits["val"] = held_out_loader(plan, data.val, data.normalization)
    if plan.settings.monitor_test:
        splits["test"] = held_out_loader(plan, read_split(plan, "test"), data.normalization)
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


def _fit(trainer: Trainer, plan: RunPlan) -> str:
    gc.collect()
    gc.freeze()  # what is left stays: looking for garbage in all of torch was 5 % of a small MLP's run
    try:
        return trainer.fit()
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"out of memory at data.batch_size={plan.data.batch_size}: {first_line(error)} "
            f"Try trainer.accumulate={2 * plan.settings.accumulate} or a smaller batch"
        ) from error
    finally:
        gc.unfreeze()


def _measure_test(
    plan: RunPlan, directory: RunDirectory, data: TrainingData, trainer: Trainer, observers: Observers
) -> dict[str, float]:
    """Loss and accuracy of the best checkpoint on the test split, read here for the first and only time."""
    best = Checkpoints(directory.path / "checkpoints").resolve("best")
    images = read_split(plan, "test")
    directory.write_json(
        "environment.json", {**directory.read_json("environment.json"), "test_digest": images.digest()}
    )
    network = load_network(plan, best)
    load_loss(plan.loss, best)
    with closing(held_out_loader(plan, images, data.normalization)) as loader:
        values = evaluate(network, plan.loss, loader, plan.execution, plan.meter())
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
            "lower_is_better": trainer.lower_is_better,
            "step": progress.best_step,
            "epoch": progress.best_epoch,
            **progress.best_values,
        },
        "last": progress.last_values,
        "monitor_test": settings.monitor_test,
        "train": {
            "seconds": progress.seconds,
            "images": progress.images,
            "images_per_second": progress.images / max(progress.seconds, 1e-9),
        },
        "parameters": sum(parameter.numel() for parameter in trainer.train_state.network.parameters()),
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


def _best_and_last(summary: Mapping[str, Any]) -> str:
    """Such as `best: step 546, accuracy/val 0.9874, loss/val 0.0411; last: step 585, …`, in one line."""
    best, last = summary["best"], summary["last"]
    shown = [tag for tag in last if tag.split("/")[0] in ("loss", "accuracy") or tag == best["monitor"]]
    figures = [", ".join(f"{tag} {values[tag]:.4f}" for tag in shown) for values in (best, last)]
    if best["step"] == summary["step"]:
        return f"best and last: step {best['step']}, {figures[0]}"
    return f"best: step {best['step']}, {figures[0]}; last: step {summary['step']}, {figures[1]}"


def _print_summary(summary: Mapping[str, Any], directory: RunDirectory, plan: RunPlan) -> None:
    path, has_test = directory.path, "test" in plan.spec.counts
    best, test = summary["best"], summary.get("test")
    if test:
        print(f"\ntest accuracy {test['accuracy']:.4f}, loss {test['loss']:.4f} (best checkpoint: step {best['step']})")
    elif not has_test:
        print("\nthe data have no test split: no accuracy was measured on images that chose nothing")
    if summary["last"]:
        print(_best_and_last(summary))
    compared = plan.published.compare(_final_metrics(summary)) if plan.published else None
    if compared:
        print(compared)
    print(f"{summary['status']}: {path}")
    if summary["status"] == "interrupted":
        print(f"  go on      {command('train')} resume={path}")
    print(f"  curves     {program('tensorboard')} --logdir {path.parent}")
    if best["step"] is not None and (has_test or plan.data.has_validation(plan.spec)):
        print(f"  evaluate   {command('evaluate')} run={path}{'' if has_test else ' split=val'}")
