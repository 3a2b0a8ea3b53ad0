"""The loop around the training step: when to record, validate, save and stop."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cnnlab.engine.checkpoint import Checkpoints
from cnnlab.engine.ema import EMA
from cnnlab.engine.evaluation import Meter, evaluate
from cnnlab.engine.examination import Examiner
from cnnlab.engine.exchange import Alone
from cnnlab.engine.execution import Execution
from cnnlab.engine.lookahead import Lookahead
from cnnlab.engine.optimization import load_optimizer_state, optimizer_state
from cnnlab.engine.probe import Probe
from cnnlab.engine.records import Metrics, Notice, Record, TrainingImages
from cnnlab.engine.schedule import LRScheduler
from cnnlab.engine.settings import TrainerSettings
from cnnlab.engine.snapshot import sample, take_snapshot
from cnnlab.engine.step import Step, train_step
from cnnlab.engine.tally import Tally
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.distributed import gathered
from cnnlab.runtime.errors import NonFiniteError, first_line, listing
from cnnlab.runtime.randomness import capture_generators, restore_generators
from cnnlab.runtime.ranks import is_first, rank

TRAINING_IMAGES = 36  # of the first batch that are logged


class Loader(Protocol):
    """Batches of a split; iteration can resume in the middle of an epoch."""

    epoch: int
    position: int

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Batch]: ...
    def set_epoch(self, epoch: int) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Served:
    """What an epoch trains and validates on: images and the whole network, or stored features and what follows them.

    `runs` gives the module that takes these batches, of the network or of its averaged copy.
    """

    train: Loader
    held_out: Mapping[str, Loader]
    runs: Callable[[nn.Module], nn.Module]


class StoppedError(Exception):
    """Something longer than a step was given up, since the run was asked to stop."""


@dataclass
class Progress:
    """The counters of a run, all of them in every checkpoint.

    `seconds` of training and its records, `images` seen in them; `recorded_…` are those of the last training record.
    `best` is the monitored value at `best_step`, `best_values` all that was measured there (without a monitor, the
    latest measurement), `last_values` the latest measurement.
    """

    step: int = 0
    images: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int | None = None
    best_epoch: int | None = None
    best_values: dict[str, float] = field(default_factory=dict)
    last_values: dict[str, float] = field(default_factory=dict)
    recorded_images: int = 0
    recorded_seconds: float = 0.0
    without_improvement: int = 0
    skipped: list[int] = field(default_factory=list)  # steps that made no update, since one gave a non-finite loss


@dataclass
class TrainState:
    """The network, and all that trains it."""

    network: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    execution: Execution
    scaler: torch.amp.GradScaler
    ema: EMA | Lookahead | None = None
    make_step: Callable[[], Step] = lambda: train_step
    freeze: Callable[[int], bool] = lambda epoch: False  # in that epoch; returns whether anything changed
    exchange: Alone = field(default_factory=Alone)  # with the other ranks, where there are any

    def __post_init__(self) -> None:
        self.step = self.make_step()

    def begin_epoch(self, epoch: int) -> None:
        """Freezes what does not train in it, counted from 0; a step that was captured or compiled is made anew."""
        if self.freeze(epoch):
            self.step = self.make_step()

    @property
    def evaluated(self) -> nn.Module:
        """The network that validation sees: the averaged one where there is one."""
        return self.network if self.ema is None else self.ema.network

    def state_dict(self) -> dict[str, Any]:
        """Everything but the network's weights."""
        return {
            "optimizer": optimizer_state(self.optimizer),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "loss": self.loss.state_dict() if isinstance(self.loss, nn.Module) else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        if isinstance(self.loss, nn.Module):
            self.loss.load_state_dict(state["loss"])


class Trainer:
    """Trains until the settings end the run, patience runs out or `stop` returns a status.

    `stop` is polled after each step and each validation and returns None, or the status to end with: `completed`,
    which validates first, `interrupted` or `pruned`. A checkpoint is written before the loop ends. `log` takes the
    records. `meter` measures the held-out splits beside loss and accuracy, and what `examine` makes watches validation
    where a snapshot is due. `profiler` watches the first steps. `features` returns what serves an epoch (from 0) in
    place of images, or None; it may raise `StoppedError`. Among several ranks, each of which calls the same methods,
    any of them stops all, and the first alone writes.
    """

    def __init__(
        self,
        train_state: TrainState,
        train: Loader,
        held_out: Mapping[str, Loader],
        settings: TrainerSettings,
        checkpoints: Checkpoints,
        log: Callable[[Record], None],
        *,
        meta: Mapping[str, Any],
        meter: Meter | None = None,
        examine: Callable[[], Examiner] | None = None,
        profiler: torch.profiler.profile | None = None,
        stop: Callable[[], str | None] = lambda: None,
        features: Callable[[int], Served | None] = lambda epoch: None,
    ) -> None:
        self.train_state = train_state
        self.images = self.served = Served(train, held_out, lambda network: network)
        self.network = train_state.network  # what runs
        self.features = features
        self.settings = settings
        self.checkpoints = checkpoints
        self.log = log
        self.meta = meta
        self.meter = meter
        self.examine = examine
        self.profiler = profiler
        self.stop = stop
        self.wanted: str | None = None  # what `stop` returned on this rank
        train_state.exchange.wishes = self._wishes
        self.takes_snapshots = settings.snapshot_every_epochs is not None
        self.shown: Batch | None = None  # images of the validation split, the same in every snapshot
        self.progress = Progress()
        self.tally = Tally()
        self.total_steps = settings.total_steps(len(train))
        self.on_cuda = any(parameter.device.type == "cuda" for parameter in train_state.network.parameters())
        # a GPU computes the next step while the record of this one is read; but fp16's scale has to be read at once
        self.reads_later = self.on_cuda and not train_state.scaler.is_enabled()
        self._unread: tuple[int, float, Tensor | None] | None = None

    def fit(self) -> str:
        """Runs to the end; returns `completed` or what `stop` did. Raises `TrainingError` for a non-finite loss."""
        with self.profiler or nullcontext():
            return self._fit()

    def close(self) -> None:
        """Stops the loaders' worker processes."""
        for served in (self.images, self.served):
            for loader in (served.train, *served.held_out.values()):
                loader.close()

    @property
    def train(self) -> Loader:
        return self.served.train

    def _fit(self) -> str:
        self._clock = time.perf_counter()
        status = "completed" if self._is_complete() or self._is_over_time() else None
        while status is None:
            try:
                self._begin_epoch()
            except StoppedError:
                self._save()
                return self.stop() or "interrupted"
            for batch in self.train:
                if self.progress.step == 0 and self.takes_snapshots:
                    first = sample(self._images_of(batch), TRAINING_IMAGES)
                    self.log(TrainingImages(0, first.x_NCHW, first.target))
                images = sample(self._images_of(batch)) if self._snapshot_is_due() else None
                self._step(batch)
                if self.profiler:
                    self.profiler.step()
                status = self._after_step(images)
                if status:
                    break
            else:
                self.train.set_epoch(self.train.epoch + 1)
        if status == "completed" and self.tally.count > 0:
            # the steps after the last record; the tally keeps them for a run that is lengthened
            self._log("train", self._window(), final=True)
        return status

    def _begin_epoch(self) -> None:
        """Freezes what does not train in it, and changes between images and features where one of them is due."""
        self.train_state.begin_epoch(self.train.epoch)
        served = self.features(self.train.epoch) or self.images
        if served is not self.served:
            served.train.load_state_dict(self.train.state_dict())
            self.train.close()
            self.served, self.network = served, served.runs(self.train_state.network)
            self.train_state.step = self.train_state.make_step()  # a graph is of what ran before

    def _images_of(self, batch: Batch) -> Batch:
        """The images of a batch that may be features, the latest of the loader."""
        if self.served is self.images:
            return batch
        loader, place = self.images.train, self.train.state_dict()
        loader.load_state_dict({**place, "position": place["position"] - 1})
        images = next(iter(loader))
        loader.close()
        return images

    def _step(self, batch: Batch) -> None:
        train_state, progress = self.train_state, self.progress
        if progress.step + 1 in progress.skipped:
            self._read_record()
            train_state.schedule.step()
            progress.step += 1
            return
        record = due(progress.step + 1, self.settings.log_every)
        lr = train_state.optimizer.param_groups[0]["lr"]
        probe = self._probe(batch) if due(progress.step + 1, self.settings.watch_every) else None
        take_step = train_step if probe else train_state.step  # a probe sees nothing of a graph
        with probe or nullcontext():
            result = take_step(
                self.network,
                train_state.loss,
                train_state.optimizer,
                batch,
                execution=train_state.execution,
                scaler=train_state.scaler,
                accumulate=self.settings.accumulate,
                clip_norm=self.settings.clip_norm,
                measure_norm=record,
                exchange=train_state.exchange,
            )
        train_state.schedule.step()
        if train_state.ema:
            train_state.ema.update(train_state.network)
        self._read_record()  # of the step before
        progress.step += 1
        progress.images += batch.whole
        self.tally.add(result.loss, result.correct, batch.index_N, batch.whole)
        if batch.x_NCHW.device.type == "cpu" and not math.isfinite(result.loss):
            self._check_losses()  # on CPU reading the loss is free, so the error names the step at once
        self._count_time()
        if record:
            self._record(lr, result.gradient_norm)
            if probe or not self.reads_later:
                self._read_record()
        descent = probe and probe.read(result, progress.step, self.epoch, self.settings.watch_top)
        if descent:
            self.log(descent)

    def _probe(self, batch: Batch) -> Probe:
        train_state, settings = self.train_state, self.settings
        return Probe(
            self.network,
            train_state.loss,
            train_state.optimizer,
            train_state.execution,
            batch,
            accumulate=settings.accumulate,
            clip_norm=settings.clip_norm,
        )

    def _after_step(self, images: Batch | None) -> str | None:
        """Validates and saves where either is due; returns the status the run ends with, or None.

        `images` are for a snapshot, where one is due. None of this counts as training time; records between steps do.
        """
        exchange = self.train_state.exchange
        skipped = self.progress.step in self.progress.skipped  # and nothing was exchanged
        status = self._status(exchange.agree if skipped else exchange.agreed)
        validate = status == "completed" or self._validation_is_due()
        cadences = (self.settings.checkpoint_every, self.settings.keep_every)
        save = validate or status is not None or any(due(self.progress.step, every) for every in cadences)
        if not save and images is None:
            return None
        self._catch_up()
        if validate:
            self._validate(examined=images is not None)
        if images is not None:
            self._log_snapshot(self.shown or images)
        if validate:
            status = self._status(exchange.agree) or status
        if save:
            self._save(self._score() if validate else None)
        self._clock = time.perf_counter()
        return status

    def _snapshot_is_due(self) -> bool:
        """Asked before a step: after the last one of an epoch at the cadence, and of the run."""
        every, ends_epoch = self.settings.snapshot_every_epochs, self.train.position == len(self.train)
        last = self.progress.step + 1 == self.total_steps
        return self.takes_snapshots and (last or (ends_epoch and due(self.epoch, every)))

    def _log_snapshot(self, images: Batch) -> None:
        """Logs one, or reports once why there are none: a figure must not end a run."""
        if not is_first():
            return
        state, step = self.train_state, self.progress.step
        try:
            self.log(take_snapshot(state.network, state.loss, state.execution, images, step=step, epoch=self.epoch))
        except Exception as error:  # whatever a user's own module raises when it is copied or evaluated
            self.takes_snapshots = False
            self.log(Notice(f"no snapshots: {type(error).__name__}: {first_line(error)}"))

    def _log_examined(self, examiner: Examiner, split: str) -> None:
        self.shown = self.shown or examiner.first
        if examiner.error is None:
            self.log(examiner.read(split, self.progress.step, self.epoch))
        else:
            self.examine = None
            self.log(Notice(f"no mistakes are shown: {type(examiner.error).__name__}: {first_line(examiner.error)}"))

    def _validation_is_due(self) -> bool:
        ends_epoch = self.train.position == len(self.train)
        return due(self.progress.step, self.settings.validate_every_steps) or (
            ends_epoch and due(self.epoch, self.settings.validate_every_epochs)
        )

    def _catch_up(self) -> None:
        """Waits for a GPU to finish the steps so far, which counts as training time."""
        self._read_record()
        if self.on_cuda:
            self._check_losses()
            self._count_time()

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.progress.seconds += now - self._clock
        self._clock = now

    def _status(self, agreed: Callable[[], Sequence[bool]]) -> str | None:
        """The status to end with, if any; `completed` precedes what `stop` returns. `agreed` is asked on all ranks."""
        if self._is_complete():
            return "completed"
        over_time, stopped = agreed()
        if over_time:
            return "completed"
        return (self.wanted or "interrupted") if stopped else None

    def _wishes(self) -> list[bool]:
        """What this rank wants of all: to end by the time limit, which the first rank measures; to stop."""
        over_time = is_first() and self._is_over_time()
        if not over_time:
            self.wanted = self.wanted or self.stop()
        return [over_time, self.wanted is not None]

    def _is_complete(self) -> bool:
        """At the last step, or where patience has run out: the same on all ranks."""
        progress, settings = self.progress, self.settings
        return (self.total_steps is not None and progress.step >= self.total_steps) or (
            settings.patience is not None and progress.without_improvement >= settings.patience
        )

    def _is_over_time(self) -> bool:
        return self.settings.max_time is not None and self.progress.seconds >= self.settings.max_time

    @property
    def epoch(self) -> int:
        """The epoch that the last step belonged to, counted from 1."""
        return self.train.epoch + 1

    @property
    def total_epochs(self) -> int | None:
        """Epochs that the run will have begun at its end, where its length is known."""
        return None if self.total_steps is None else -(-self.total_steps // len(self.train))

    def _record(self, lr: float, gradient_norm: Tensor | None) -> None:
        """Starts the transfer of what the training record of the steps up to here needs."""
        if gradient_norm is not None:
            gradient_norm = gradient_norm.to("cpu", non_blocking=self.on_cuda)
        self.tally.send()
        self._unread = (self.epoch, lr, gradient_norm)

    def _read_record(self) -> None:
        """Logs the pending training record, if any; no step has been counted since."""
        if self._unread is None:
            return
        (epoch, lr, gradient_norm), self._unread = self._unread, None
        self._check_losses()
        values = self._window() | {"lr": lr}
        if gradient_norm is not None and gradient_norm.isfinite():  # else fp16's scaler has skipped the update
            values["gradient_norm"] = float(gradient_norm)
        if self.train_state.scaler.is_enabled():
            values["loss_scale"] = self.train_state.scaler.get_scale()
        self.tally.reset()
        self.progress.recorded_images, self.progress.recorded_seconds = self.progress.images, self.progress.seconds
        self.log(Metrics(self.progress.step, epoch, "train", values))

    def _window(self) -> dict[str, float]:
        """What was measured since the last training record."""
        progress = self.progress
        spent = max(progress.seconds - progress.recorded_seconds, 1e-9)
        rate = (progress.images - progress.recorded_images) / spent
        return {**self.tally.read(), "images_per_second": rate, "seconds": progress.seconds}

    def _validate(self, *, examined: bool) -> None:
        """Records every held-out split, and whether it is the best so far."""
        values: dict[str, float] = {}
        train_state = self.train_state
        network = self.served.runs(train_state.evaluated)
        for split, loader in self.served.held_out.items():
            loader.set_epoch(0)
            examiner = self.examine() if self.examine and examined and split == "val" else None
            images = self.images.held_out[split]
            batches = examiner.watch(images) if examiner else loader
            if examiner and loader is not images:  # which shows images: a pass of its own
                images.set_epoch(0)
                evaluate(train_state.evaluated, train_state.loss, batches, train_state.execution, collector=examiner)
                measured = evaluate(network, train_state.loss, loader, train_state.execution, self.meter)
            else:
                measured = evaluate(
                    network, train_state.loss, batches, train_state.execution, self.meter, collector=examiner
                )
            self._log(split, measured)
            if examiner:
                self._log_examined(examiner, split)
            values.update({f"{metric}/{split}": value for metric, value in measured.items()})
        self.progress.last_values = values
        self._judge(values)

    def _judge(self, values: dict[str, float]) -> None:
        """Moves `best` to a better monitored value, or to a lower loss at an equal one, which is no improvement."""
        progress, monitor = self.progress, self.settings.monitor
        if monitor is None:
            self._set_best(values)
            return
        if self._improved(values[monitor]):
            progress.best, progress.without_improvement = values[monitor], 0
            self._set_best(values)
            return
        loss = _loss_beside(monitor)
        if values[monitor] == progress.best and values[loss] < progress.best_values[loss]:
            self._set_best(values)
        progress.without_improvement += 1
        if progress.without_improvement == self.settings.patience:
            self.log(Notice(f"{monitor} has not improved for {self.settings.patience} validations"))

    def _improved(self, value: float) -> bool:
        sign, best = -1 if self.lower_is_better else 1, self.progress.best
        return math.isfinite(value) and (best is None or sign * (value - best) > self.settings.min_delta)

    def _set_best(self, values: dict[str, float]) -> None:
        progress = self.progress
        progress.best_step, progress.best_epoch, progress.best_values = progress.step, self.epoch, values

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller value of the monitor is the better one, as of the loss."""
        falling = ["loss", *(self.meter.lower_is_better if self.meter else ())]
        return (self.settings.monitor or "").split("/")[0] in falling

    def _log(self, split: str, values: dict[str, float], *, final: bool = False) -> None:
        self.log(Metrics(self.progress.step, self.epoch, split, values, final))

    def _check_losses(self) -> None:
        """Waits for the device. Raises `NonFiniteError` for a loss that is not finite."""
        bad = self.tally.synchronize()
        if bad is None or self.train_state.scaler.is_enabled():  # fp16's scaler skips such a step and halves its scale
            return
        ago, images = bad[0], sorted(itertools.chain(*gathered(bad[1])))
        shown, step = f"{listing(images[:8])}{', …' if len(images) > 8 else ''}", self.progress.step - ago
        raise NonFiniteError(
            step,
            f"the loss of step {step} is not a finite number; its training images are {shown}. "
            f"No checkpoint holds weights that it touched. Try a smaller optimizer.lr or trainer.clip_norm=1",
        )

    def _score(self) -> list[float] | None:
        """The latest measurement of the monitor, greater is better; then of the loss. Ends at what is not finite."""
        monitor, values = self.settings.monitor, self.progress.last_values
        if monitor is None:
            return None
        score = [-values[monitor] if self.lower_is_better else values[monitor], -values[_loss_beside(monitor)]]
        return list(itertools.takewhile(math.isfinite, score))

    def _save(self, score: list[float] | None = None) -> None:
        self._check_losses()
        train_state = self.train_state
        norms = torch._foreach_norm([p.detach() for p in train_state.network.parameters()])
        if norms and not bool(torch.stack(norms).isfinite().all()):
            raise NonFiniteError(
                self.progress.step,
                f"the weights after step {self.progress.step} are not finite: no checkpoint is written. "
                f"Try a smaller optimizer.lr or trainer.clip_norm=1",
            )
        state = self.state_dict()  # of all ranks
        if is_first():
            self.checkpoints.save(
                self.progress.step,
                train_state.network.state_dict(),
                state,
                self.meta,
                ema=train_state.ema.network.state_dict() if train_state.ema else None,
                best_step=self.progress.best_step,
                score=score,
            )

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, except the network's weights; every rank has to ask for it."""
        generators, *others = gathered(capture_generators())
        return {
            "train_state": self.train_state.state_dict(),
            "progress": asdict(self.progress),
            "train": self.train.state_dict(),
            "tally": self.tally.state_dict(),
            "generators": generators,
            **({"generators_of_ranks": others} if others else {}),  # of the second rank, the third, …
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Another rank than the first, of which nothing was saved, keeps its generators."""
        self.train_state.load_state_dict(state["train_state"])
        self.progress = Progress(**state["progress"])
        self.train.load_state_dict(state["train"])
        self.tally.load_state_dict(state["tally"])
        own = [state["generators"], *state.get("generators_of_ranks", [])][rank() :]
        if own:
            restore_generators(own[0])


def _loss_beside(monitor: str) -> str:
    """`loss/val` for `accuracy/val`."""
    return f"loss/{monitor.split('/')[1]}"


def due(count: int, every: int | None) -> bool:
    """The one cadence: at every `every`-th count; never for None."""
    return every is not None and count % every == 0
