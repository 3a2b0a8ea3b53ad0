"""One run, from a composed config to `summary.json`."""

import copy
import gc
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from cnnlab.components import Trust
from cnnlab.config.check import check_config
from cnnlab.config.check_ranks import check_alike, check_ranks, check_restarts, check_same_data
from cnnlab.config.preprocessing import resolve_preprocess
from cnnlab.config.run_config import RunConfig
from cnnlab.config.run_plan import RunPlan
from cnnlab.config.saved_config import trusted_names
from cnnlab.config.sections import is_quiet
from cnnlab.data.source import Images
from cnnlab.engine.autotune import Trial, one_line, table
from cnnlab.engine.backends.cuda_graph import Captured
from cnnlab.engine.checkpoint import Checkpoint
from cnnlab.engine.evaluation import VIEWS, evaluate
from cnnlab.engine.examination import Examiner, Judge
from cnnlab.engine.execution import make_deterministic
from cnnlab.engine.profiling import make_profiler
from cnnlab.engine.records import Finished, Metrics, Notice, Started
from cnnlab.engine.trainer import StoppedError, Trainer
from cnnlab.losses import loss_of_each, probabilities
from cnnlab.observers import Observers
from cnnlab.run.features import FeatureCache
from cnnlab.run.files import CONFIG, DIAGRAM, ENVIRONMENT, MODEL, OVERRIDES, SUMMARY, RunDirectory, found_by_first
from cnnlab.run.inspection_files import folder_for_inspection, write_inspection
from cnnlab.run.loaders import (
    TrainingData,
    describe_balance,
    describe_placement,
    held_out_loader,
    load_loss,
    load_network,
    read_split,
    read_training_data,
    train_loader,
)
from cnnlab.run.lr_finding import describe_range_test, find_lr, suggestions, with_lr
from cnnlab.run.network_diagram import diagram, layer_nodes
from cnnlab.run.process_state import process_state_kept, the_only_training
from cnnlab.run.report import command_line, write_report
from cnnlab.run.resolve import describe_run, resolve
from cnnlab.run.resuming import (
    NOT_DIGESTED,
    Resumption,
    changes_of_environment,
    check_classes,
    check_data,
    describe_record,
    prepare_resume,
    restore,
)
from cnnlab.run.starting_weights import read_starting_weights
from cnnlab.run.summary import describe_restart, final_metrics, print_plan, print_summary, summarize, table_text
from cnnlab.run.train_state import build_train_state, check_machine, step_cost
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.distributed import RankLostError, answering, everywhere, from_first, joined, start_training
from cnnlab.runtime.errors import ConfigError, Interrupted, NonFiniteError, TrainingError, first_line
from cnnlab.runtime.memory import keep_freed_memory
from cnnlab.runtime.randomness import derive, seed_generators
from cnnlab.runtime.ranks import is_first, rank, world_size
from cnnlab.runtime.terminal import leave_terminal, print_wrapped, silenced, waiting

MOST_ROLLBACKS = 3  # of a run
SAME_REQUEST = 1.0  # seconds
SAME_REQUEST_TO_RANKS = 5.0  # which torchrun passes on
# the last: what a batch system can be told to send before a job's time is over; Windows has none
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class SearchTrial(Protocol):
    """Of a search: it selects by validation alone, so its runs leave the test split alone."""

    def is_hopeless(self, validation: int, values: Mapping[str, float]) -> bool:
        """Whether the run ends after so many validations, the last of which measured `values`, by tag."""
        ...

    def beyond(self, measure: Callable[[], Mapping[str, float]]) -> str | None:
        """A sentence for a run whose step takes more than the search allows: it ends before its first."""
        ...


@dataclass(frozen=True)
class _Run:
    """A run whose config, machine and data were checked: what follows writes results."""

    plan: RunPlan
    config: RunConfig
    directory: RunDirectory
    data: TrainingData
    checkpoint: Checkpoint | None  # where a resumed run continues
    trial: SearchTrial | None


