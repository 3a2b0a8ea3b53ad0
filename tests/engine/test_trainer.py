import math
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnlab.components import Component
from cnnlab.data.normalization import Normalization
from cnnlab.data.resident import ResidentLoader
from cnnlab.data.source import Images
from cnnlab.engine import trainer as trainer_module
from cnnlab.engine.checkpoint import Checkpoints
from cnnlab.engine.ema import EMA
from cnnlab.engine.evaluation import evaluate
from cnnlab.engine.examination import Examiner
from cnnlab.engine.execution import Execution
from cnnlab.engine.lookahead import Lookahead, LookaheadSettings
from cnnlab.engine.optimization import build_optimizer
from cnnlab.engine.probe import Probe
from cnnlab.engine.records import Descent, Examined, Metrics, Notice, Record, Snapshot, TrainingImages
from cnnlab.engine.schedule import Factor, Schedule, constant
from cnnlab.engine.settings import TrainerSettings, whole_steps
from cnnlab.engine.step import train_step
from cnnlab.engine.trainer import Trainer, TrainState
from cnnlab.runtime.errors import ArgumentError, TrainingError

CPU = torch.device("cpu")
STEPS_PER_EPOCH = 4  # 8 images, two a batch
COMPARED = ("loss", "accuracy", "lr", "gradient_norm")  # of a training record: all but measured time


def settings(**changes: Any) -> TrainerSettings:
    legal: dict[str, Any] = {
        **dict.fromkeys(("max_steps", "max_time", "clip_norm", "ema", "validate_every_steps", "checkpoint_every")),
        **dict.fromkeys(("accumulate", "log_every", "validate_every_epochs"), 1),
        "epochs": 2,
        "min_delta": 0.0,
        "monitor": "accuracy/val",
        "monitor_test": False,
        "patience": None,
    }
    return TrainerSettings(**{**legal, **changes})


def loader(count: int = 8, batch_size: int = 2, shuffle: bool = True) -> ResidentLoader:
    """1×2×2 images; the pixels of image i are 10·i + 0…3."""
    x_NCHW = (10 * torch.arange(count)[:, None] + torch.arange(4)).to(torch.uint8).view(count, 1, 2, 2)
    images = Images.of(x_NCHW, torch.arange(count) % 2)
    return ResidentLoader(images, Normalization((35.0,), (20.0,)), batch_size, device=CPU, shuffle=shuffle, seed=3)


def judge(output_NK: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    return output_NK.softmax(1), F.cross_entropy(output_NK, target_N, reduction="none")


class Run:
    """A trainer around a tiny network, and the records that it logged."""

    def __init__(
        self,
        folder: Path,
        *,
        network: nn.Module | None = None,
        train: ResidentLoader | None = None,
        lr: float = 0.1,
        factor: Factor = constant(),  # noqa: B008 — a pure function
        interrupted_at: int | None = None,
        stop: Callable[[], str | None] | None = None,
        **changes: Any,
    ) -> None:
        torch.manual_seed(0)
        self.network = network or nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        self.settings = settings(**changes)
        folder.mkdir(exist_ok=True)
        self.checkpoints = Checkpoints(folder / "checkpoints", keep_best=self.settings.keep_best)
        self.records: list[Record] = []
        self.train = train or loader()
        optimizer = build_optimizer(
            Component("optimizer", "sgd", torch.optim.SGD, {"lr": lr, "momentum": 0.9}), self.network, {}
        )
        execution = Execution()
        ema: Any = None if self.settings.ema is None else EMA(self.network, self.settings.ema)
        if self.settings.lookahead:
            ema = Lookahead(self.network, self.settings.lookahead, None)
        schedule, scaler = Schedule(optimizer, factor), execution.scaler(CPU)
        self.train_state = TrainState(self.network, F.cross_entropy, optimizer, schedule, execution, scaler, ema)
        self.trainer = Trainer(
            self.train_state,
            self.train,
            {"val": loader(6, 4, shuffle=False)},
            self.settings,
            self.checkpoints,
            self.records.append,
            meta={"name": "tiny"},
            examine=lambda: Examiner(judge),
            stop=stop or (lambda: "interrupted" if self.progress.step == interrupted_at else None),
        )

    @property
    def progress(self) -> Any:
        return self.trainer.progress

    def resume(self) -> None:
        """Continues from the newest checkpoint in the folder."""
        checkpoint = self.checkpoints.newest_whole()
        assert checkpoint is not None
        self.network.load_state_dict(checkpoint.weights)
        if checkpoint.ema is not None:
            self.train_state.evaluated.load_state_dict(checkpoint.ema)
        self.trainer.load_state_dict(checkpoint.state())

    def metrics(self, split: str) -> list[Metrics]:
        return [record for record in self.records if isinstance(record, Metrics) and record.split == split]

    def steps(self, split: str) -> list[int]:
        return [record.step for record in self.metrics(split)]

    def figures(self) -> list[tuple[Any, ...]]:
        """What was recorded, but for measured time."""
        records = [record for record in self.records if isinstance(record, Metrics)]
        return [(r.step, r.epoch, r.split, r.final, *map(r.values.get, COMPARED)) for r in records]


def assert_same_weights(mine: nn.Module, theirs: nn.Module) -> None:
    assert all(map(torch.equal, mine.state_dict().values(), theirs.state_dict().values()))


def script_validation(monkeypatch: pytest.MonkeyPatch, metric: str, values: Iterable[float]) -> None:
    """Each validation measures the next value of the metric, and 0.5 for the other."""
    coming = iter(values)
    monkeypatch.setattr(
        trainer_module, "evaluate", lambda *arguments, **options: {"loss": 0.5, "accuracy": 0.5, metric: next(coming)}
    )


# how long


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"),
    [(2, 5, 5), (1, 100, 4), (None, 6, 6), (2, None, 8), (None, None, None), (2.6, None, 11), (1e-12, None, 1)],
)
def test_total_steps_is_the_nearest_limit(epochs: float | None, max_steps: int | None, expected: int | None) -> None:
    assert settings(epochs=epochs, max_steps=max_steps, max_time=1.0).total_steps(STEPS_PER_EPOCH) == expected


