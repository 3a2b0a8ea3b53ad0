"""Resuming a run: what may change, what must not, and which checkpoint it continues from. Writes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from cnnlab.components import Trust
from cnnlab.config.auto import auto_keys
from cnnlab.config.check import check_config
from cnnlab.config.check_training import check_trainer, is_auto, schedule_depends_on_length
from cnnlab.config.programs import command, given, trusting
from cnnlab.config.run_config import RESTART, RunConfig
from cnnlab.config.run_plan import RunPlan
from cnnlab.engine.checkpoint import STATE, Checkpoint
from cnnlab.engine.state_check import check_trainer_state
from cnnlab.engine.trainer import Trainer
from cnnlab.run.files import CONFIG, SUMMARY, RunDirectory, found_by_first
from cnnlab.run.files import ENVIRONMENT as ENVIRONMENT_FILE
from cnnlab.run.loaders import load_weights
from cnnlab.runtime.errors import Complaints, ConfigError, first_line, listing
from cnnlab.runtime.terminal import print_wrapped

# how long the run continues, what is logged and saved, where the data is, the device
CHANGEABLE = (
    "trainer.epochs",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.log_every",
    "trainer.checkpoint_every",
    "trainer.keep_every",
    "trainer.keep_best",
    "trainer.profile",
    "trainer.on_nonfinite",
    "trainer.execution.cuda_graph",  # the same bits
    "trainer.snapshot_every_epochs",
    "trainer.watch_every",
    "trainer.watch_top",
    "trainer.collective_timeout",
    "schedule.total_steps",
    RESTART,
    "observers",
    "data.root",
    "data.memory_fraction",
    "data.workers",
    "device",
)
# of the config's digest in a checkpoint: what may change, and what a restart adds to the schedule
NOT_DIGESTED = (*CHANGEABLE, "schedule.restarts", "published", "name")
LENGTH = ("trainer.epochs", "trainer.max_steps", "trainer.max_time")
ENVIRONMENT = ("torch", "platform", "device", "threads", "precision", "deterministic", "ranks")


@dataclass(frozen=True)
class Resumption:
    """A run to resume: its directory and its config with this command's changes, checked."""

    directory: RunDirectory
    config: RunConfig
    plan: RunPlan
    restarted: bool  # by this command: the schedule starts a new cycle
    another_length: bool

    def newest_checkpoint(self) -> Checkpoint | None:
        """The newest whole checkpoint; prints what was set aside, or that there is none yet."""
        checkpoints = self.directory.checkpoints(print_wrapped)
        checkpoint = found_by_first(checkpoints, checkpoints.newest_whole)
        if checkpoint is None:
            path = self.directory.path
            print_wrapped(f"{path} has no checkpoint yet: starting this run again in its directory", path)
        else:
            check_record(checkpoint)
        return checkpoint

    def is_complete(self, checkpoint: Checkpoint | None) -> bool:
        """True if the run ended at this checkpoint and this command leaves its length alone."""
        if checkpoint is None or self.another_length:
            return False
        try:
            summary = self.directory.read_json(SUMMARY)
        except ConfigError as error:
            print_wrapped(f"{error}: the run continues from its checkpoint, and writes it again")
            return False
        expected = {"best", "last", *(["test"] if "test" in self.plan.spec.counts else [])}
        ended = (summary.get("status"), summary.get("step")) == ("completed", checkpoint.step)
        return ended and expected <= summary.keys()


def prepare_resume(config: RunConfig, trusted: tuple[str, ...]) -> Resumption:
    """Reads and checks the run that `config.resume` names, changed to `config`. Raises `ConfigError`."""
    path = Path(str(config.values["resume"]))
    directory = RunDirectory.open(path, "resume")
    saved = RunConfig.read(path)
    if is_auto(config.values.get("optimizer")):  # the number was found when the run started
        config = config.with_value("optimizer.lr", saved.values["optimizer"]["lr"])
    for key in auto_keys(config.values):  # so were these, before it started
        config = config.with_value(key, saved.values.get(key.partition(".")[0], {}).get(key.partition(".")[2]))
    changes = config.changes_to(saved)
    _check_changes(changes)
    _check_unedited(directory, saved)
    restarted = config.restarts_schedule
    if restarted:
        config = config.restarted(_newest_step(directory))
    plan = check_config(config.values, Trust(False, trusted, trusting(f"{command('train')} {given('resume', path)}")))
    check_lookahead(plan, saved.values["trainer"])
    if not restarted:
        _check_length(plan, saved.values, config.values, " ".join([command("train"), *config.given, f"{RESTART}=true"]))
    return Resumption(directory, config.after(saved), plan, restarted, not changes.keys().isdisjoint(LENGTH))


def _check_unedited(directory: RunDirectory, saved: RunConfig) -> None:
    """Raises `ConfigError` where the run's `config.yaml` is not the one that its newest checkpoint was trained with."""
    recorded = directory.checkpoints().newest_meta().get("config_digest")
    if recorded is not None and recorded != saved.digest(NOT_DIGESTED):
        raise ConfigError(
            f"resume: {directory.path / CONFIG} was edited since the last checkpoint, and a resumed run keeps its "
            f"config: expected the file as it was; changes of {listing(CHANGEABLE)} are given on the command line"
        )


def check_lookahead(plan: RunPlan, before: Any) -> None:
    """Raises `ConfigError` for another length where lookahead's alpha follows it, even with a new cycle."""
    settings = check_trainer(before, Complaints())
    steps = settings.total_steps(plan.steps_per_epoch) if settings else None
    lookahead = plan.settings.lookahead
    if lookahead and lookahead.power and steps != plan.total_steps:
        raise ConfigError(
            f"trainer.lookahead.power: alpha was made for {steps} steps and depends on their number: expected the same "
            f"length, received one of {plan.total_steps} steps"
        )