def run_training(config: RunConfig, trial: SearchTrial | None = None) -> Path | None:
    """Trains or resumes; returns the run's directory, or None where only the table was printed.

    Raises `ConfigError`, `TrainingError` or, once it has saved after a signal, `Interrupted`.
    """
    quiet = is_quiet(config.values.get("observers")) or not is_first()
    with the_only_training(), process_state_kept(), silenced(quiet), joined():
        check_alike(config)
        check_restarts(config)
        trusted = trusted_names(config.values.get("trust", []))
        if config.values.get("resume") is not None:
            return _resume(everywhere(lambda: prepare_resume(config, trusted)), trial)
        return _start(config, trial)


def _start(config: RunConfig, trial: SearchTrial | None) -> Path | None:
    """Checks a new run, makes its directory and trains."""
    with waiting("checking the config"):
        plan = everywhere(lambda: check_config(config.values, Trust()))
    config = _preprocess_resolved(config)
    for key, value in plan.auto.values.items():
        config = config.with_value(key, value)
    inspection = everywhere(lambda: folder_for_inspection(plan.data.inspect, config.values["data"].get("root")))
    print_plan(plan)
    if inspection:
        everywhere(plan.source.check)
        from_first(lambda: write_inspection(plan, inspection))
        config = config.without("data.inspect")  # of this command: a resumed run has trained on them already
    if plan.settings.max_steps == 0:
        return None
    plan = everywhere(lambda: _ready(plan, fresh=True))
    print_wrapped(f"{describe_placement(plan)}\n")
    directory = RunDirectory.create(plan.name, plan.run_dir, config.slug)
    try:
        _write_config(directory, config)  # first: a run that is killed while it reads can be started again
        with waiting("reading the data"):
            data = everywhere(lambda: read_training_data(plan))
            if "test" in plan.spec.counts:
                # a damaged test image is reported now, not after the training
                everywhere(lambda: read_split(plan, "test"))
        check_same_data(data.digest)
        if balance := describe_balance(plan, data.class_counts):
            print_wrapped(balance)
    except BaseException:
        directory.discard()
        raise
    with _failures_in_summary(directory):
        _train(_Run(plan, config, directory, data, None, trial))
    return directory.path


def _resume(run: Resumption, trial: SearchTrial | None) -> Path:
    """Checks an existing run and trains what is left of it."""
    plan = run.plan
    print_plan(plan)
    if run.restarted:
        print_wrapped(describe_restart(plan))
    everywhere(lambda: _ready(plan, fresh=False))
    everywhere(run.directory.lock)
    try:  # what is refused here leaves the run as it was
        checkpoint = run.newest_checkpoint()
        check_classes(checkpoint, plan.spec.class_names)
        if run.is_complete(checkpoint):
            path = run.directory.path
            print_wrapped(f"\n{path} is complete: there is nothing left to train", path)
            print_summary(run.directory.read_json(SUMMARY), run.directory, plan)
            run.directory.release()
            return path
        if checkpoint is None:
            plan = everywhere(lambda: _with_starting_weights(plan))
        if notice := describe_record(run.directory, checkpoint):
            print_wrapped(notice)
        print_wrapped(f"{describe_placement(plan)}\n")
        with waiting("reading the data"):
            data = everywhere(lambda: read_training_data(plan))
        check_same_data(data.digest)
        check_data(checkpoint, data.digest)
    except BaseException:
        run.directory.release()
        raise
    with _failures_in_summary(run.directory):
        _write_config(run.directory, run.config)
        _train(_Run(plan, run.config, run.directory, data, checkpoint, trial))
    return run.directory.path


def _preprocess_resolved(config: RunConfig) -> RunConfig:
    """The config with the numbers that `data.preprocess` stands for, which it prints and the run's config keeps."""
    values = resolve_preprocess(config.values)
    for key, value in values.items():
        config = config.with_value(f"data.{key}", value)
    if values:
        given = " ".join(f"data.{key}={value}" for key, value in values.items() if value is not None)
        print_wrapped("images as the weights expect them: " + given.replace("'", ""))
    return config


def _ready(plan: RunPlan, *, fresh: bool) -> RunPlan:
    """The plan, once machine, data and ranks fit it; one of a `fresh` run with its starting weights."""
    check_ranks(plan)
    check_machine(plan)
    plan.source.check()
    return _with_starting_weights(plan) if fresh else plan