def test_a_fraction_of_an_epoch_is_rounded_up_to_whole_steps() -> None:
    assert whole_steps(9.9, 48) == 476
    assert whole_steps(0.07, 100) == 7  # 7.000000000000001 in floats


def test_each_epoch_sees_each_image_once_in_another_order(tmp_path: Path) -> None:
    seen: list[int] = []

    def spy(*arguments: Any, **options: Any) -> Any:
        seen.extend(arguments[3].index_N.tolist())
        return train_step(*arguments, **options)

    run = Run(tmp_path, epochs=2)
    run.train_state.step = spy
    run.trainer.fit()
    first, second = seen[:8], seen[8:]
    assert sorted(first) == sorted(second) == list(range(8))
    assert first != second


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Advances by a second each time that it is read."""
    clock = SimpleNamespace(now=0)

    def read() -> int:
        clock.now += 1
        return clock.now

    monkeypatch.setattr(trainer_module, "time", SimpleNamespace(perf_counter=read))
    return clock


@pytest.mark.usefixtures("clock")
def test_max_time_counts_over_resumptions_and_ends_with_a_validation_and_a_checkpoint(tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": None, "max_time": 5.0, "log_every": 2, "validate_every_epochs": None}
    first, second = Run(tmp_path, interrupted_at=2, **options), Run(tmp_path, **options)  # two images a second
    first.trainer.fit()
    second.resume()
    assert second.trainer.fit() == "completed"
    assert second.progress.step == 5
    assert second.steps("val") == second.checkpoints.steps()[-1:] == [5]
    rates = [(record.values["images_per_second"], record.values["seconds"]) for record in second.metrics("train")]
    assert rates == [(2.0, 4), (2.0, 5)]


def test_recording_is_training_time_and_validation_is_not(
    tmp_path: Path, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(*arguments: Any, **options: Any) -> dict[str, float]:
        clock.now += 1000
        return {"loss": 1.0, "accuracy": 0.5}

    def log(record: Record) -> None:
        if isinstance(record, Metrics) and record.split == "train":
            clock.now += 100

    monkeypatch.setattr(trainer_module, "evaluate", evaluate)
    run = Run(tmp_path, epochs=1, log_every=2, validate_every_steps=3)
    run.trainer.log = log
    run.trainer.fit()
    assert run.progress.seconds == 4 + 100  # four steps of a second; the last record comes right before validation


# cadence


@pytest.mark.parametrize(
    ("changes", "validated", "saved", "recorded"),
    [
        ({"validate_every_epochs": 2, "log_every": 5}, [8, 12], [8, 12], [5, 10, 12]),  # and at the end
        ({"validate_every_steps": 3, "checkpoint_every": 5}, [3, 4, 6, 8, 9, 12], [3, 4, 5, 6, 8, 9, 10, 12], None),
        ({"validate_every_epochs": None, "max_steps": 6, "epochs": None, "checkpoint_every": 4}, [6], [4, 6], None),
        ({"validate_every_epochs": None, "max_steps": 6, "epochs": None, "keep_every": 4}, [6], [4, 6], None),
        ({"max_steps": 0}, [], [], None),
    ],
)
def test_validations_checkpoints_and_records_come_at_their_cadence_and_at_the_end(
    tmp_path: Path, changes: dict[str, Any], validated: list[int], saved: list[int], recorded: list[int] | None
) -> None:
    run, found = Run(tmp_path, **{"epochs": 3, **changes}), []
    save = run.checkpoints.save

    def spy(step: int, *arguments: Any, **options: Any) -> None:
        found.append(step)
        save(step, *arguments, **options)

    run.checkpoints.save = spy  # type: ignore[method-assign]
    assert run.trainer.fit() == "completed"
    last = validated[-1] if validated else 0
    assert (run.progress.step, run.progress.images) == (last, 2 * last)
    assert (run.steps("val"), found) == (validated, saved)
    assert run.steps("train") == (recorded if recorded else list(range(1, last + 1)))
    assert all(record.epoch == math.ceil(record.step / STEPS_PER_EPOCH) for record in run.records)  # type: ignore[union-attr]
    assert not saved or run.checkpoints.resolve("last").meta == {"name": "tiny"}


@pytest.mark.parametrize(
    "changes",
    [
        {"log_every": 3, "epochs": 3, "validate_every_epochs": 2},  # records are read in the epoch after theirs
        {"log_every": 4, "epochs": 2},  # and where validation waits for them
        {"log_every": 2, "checkpoint_every": 2, "epochs": 2},
        {"log_every": 1, "epochs": 2, "interrupted_at": 3, "clip_norm": 0.1},
    ],
    ids=str,
)
def test_reading_records_while_the_next_step_computes_moves_none(tmp_path: Path, changes: dict[str, Any]) -> None:
    runs = [Run(tmp_path / str(later), **changes) for later in (False, True)]
    for run, later in zip(runs, (False, True), strict=True):
        run.trainer.reads_later = later
        run.trainer.fit()
    at_once, later_on = (run.figures() for run in runs)
    assert at_once == later_on
    assert len(at_once) >= 3
    states = [run.trainer.state_dict() for run in runs]
    assert states[0]["tally"] == states[1]["tally"]


def test_updates_are_watched_at_their_cadence_and_only_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    enter = Probe.__enter__
    monkeypatch.setattr(Probe, "__enter__", lambda probe: looks.append(run.progress.step + 1) or enter(probe))
    run = Run(tmp_path, watch_every=3, log_every=2)
    run.trainer.fit()
    assert [(record.step, record.epoch) for record in run.records if isinstance(record, Descent)] == [(3, 1), (6, 2)]
    assert looks == [3, 6]


def test_watching_changes_no_weight_and_no_other_record(tmp_path: Path) -> None:
    runs = [Run(tmp_path / str(every), watch_every=every, clip_norm=0.1, ema=0.5) for every in (None, 2)]
    for run in runs:
        run.trainer.fit()
    assert_same_weights(runs[0].network, runs[1].network)
    assert runs[0].figures() == runs[1].figures()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"snapshot_every_epochs": 2, "epochs": 3}, [8, 12]), ({"snapshot_every_epochs": 1, "max_steps": 6}, [4, 6])],
)
def test_snapshots_are_taken_at_their_cadence_and_change_no_bit(
    tmp_path: Path, changes: dict[str, Any], expected: list[int]
) -> None:
    def network() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.ELU(inplace=True), nn.Flatten(), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))

    shown = Run(tmp_path / "shown", network=network(), **changes)
    plain = Run(tmp_path / "plain", network=network(), **(changes | {"snapshot_every_epochs": None}))
    for run in (shown, plain):
        torch.manual_seed(2)
        run.trainer.fit()
    assert [record.step for record in shown.records if isinstance(record, Snapshot)] == expected  # the last at the end
    assert [record.step for record in shown.records if isinstance(record, Examined)] == expected
    first, *later = [record.x_NCHW for record in shown.records if isinstance(record, Snapshot)]
    assert first is not None
    assert all(torch.equal(first, one) for one in later)  # the same images each time
    assert torch.equal(first, next(iter(loader(6, 4, shuffle=False))).x_NCHW)
    (training,) = [record for record in shown.records if isinstance(record, TrainingImages)]
    assert torch.equal(training.x_NCHW, next(iter(loader())).x_NCHW)
    assert not any(isinstance(record, Snapshot | Examined | TrainingImages) for record in plain.records)
    assert_same_weights(shown.network, plain.network)
    assert shown.checkpoints.steps() == plain.checkpoints.steps()


def test_a_network_that_cannot_be_copied_trains_without_snapshots(tmp_path: Path) -> None:
    run = Run(tmp_path, snapshot_every_epochs=1)
    run.network.lock = threading.Lock()  # type: ignore[assignment]
    assert run.trainer.fit() == "completed"
    notices = [record.text for record in run.records if isinstance(record, Notice)]
    assert notices == ["no snapshots: TypeError: cannot pickle '_thread.lock' object"]


# records


def test_a_training_record_is_the_mean_since_the_last_one(tmp_path: Path) -> None:
    run = Run(tmp_path, lr=0.0, log_every=3, train=loader(shuffle=False))  # no step changes the weights
    run.trainer.fit()
    images = next(iter(loader(8, 8, shuffle=False)))
    losses_N = F.cross_entropy(run.network(images.x_NCHW), images.target, reduction="none").tolist()
    correct_N = (run.network(images.x_NCHW).argmax(1) == images.target).tolist()
    windows = ([0, 1, 2, 3, 4, 5], [6, 7, 0, 1, 2, 3], [4, 5, 6, 7])  # steps 1–3, 4–6, 7 and 8, two images each
    for record, rows in zip(run.metrics("train"), windows, strict=True):
        assert record.values["loss"] == pytest.approx(sum(losses_N[row] for row in rows) / len(rows), rel=1e-6)
        assert record.values["accuracy"] == sum(correct_N[row] for row in rows) / len(rows)
    assert [record.final for record in run.metrics("train")] == [False, False, True]


def test_the_norm_of_a_gradient_that_the_scaler_skipped_is_not_recorded(tmp_path: Path) -> None:
    run = Run(tmp_path, epochs=2)
    run.train_state.scaler = torch.amp.GradScaler("cpu", init_scale=3e38)  # halved until 10 times the gradient fits
    run.train_state.loss = lambda output_NK, target: 10 * F.cross_entropy(output_NK, target)
    run.trainer.fit()
    measured = ["gradient_norm" in record.values for record in run.metrics("train")]
    assert (measured[0], measured[-1]) == (False, True)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_recorded_lr_is_that_of_the_update_and_advances_once_a_step(tmp_path: Path, accumulate: int) -> None:
    run = Run(tmp_path, factor=lambda step: 1 / (1 + step), accumulate=accumulate, max_steps=4)
    run.trainer.fit()
    assert [record.values["lr"] for record in run.metrics("train")] == pytest.approx([0.1, 0.1 / 2, 0.1 / 3, 0.1 / 4])


# which is best, when to stop


@pytest.mark.parametrize(
    ("monitor", "metric", "values", "kept"),
    [
        ("accuracy/val", "accuracy", [0.1, 0.5, 0.4, math.nan, 0.2, 0.3], [2, 3, 5, 6]),
        ("accuracy/val", "loss", [0.4, 0.1, math.nan, 0.2, 0.3, 0.3], [2, 4, 5, 6]),
        ("loss/val", "loss", [0.4, 0.1, math.nan, 0.2, 0.3, 0.3], [2, 4, 5, 6]),
    ],
)
def test_the_best_two_by_the_monitor_are_kept_beside_the_newest_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, monitor: str, metric: str, values: list[float], kept: list[int]
) -> None:
    script_validation(monkeypatch, metric, values)
    run = Run(tmp_path, monitor=monitor, max_steps=len(values), validate_every_steps=1, keep_best=2)
    run.trainer.fit()
    assert run.checkpoints.steps() == kept


@pytest.mark.parametrize(
    ("monitor", "metric", "values", "min_delta", "best"),
    [
        ("accuracy/val", "accuracy", [0.1, 0.4, 0.3], 0.0, 2),
        ("accuracy/val", "accuracy", [0.0, 0.0, 0.0], 0.0, 1),  # of equal ones the earlier
        ("accuracy/val", "accuracy", [0.1, 0.2, 0.3, 0.35], 0.15, 3),
        ("accuracy/val", "loss", [0.9, 0.5, 0.7], 0.0, 2),  # of equal accuracies the lower loss
        ("accuracy/val", "loss", [0.5, 0.5, math.nan], 0.0, 1),  # then the earlier step
        ("loss/val", "loss", [0.9, 0.2, 0.3], 0.0, 2),
        ("loss/val", "loss", [math.nan, 0.5, 0.6], 0.0, 2),
        ("loss/val", "loss", [0.5, math.nan, 0.6], 0.0, 1),
        (None, "loss", [0.1, 0.2, 0.3], 0.0, 3),
    ],
)
def test_best_is_the_step_with_the_best_monitor(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    monitor: str | None,
    metric: str,
    values: list[float],
    min_delta: float,
    best: int,
) -> None:
    script_validation(monkeypatch, metric, values)
    run = Run(tmp_path, monitor=monitor, max_steps=len(values), validate_every_steps=1, min_delta=min_delta)
    run.trainer.fit()
    assert run.progress.best_step == run.checkpoints.named("best") == best
    assert run.checkpoints.named("last") == len(values)
    assert run.progress.best_values[f"{metric}/val"] == values[best - 1]
    assert run.progress.last_values[f"{metric}/val"] is values[-1]
    assert run.progress.best == (run.progress.best_values[monitor] if monitor else None)


def test_the_best_checkpoint_has_the_weights_that_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies, seen = iter([0.1, 0.9, 0.2, 0.3, 0.4]), []

    def measure(network: nn.Module, *arguments: Any, **options: Any) -> dict[str, float]:
        seen.append(network.state_dict()["1.weight"].clone())
        return {"loss": 0.5, "accuracy": next(accuracies)}

    monkeypatch.setattr(trainer_module, "evaluate", measure)
    run = Run(tmp_path, max_steps=5, validate_every_steps=1)
    run.trainer.fit()
    assert torch.equal(run.checkpoints.resolve("best").weights["1.weight"], seen[1])


@pytest.mark.parametrize(
    ("patience", "metric", "values", "last"),
    [
        (1, "accuracy", [0.5, 0.4], 2),
        (2, "accuracy", [0.5, 0.4, 0.6, 0.6, 0.6], 5),  # a better one starts the count anew, a tie does not
        (2, "loss", [0.5, 0.4, 0.3, 0.2], 3),  # nor does a lower loss at the same accuracy
        (3, "accuracy", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], 8),
    ],
)
def test_patience_ends_a_run_that_no_longer_improves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int, metric: str, values: list[float], last: int
) -> None:
    script_validation(monkeypatch, metric, values)
    run = Run(tmp_path, patience=patience, epochs=2, validate_every_steps=1)
    assert run.trainer.fit() == "completed"
    assert run.progress.step == last == run.checkpoints.named("last")
    reported = Notice(f"accuracy/val has not improved for {patience} validations") in run.records
    assert reported is (last < 8)


def test_validation_sees_the_averaged_weights_where_there_are_any(tmp_path: Path) -> None:
    run = Run(tmp_path, ema=0.9, epochs=1)
    run.trainer.fit()
    ema, checkpoint = run.train_state.ema, run.checkpoints.resolve("best")
    assert ema is not None
    expected, raw = (
        evaluate(network, F.cross_entropy, loader(6, 4, shuffle=False), Execution())
        for network in (ema.network, run.network)
    )
    assert run.metrics("val")[0].values == expected != raw
    assert ema.updates == 4
    assert torch.equal(checkpoint.inference_weights["1.weight"], ema.network.state_dict()["1.weight"])
    assert torch.equal(checkpoint.weights["1.weight"], run.network.state_dict()["1.weight"])


def test_validation_sees_the_slow_weights_of_lookahead_and_the_trained_ones_return_to_them(tmp_path: Path) -> None:
    run = Run(tmp_path, lookahead=LookaheadSettings(every=3), epochs=1)
    run.trainer.fit()  # four steps: the trained weights are one ahead
    slow, checkpoint = run.train_state.evaluated, run.checkpoints.resolve("best")
    assert run.metrics("val")[0].values == evaluate(slow, F.cross_entropy, loader(6, 4, shuffle=False), Execution())
    assert torch.equal(checkpoint.inference_weights["1.weight"], slow.state_dict()["1.weight"])
    assert not torch.equal(checkpoint.weights["1.weight"], checkpoint.inference_weights["1.weight"])
    returned = Run(tmp_path / "three", lookahead=LookaheadSettings(every=3), max_steps=3)
    returned.trainer.fit()
    assert_same_weights(returned.network, returned.train_state.evaluated)
    assert_same_weights(returned.network, slow)


# freezing


def test_what_is_frozen_changes_where_an_epoch_begins_and_the_step_is_made_anew(tmp_path: Path) -> None:
    """Frozen now: no gradient, no weight decay, no momentum."""
    run, weights, epochs = Run(tmp_path, epochs=3, validate_every_epochs=None), [], []
    weight = run.network[1].weight

    def freeze(epoch: int) -> bool:
        epochs.append(epoch)
        changed = weight.requires_grad == (epoch == 1)
        weight.requires_grad_(epoch != 1)
        return changed

    def make_step() -> Any:
        made = len(weights)
        weights.append([])

        def step(*arguments: Any, **options: Any) -> Any:
            result = train_step(*arguments, **options)
            weights[made].append(weight.detach().clone())
            return result

        return step

    run.train_state.freeze, run.train_state.make_step = freeze, make_step
    run.train_state.step = make_step()
    run.trainer.fit()
    assert epochs == [0, 1, 2]
    assert [len(steps) for steps in weights] == [4, 4, 4]
    frozen_at = weights[0][-1]
    assert all(torch.equal(one, frozen_at) for one in weights[1])
    assert not torch.equal(weights[2][0], frozen_at)


# interruption, resumption


@pytest.mark.parametrize(
    ("stopped_at", "status", "ended", "validated"),
    [(3, "interrupted", "interrupted", []), (2, "completed", "completed", [2]), (4, "interrupted", "completed", [4])],
)
def test_a_run_that_is_stopped_is_saved_and_validated_if_it_is_complete(
    tmp_path: Path, stopped_at: int, status: str, ended: str, validated: list[int]
) -> None:
    run = Run(tmp_path, epochs=1, stop=lambda: status if run.progress.step == stopped_at else None)
    assert run.trainer.fit() == ended
    assert run.checkpoints.steps() == [stopped_at]
    assert run.steps("val") == validated


def test_stop_is_polled_after_each_step_and_each_validation(tmp_path: Path) -> None:
    polled: list[tuple[int, int]] = []

    def stop() -> str | None:
        polled.append((run.progress.step, len(run.steps("val"))))
        return "pruned" if polled[-1] == (3, 1) else None

    run = Run(tmp_path, stop=stop, validate_every_steps=3)
    assert run.trainer.fit() == "pruned"
    assert polled == [(1, 0), (2, 0), (3, 0), (3, 1)]
    assert run.checkpoints.steps() == [3]


@pytest.mark.parametrize("interrupted_at", [3, 4, 5])
def test_a_resumed_run_ends_with_the_same_weights_and_records(tmp_path: Path, interrupted_at: int) -> None:
    def network() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))

    def run(name: str, **changes: Any) -> Run:
        return Run(tmp_path / name, network=network(), ema=0.5, log_every=3, factor=lambda step: 0.9**step, **changes)

    whole, first, second = run("whole"), run("parts", interrupted_at=interrupted_at), run("parts")
    torch.manual_seed(7)
    whole.trainer.fit()
    torch.manual_seed(7)
    assert first.trainer.fit() == "interrupted"
    torch.manual_seed(999)  # another process's generator is elsewhere
    second.resume()
    assert second.trainer.fit() == "completed"

    assert first.figures() + second.figures() == whole.figures()
    assert_same_weights(second.network, whole.network)
    assert_same_weights(second.train_state.evaluated, whole.train_state.evaluated)
    assert (second.progress.best, second.progress.best_step) == (whole.progress.best, whole.progress.best_step)


def test_a_resumed_run_keeps_its_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script_validation(monkeypatch, "accuracy", [0.5, 0.4, 0.3])
    first = Run(tmp_path, patience=2, validate_every_steps=1, interrupted_at=2)
    assert first.trainer.fit() == "interrupted"
    second = Run(tmp_path, patience=2, validate_every_steps=1)
    second.trainer.load_state_dict(first.trainer.state_dict())
    second.trainer.fit()
    assert second.progress.step == 3


class Wandering(nn.Module):
    """Cross-entropy that follows a running mean of its own values, in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.0))

    def forward(self, output_NK: Tensor, target: Tensor) -> Tensor:
        loss = F.cross_entropy(output_NK, target)
        if self.training:
            self.mean.lerp_(loss.detach(), 0.5)
        return loss * (1 + self.mean)