def _newest_step(directory: RunDirectory) -> int:
    """The step of the newest checkpoint. Raises `ConfigError` where there is none."""
    steps = directory.checkpoints().steps()
    if not steps:
        raise ConfigError(f"{RESTART}: the run has no checkpoint yet: expected a resume without it")
    return steps[-1]


def restore(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Loads a checkpoint into a new trainer: weights, averaged weights and all other state. Raises `ConfigError`."""
    train_state = trainer.train_state
    load_weights(train_state.network, checkpoint.weights, checkpoint.folder)
    if train_state.ema:
        load_weights(train_state.ema.network, checkpoint.inference_weights, checkpoint.folder)
    state = checkpoint.state()
    check_trainer_state(f"checkpoint: {checkpoint.folder / STATE}:", trainer, state, checkpoint.step)
    try:
        trainer.load_state_dict(state)
    except Exception as error:  # whatever torch's generators or a user's own optimizer or schedule refuse it with
        raise ConfigError(
            f"checkpoint: {checkpoint.folder / STATE} was refused: {type(error).__name__}: {first_line(error)}"
        ) from error


def _check_changes(changes: Mapping[str, tuple[Any, Any]]) -> None:
    for key, (before, after) in changes.items():
        if not any(key == legal or key.startswith(f"{legal}.") for legal in CHANGEABLE):
            raise ConfigError(
                f"{key}: the run was started with {before!r}, and a resumed run keeps it: expected changes of "
                f"{listing(CHANGEABLE)} only, received {key}={after}"
            )


def _check_length(plan: RunPlan, before: Mapping[str, Any], after: Mapping[str, Any], restarting: str) -> None:
    """Another length is refused where it would change the learning rate of steps that are already done.

    `restarting` is the command that starts a new cycle instead.
    """
    # its classes were checked above; the path of its data and the workers belong to this machine
    old = check_config({**before, "data": after["data"], "device": "cpu"}, Trust(True)).cycles
    if old == plan.cycles:
        return
    length = sum(filter(None, old[-1]))
    if schedule_depends_on_length(after["schedule"]):
        torchs = isinstance(plan.schedule.factory, type)
        mend = "" if torchs else f", or a new cycle after the checkpoint: {restarting}"
        raise ConfigError(
            f"trainer: the run's schedule {plan.schedule.type!r} was made for {length} steps and depends on their "
            f"number: expected the same length{mend}; received a length of {plan.total_steps} steps"
        )
    if isinstance(plan.schedule.factory, type):
        raise ConfigError(
            f"schedule.total_steps: {plan.schedule.type} keeps its length in its state: expected {length}, received "
            f"{plan.cycles[-1][1]}"
        )


def check_record(checkpoint: Checkpoint) -> None:
    """Raises `ConfigError` for a checkpoint without a record of its data and environment."""
    environment, class_names = (checkpoint.meta.get(name) for name in ("environment", "class_names"))
    known = isinstance(environment, Mapping) and isinstance(environment.get("data_digest"), str)
    if not known or not isinstance(class_names, list):
        raise ConfigError(
            f"checkpoint: {checkpoint.folder} does not record its data and environment: expected one that this version "
            f"of cnnlab wrote"
        )


def describe_record(directory: RunDirectory, checkpoint: Checkpoint | None) -> str:
    """A sentence where the run's `environment.json` is not what its checkpoint recorded; empty elsewhere."""
    try:
        written = directory.read_json(ENVIRONMENT_FILE)
    except ConfigError:
        written = {}
    recorded = checkpoint.meta["environment"] if checkpoint else {}
    if all(written.get(key) == value for key, value in recorded.items()):
        return ""
    return f"{directory.path / ENVIRONMENT_FILE} is not what the checkpoint recorded: it is written again"


def check_data(checkpoint: Checkpoint | None, digest: str) -> None:
    """Raises `ConfigError` where the training data are not those that the checkpoint was made with."""
    then = checkpoint.meta["environment"]["data_digest"] if checkpoint else digest
    if then != digest:
        raise ConfigError(
            f"data: the images or labels are not those that the run was trained with (SHA-256 {then[:12]}… then, "
            f"{digest[:12]}… now): expected the same data"
        )


def check_classes(checkpoint: Checkpoint | None, class_names: Sequence[str]) -> None:
    """Raises `ConfigError` with the first difference where the data's classes or their order are not the run's."""
    then = list(checkpoint.meta["class_names"] if checkpoint else class_names)
    for number, (old, new) in enumerate(zip_longest(then, class_names)):
        if old != new:
            raise ConfigError(
                f"data: class {number} was {_shown(old)} in the run and is {_shown(new)} now ({len(then)} and "
                f"{len(class_names)} classes): expected the same classes in the same order"
            )


def _shown(name: str | None) -> str:
    return "missing" if name is None else repr(name)


def changes_of_environment(checkpoint: Checkpoint | None, now: Mapping[str, Any]) -> list[str]:
    """A sentence for each difference that keeps the run from identical bits."""
    if checkpoint is None:
        return []
    then = {"ranks": 1, **checkpoint.meta["environment"]}  # where it is not recorded
    return [
        f"{key} was {then.get(key)} and is {now[key]}: the run continues, but not to identical bits"
        for key in ENVIRONMENT
        if then.get(key) != now[key]
    ]