def _with_starting_weights(plan: RunPlan) -> RunPlan:
    weights = read_starting_weights(plan.network, plan.init_from, plan.data.normalize)
    return replace(plan, starting_weights=weights)


def _write_config(directory: RunDirectory, config: RunConfig) -> None:
    directory.write_text(CONFIG, config.config_yaml())
    directory.write_text(OVERRIDES, config.overrides_yaml())


@contextmanager
def _failures_in_summary(directory: RunDirectory) -> Iterator[None]:
    """Records a failure in the run's `summary.json`; the lock is released whatever happens."""
    try:
        yield
    except Exception as error:
        with suppress(ConfigError, TrainingError):  # of a full disk, the first failure is the one to report
            failed = {"status": "failed", "error": first_line(error)}
            directory.write_json(SUMMARY, directory.read_json(SUMMARY) | failed)
        raise
    finally:
        directory.release()


def _train(run: _Run) -> None:
    """Builds what the plan holds, trains, and measures the test split once."""
    plan, directory = run.plan, run.directory
    directory.write_text(MODEL, table_text(plan))
    directory.write_text(DIAGRAM, diagram(plan.network))
    make_deterministic(plan.deterministic)
    if plan.device.type == "cpu":
        keep_freed_memory()
    with _stop_signals() as stopped_by, closing(Observers(plan.observers if is_first() else [])) as observers:
        with waiting("timing steps"):
            plan, trials = resolve(plan, run.data, run.checkpoint)
            beyond = run.trial and run.trial.beyond(lambda: step_cost(plan, run.data.normalization))
        if beyond:
            directory.write_json(SUMMARY, {"status": "pruned", "error": beyond})
            print_wrapped(f"pruned: {beyond}")
            return
        if plan.lr_is_auto or plan.settings.lr_find:
            with waiting("trying learning rates"):
                found = find_lr(plan, run.data, directory)
            print_wrapped(*describe_range_test(found, directory))
            if plan.settings.lr_find:
                directory.write_json(SUMMARY, {"status": "completed", "lr_find": suggestions(found)})
                return
            lr = float(f"{found.valley:.2g}")
            plan, run = with_lr(plan, lr), _with_config(run, "optimizer.lr", lr)
        start_training(plan.device, plan.settings.collective_timeout)
        environment = describe_run(plan, run.data)
        directory.write_json(ENVIRONMENT, environment)
        run = replace(run, plan=plan)
        with closing(_build_trainer(run, environment, observers, stopped_by)) as trainer:
            seed_generators(plan.seed if is_first() else derive(plan.seed, "rank", rank()))
            if run.checkpoint:
                restore(trainer, run.checkpoint)
            observers.log(_started(run, trainer))
            for notice in [*changes_of_environment(run.checkpoint, environment), *_costs(plan, trials)]:
                observers.log(Notice(notice))
            status = _fit(run, trainer, observers)
            summary = summarize(status, trainer, plan)
            directory.write_json(SUMMARY, summary)
            if status == "completed" and "test" in plan.spec.counts and run.trial is None:
                summary["test"] = _measure_test(run, trainer, observers, stopped_by)
                directory.write_json(SUMMARY, summary)
            observers.log(Finished(final_metrics(summary)))
    _write_report(run)
    print_summary(summary, directory, plan)
    if status == "interrupted":
        raise Interrupted(stopped_by[0] if stopped_by else signal.SIGTERM)  # another rank got the signal


def _write_report(run: _Run) -> None:
    """A page that cannot be written, as on a full disk, is reported: the run itself is complete."""
    if not is_first():
        return
    try:
        write_report(run.directory, run.plan, run.data.class_counts)
    except (ConfigError, TrainingError) as error:
        print_wrapped(f"no report: {first_line(error)}")


def _with_config(run: _Run, key: str, value: Any) -> _Run:
    """The run with a value that was found, which is in its `config.yaml` from now on."""
    config = run.config.with_value(key, value)
    _write_config(run.directory, config)
    return replace(run, config=config)