def test_the_state_of_a_loss_is_in_the_checkpoint(tmp_path: Path) -> None:
    whole, first, second = Run(tmp_path / "a"), Run(tmp_path / "b", interrupted_at=3), Run(tmp_path / "b")
    for run in (whole, first, second):
        run.train_state.loss = Wandering()
    whole.trainer.fit()
    first.trainer.fit()
    second.resume()
    second.trainer.fit()
    assert_same_weights(second.network, whole.network)


def test_resuming_a_finished_run_records_its_last_steps_as_before(tmp_path: Path) -> None:
    run, resumed = Run(tmp_path, log_every=3, max_steps=7), Run(tmp_path, log_every=3, max_steps=7)
    run.trainer.fit()
    resumed.resume()
    assert resumed.trainer.fit() == "completed"
    assert resumed.records == run.records[-1:]


# what is no number


@pytest.mark.parametrize(
    ("log_every", "reads_later", "batch_size", "images"),
    [(1, False, 2, "4, 5"), (100, False, 2, "4, 5"), (2, True, 12, "24, 25, 26, 27, 28, 29, 30, 31, …")],
)
def test_a_loss_that_is_no_number_names_its_step_and_images_and_leaves_the_checkpoints_finite(
    tmp_path: Path, log_every: int, reads_later: bool, batch_size: int, images: str
) -> None:
    train = loader(4 * batch_size, batch_size, shuffle=False)
    run, factors = Run(tmp_path, train=train, log_every=log_every, checkpoint_every=2), iter([1.0, 1.0, math.nan])
    run.trainer.reads_later = reads_later
    run.train_state.loss = lambda output_NK, target: F.cross_entropy(output_NK, target) * next(factors)
    with pytest.raises(TrainingError, match=f"the loss of step 3 is not a finite number; .* images are {images}\\."):
        run.trainer.fit()
    assert run.checkpoints.steps() == [2]
    assert all(bool(weight.isfinite().all()) for weight in run.checkpoints.resolve("last").weights.values())


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, max_steps=1)
    weight = run.network.get_parameter("1.weight")  # the loss of the first step is finite, its update overflows
    monkeypatch.setattr(run.train_state.optimizer, "step", lambda: weight.data.fill_(math.inf))
    with pytest.raises(TrainingError, match="the weights after step 1 are not finite"):
        run.trainer.fit()
    assert run.checkpoints.steps() == []


