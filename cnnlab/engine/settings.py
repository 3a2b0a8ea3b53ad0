"""How long, how often and how far a run trains."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cnnlab.engine.evaluation import VIEWS
from cnnlab.engine.execution import AUTO
from cnnlab.engine.lookahead import LookaheadSettings
from cnnlab.runtime.checks import integer, number, one_of
from cnnlab.runtime.errors import ArgumentError, did_you_mean, listing

PARALLEL = ("average", "ddp")


@dataclass(frozen=True)
class TrainerSettings:
    """The keys under `trainer`: length, cadences and stopping. Raises `ArgumentError`.

    A step is one optimizer update, whatever `accumulate` is. `epochs` may be a fraction: 9.9 epochs of 50 steps are 495
    steps, and of 7 steps 70, rounded up. `max_time` is in seconds of training, over all the times that the run was
    resumed. `ema` is the decay of the averaged weights, `lookahead` another average, to which the trained weights
    return. `tta` is the test-time augmentation of the test split at the end of the run. `patience` counts validations
    without a better `monitor`. With `on_nonfinite` rollback, a loss that is not finite returns to the last checkpoint.
    The newest two checkpoints are kept, those at multiples of `keep_every`, and the `keep_best` with the best monitor.
    `lr_find` suggests a learning rate and ends the run before its first step. `profile` reports where the time of the
    first steps goes. A `Snapshot` is logged at the end of every `snapshot_every_epochs`-th epoch and of the run, and a
    `Descent` every `watch_every` steps, with the `watch_top` weights that contribute most. Several ranks average their
    gradients in one message, or in `parallel` ddp in buckets; with `sync_batch_norm` they normalise by the statistics
    of all their images. A rank that does not answer within `collective_timeout` seconds is lost. `features` of frozen
    first layers are stored where images are not augmented, for so many augmented views of each, or never (false).
    """

    epochs: float | None
    max_steps: int | None
    max_time: float | None
    accumulate: int
    clip_norm: float | None
    ema: float | None
    log_every: int
    validate_every_epochs: int | None
    validate_every_steps: int | None
    checkpoint_every: int | None
    monitor: str | None
    monitor_test: bool
    patience: int | None
    min_delta: float
    profile: bool = False
    on_nonfinite: str = "stop"
    lr_find: bool = False
    keep_every: int | None = None
    keep_best: int = 1
    snapshot_every_epochs: int | None = None
    watch_every: int | None = None
    watch_top: int = 10
    lookahead: LookaheadSettings | None = None
    tta: str = "none"
    parallel: str = "average"
    sync_batch_norm: bool = False
    collective_timeout: float = 50.0  # torchrun waits 30 more for a process that is stopped
    features: bool | str | int = AUTO

    def __post_init__(self) -> None:
        for name in (
            "validate_every_epochs",
            "validate_every_steps",
            "checkpoint_every",
            "keep_every",
            "patience",
            "snapshot_every_epochs",
            "watch_every",
        ):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), 1)
        if self.epochs is not None:
            number("epochs", self.epochs, 0, open_minimum=True)
        if self.max_steps is not None:
            integer("max_steps", self.max_steps, 0)
        if self.max_time is not None:
            number("max_time", self.max_time, 0, open_minimum=True)
        if self.epochs is None and self.max_steps is None and self.max_time is None:
            raise ArgumentError("epochs", "expected epochs, max_steps or max_time, received none of them")
        integer("accumulate", self.accumulate, 1)
        integer("log_every", self.log_every, 1)
        integer("watch_top", self.watch_top, 1)
        integer("keep_best", self.keep_best, 1)
        number("min_delta", self.min_delta, 0)
        if self.clip_norm is not None:
            number("clip_norm", self.clip_norm, 0, open_minimum=True)
        if self.ema is not None:
            number("ema", self.ema, 0, 1, open_maximum=True)
        self._check_lookahead()
        one_of("lr_find", self.lr_find, (False, True))
        one_of("tta", self.tta, tuple(VIEWS))
        one_of("parallel", self.parallel, PARALLEL)
        one_of("sync_batch_norm", self.sync_batch_norm, (False, True))
        number("collective_timeout", self.collective_timeout, 1)
        one_of("on_nonfinite", self.on_nonfinite, ("stop", "rollback"))
        self._check_features()
        for name, chosen in (("patience", self.patience is not None), ("keep_best", self.keep_best > 1)):
            if chosen and self.monitor is None:
                raise ArgumentError(name, "expected a monitor beside it, received monitor=null")

    def _check_features(self) -> None:
        given = self.features
        if given is not False and given != AUTO and (type(given) is not int or given < 1):
            raise ArgumentError(
                "features",
                f"expected auto, false, or how many augmented views of each image are stored, 1 or more, received "
                f"{given!r}",
            )

    def _check_lookahead(self) -> None:
        if self.lookahead is None:
            return
        if self.ema is not None:
            message = f"expected one average of the weights, received trainer.ema={self.ema} beside it"
            raise ArgumentError("lookahead", message)
        if self.lookahead.power and self.epochs is None and self.max_steps is None:
            message = "it needs the run's length: expected trainer.epochs or trainer.max_steps, received max_time alone"
            raise ArgumentError("lookahead.power", message)

    @property
    def views(self) -> int | None:
        """How many augmented views of each image have their features stored; None where images are not augmented."""
        return self.features if isinstance(self.features, int) and self.features else None

    def check_monitor(self, metrics: Sequence[str]) -> None:
        """Raises `ArgumentError` for a monitor that is none of loss, accuracy and `metrics` on a measured split."""
        splits = ("val", "test") if self.monitor_test else ("val",)
        legal = [f"{metric}/{split}" for split in splits for metric in ("accuracy", "loss", *metrics)]
        if self.monitor is not None and self.monitor not in legal:
            raise ArgumentError(
                "monitor",
                f"expected one of {listing(legal)} or null, received {self.monitor!r};"
                f"{did_you_mean(self.monitor, legal)}".rstrip(";"),
            )

    def total_steps(self, steps_per_epoch: int) -> int | None:
        """Updates in the whole run, by epochs or max_steps, whichever is less; None where only time limits it."""
        limits = [] if self.epochs is None else [whole_steps(self.epochs, steps_per_epoch)]
        limits += [] if self.max_steps is None else [self.max_steps]
        return min(limits) if limits else None

    def validations(self, step: int, steps_per_epoch: int) -> int:
        """How many validations fall on the first `step` steps by their cadence, that at the end of the run aside."""
        every = self.validate_every_steps
        by_epoch = None if self.validate_every_epochs is None else self.validate_every_epochs * steps_per_epoch
        count = sum(step // cadence for cadence in (every, by_epoch) if cadence)
        return count - (step // math.lcm(every, by_epoch) if every and by_epoch else 0)


def whole_steps(epochs: float, steps_per_epoch: int) -> int:
    """The steps in so many epochs, rounded up."""
    return max(1, math.ceil(epochs * steps_per_epoch - 1e-9))  # 0.07 · 100 is above 7 in floats