def _started(run: _Run, trainer: Trainer) -> Started:
    return Started(
        run.directory.path,
        step=trainer.progress.step,
        total_steps=trainer.total_steps,
        epochs=trainer.total_epochs,
        hyperparameters=run.config.hyperparameters,
        model_table=table_text(run.plan),
        watched=run.plan.settings.watch_every is not None,
        command=command_line(run.directory),
        config=run.config.config_yaml(),
        layers=layer_nodes(run.plan.network),
        class_names=run.plan.spec.class_names,
        mean_C=run.data.normalization.mean_C,
        sd_C=run.data.normalization.sd_C,
    )


def _costs(plan: RunPlan, trials: Sequence[Trial]) -> list[str]:
    """A sentence for each choice that costs time; the whole table of what was timed, with `trainer.profile`."""
    costs = [table(trials) if plan.settings.profile else one_line(trials)] if trials else []
    if plan.deterministic and plan.device.type == "cuda":
        costs.append("trainer.deterministic=true: the same bits each time, with slower kernels")
    if plan.execution.compile is True:
        costs.append("trainer.execution.compile=true: the first step takes longer, seconds to minutes")
    return costs


def _build_trainer(run: _Run, environment: Mapping[str, Any], observers: Observers, stopped_by: list[int]) -> Trainer:
    """The trainer before the run's first step."""
    plan, data = run.plan, run.data

    def notify(text: str) -> None:
        observers.log(Notice(text))

    train_state, held_out = build_train_state(plan, shared=True), _held_out(plan, data)
    trainer = Trainer(
        train_state,
        train_loader(plan, data.train, data.normalization),
        {split: held_out_loader(plan, images, data.normalization) for split, images in held_out.items()},
        plan.settings,
        run.directory.checkpoints(keep_every=plan.settings.keep_every, keep_best=plan.settings.keep_best),
        observers.log,
        meta={
            "config_digest": run.config.digest(NOT_DIGESTED),
            "environment": environment,
            "normalization": {"mean_C": data.normalization.mean_C, "sd_C": data.normalization.sd_C},
            "input_shape": plan.spec.input_shape,
            "class_names": plan.spec.class_names,
            "class_counts": data.class_counts,
            "counts": plan.spec.counts,
            "held_out": plan.spec.held_out,
        },
        meter=plan.meter(),
        examine=(lambda: Examiner(_judge(plan))) if is_first() else None,
        profiler=make_profiler(run.directory.path, notify) if plan.settings.profile and is_first() else None,
        stop=lambda: "interrupted" if stopped_by else pruned(),
        features=FeatureCache(
            plan, run.config.values, data, held_out, train_state.network, notify, lambda: bool(stopped_by)
        ),
    )
    pruned = _pruning(run.trial, trainer)
    return trainer


def _judge(plan: RunPlan) -> Judge:
    """Probabilities and the loss of each image, by a copy: the run's own loss may keep state."""
    loss = copy.deepcopy(plan.loss)
    return lambda output_NK, target_N: (probabilities(loss, output_NK), loss_of_each(loss, output_NK, target_N))


def _pruning(trial: SearchTrial | None, trainer: Trainer) -> Callable[[], str | None]:
    """For the trainer's `stop`: asks the trial once after each validation of this process."""
    judged = trainer.progress.last_values

    def pruned() -> str | None:
        nonlocal judged
        values = trainer.progress.last_values
        if trial is None or values is judged or not values:
            return None
        judged = values
        validation = trainer.settings.validations(trainer.progress.step, len(trainer.train))
        return "pruned" if trial.is_hopeless(validation, values) else None

    return pruned