# settings


def test_an_illegal_value_is_refused_by_its_name() -> None:
    positive = ("epochs", "max_time", "accumulate", "clip_norm", "log_every", "validate_every_epochs", "patience")
    positive += ("validate_every_steps", "checkpoint_every", "watch_every", "snapshot_every_epochs", "watch_top")
    positive += ("keep_every", "keep_best")
    others = (
        {"keep_best": 2, "monitor": None},
        {"epochs": None},
        {"max_steps": -1},
        {"ema": 1.0},
        {"patience": 3, "monitor": None},
        {"min_delta": -0.1},
    )
    for changes in (*({name: 0} for name in positive), *others):
        with pytest.raises(ArgumentError) as caught:
            settings(**changes)
        assert caught.value.argument == next(iter(changes))


def test_legal_values_are_taken() -> None:
    settings(epochs=None, max_time=0.5, max_steps=0, ema=0.0, validate_every_epochs=None)
    settings(epochs=None, max_steps=3, clip_norm=1, monitor=None)
    settings(monitor="loss/test", monitor_test=True).check_monitor([])


def test_an_unknown_monitor_is_answered_with_the_legal_ones() -> None:
    with pytest.raises(ArgumentError, match=r"one of accuracy/val, loss/val or null, received 'accuracy/test'"):
        settings(monitor="accuracy/test").check_monitor([])