def _held_out(plan: RunPlan, data: TrainingData) -> dict[str, Images]:
    """The splits that validation measures: the test split is among them only with `monitor_test`."""
    splits = {}
    if len(data.val):
        splits["val"] = data.val
    if plan.settings.monitor_test:
        splits["test"] = read_split(plan, "test")
    return splits


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """SIGINT, SIGTERM and SIGUSR1 only leave their number here; a second one, of any kind, acts at once.

    What comes within a second of the first is the same request: a terminal and batch systems send a signal to all
    processes, and a grid then passes it on to its jobs.
    """
    received: list[int] = []
    previous: dict[signal.Signals, Any] = {}
    first = 0.0

    def handle(number: int, frame: Any) -> None:
        nonlocal first
        if not received:
            received.append(number)
            first = time.monotonic()
        elif time.monotonic() - first > (SAME_REQUEST if world_size() == 1 else SAME_REQUEST_TO_RANKS):
            leave_terminal()
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            previous[number] = signal.signal(number, handle)
    try:
        yield received
    except RankLostError:
        previous = dict.fromkeys(previous, signal.SIG_IGN)  # torchrun ends this one, too, which has to say why first
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _fit(run: _Run, trainer: Trainer, observers: Observers) -> str:
    """Trains to the end; after a non-finite loss from the last checkpoint on, where the settings ask for it."""
    plan = run.plan
    gc.collect()
    gc.freeze()  # what is left stays: looking for garbage in all of torch was 5 % of a small MLP's run
    try:
        while True:
            try:
                with answering():
                    return trainer.fit()
            except NonFiniteError as error:
                _roll_back(run, trainer, observers, error)
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"out of memory at data.batch_size={plan.data.batch_size}: {first_line(error)} "
            f"Try trainer.accumulate={2 * plan.settings.accumulate} or a smaller batch"
        ) from error
    finally:
        gc.unfreeze()


def _roll_back(run: _Run, trainer: Trainer, observers: Observers, error: NonFiniteError) -> None:
    """Returns to the newest checkpoint; the step that failed makes no update when it comes again.

    What follows has the bits of a run in which that step made no update. Raises the error where the settings, the
    number of steps skipped so far or the lack of a checkpoint say so.
    """
    skipped = trainer.progress.skipped
    checkpoints = run.directory.checkpoints()
    checkpoint = found_by_first(checkpoints, checkpoints.newest_whole)
    if run.plan.settings.on_nonfinite == "stop" or checkpoint is None or len(skipped) >= MOST_ROLLBACKS:
        raise error
    trainer.tally.reset()  # what is pending belongs to steps that are undone
    trainer.train.close()  # its workers are ahead
    if isinstance(trainer.train_state.step, Captured):
        trainer.train_state.step.forget()
    restore(trainer, checkpoint)
    trainer.progress.skipped = sorted({*skipped, *trainer.progress.skipped, error.step})
    observers.log(_started(run, trainer))  # cuts the records of what is undone
    observers.log(Notice(f"{error}. Continuing after step {checkpoint.step}, without step {error.step}"))


def _measure_test(run: _Run, trainer: Trainer, observers: Observers, stopped_by: Sequence[int]) -> dict[str, float]:
    """Loss and accuracy of the best checkpoint on the test split, read here for the first and only time.

    Raises `Interrupted` between two batches after a signal: resumed, the run measures it again.
    """
    plan, directory, normalization = run.plan, run.directory, run.data.normalization
    checkpoints = directory.checkpoints()
    best = found_by_first(checkpoints, lambda: checkpoints.resolve("best"))
    assert best
    images = read_split(plan, "test")
    directory.write_json(ENVIRONMENT, directory.read_json(ENVIRONMENT) | {"test_digest": images.digest()})
    network = load_network(plan, best)
    load_loss(plan.loss, best)
    views = VIEWS[plan.settings.tta]
    loader = held_out_loader(plan, images, normalization)
    if not views and isinstance(trainer.features, FeatureCache):
        try:
            loader, network = trainer.features.test_loader(images, network) or (loader, network)
        except StoppedError:
            raise Interrupted(stopped_by[0]) from None
    with closing(loader):
        batches = _until_stopped(loader, stopped_by)
        values = evaluate(network, plan.loss, batches, plan.execution, plan.meter(), views=views)
    observers.log(Metrics(trainer.progress.step, trainer.epoch, "test", values, final=True))
    return values


def _until_stopped(batches: Iterable[Batch], stopped_by: Sequence[int]) -> Iterator[Batch]:
    for batch in batches:
        if stopped_by and world_size() == 1:  # several ranks end together: what they have still to do is short
            raise Interrupted(stopped_by[0])
        yield batch
