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
from cnnlab.engine.execution import Execution
from cnnlab.engine.optimization import build_optimizer
from cnnlab.engine.probe import Probe
from cnnlab.engine.records import Descent, Metrics, Notice, Record, Snapshot
from cnnlab.engine.schedule import Factor, Schedule, constant
from cnnlab.engine.step import train_step
from cnnlab.engine.trainer import Trainer, TrainerSettings, TrainState, due
from cnnlab.runtime.errors import ArgumentError, TrainingError

CPU = torch.device("cpu")
STEPS_PER_EPOCH = 4  # 8 images, two a batch
COMPARED = ("loss", "accuracy", "lr", "gradient_norm")  # of a training record: all but measured time


def settings(**changes: Any) -> TrainerSettings:
    legal: dict[str, Any] = {
        "epochs": 2,
        "max_steps": None,
        "max_time": None,
        "accumulate": 1,
        "clip_norm": None,
        "ema": None,
        "log_every": 1,
        "validate_every_epochs": 1,
        "validate_every_steps": None,
        "checkpoint_every": None,
        "monitor": "accuracy/val",
        "monitor_test": False,
        "patience": None,
        "min_delta": 0.0,
    }
    return TrainerSettings(**{**legal, **changes})


def loader(count: int = 8, batch_size: int = 2, shuffle: bool = True) -> ResidentLoader:
    """1×2×2 images; the pixels of image i are 10·i + 0…3."""
    x_NCHW = (10 * torch.arange(count)[:, None] + torch.arange(4)).to(torch.uint8).view(count, 1, 2, 2)
    images = Images.of(x_NCHW, torch.arange(count) % 2)
    return ResidentLoader(images, Normalization((35.0,), (20.0,)), batch_size, device=CPU, shuffle=shuffle, seed=3)


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
        self.checkpoints = Checkpoints(folder / "checkpoints")
        self.records: list[Record] = []
        self.train = train or loader()
        optimizer = build_optimizer(
            Component("optimizer", "sgd", torch.optim.SGD, {"lr": lr, "momentum": 0.9}), self.network, {}
        )
        execution = Execution()
        ema = None if self.settings.ema is None else EMA(self.network, self.settings.ema)
        self.train_state = TrainState(
            self.network, F.cross_entropy, optimizer, Schedule(optimizer, factor), execution, execution.scaler(CPU), ema
        )
        self.trainer = Trainer(
            self.train_state,
            self.train,
            {"val": loader(6, 4, shuffle=False)},
            self.settings,
            self.checkpoints,
            self.records.append,
            meta={"name": "tiny"},
            stop=stop or (lambda: "interrupted" if self.progress.step == interrupted_at else None),
        )

    @property
    def progress(self) -> Any:
        return self.trainer.progress

    def metrics(self, split: str) -> list[Metrics]:
        return [record for record in self.records if isinstance(record, Metrics) and record.split == split]

    def steps(self, split: str) -> list[int]:
        return [record.step for record in self.metrics(split)]


@pytest.fixture
def saved_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every step that is saved, whether or not it is pruned later."""
    steps: list[int] = []
    save = Checkpoints.save

    def spy(checkpoints: Checkpoints, step: int, *arguments: Any, **options: Any) -> None:
        steps.append(step)
        save(checkpoints, step, *arguments, **options)

    monkeypatch.setattr(Checkpoints, "save", spy)
    return steps


def script_validation(monkeypatch: pytest.MonkeyPatch, metric: str, values: Iterable[float]) -> None:
    """Each validation measures the next value of the metric, and 0.5 for the other."""
    coming = iter(values)
    monkeypatch.setattr(
        trainer_module, "evaluate", lambda *arguments: {"loss": 0.5, "accuracy": 0.5, metric: next(coming)}
    )


# how long


def test_a_run_goes_through_its_epochs(tmp_path: Path) -> None:
    run = Run(tmp_path, epochs=3)
    assert run.trainer.fit() == "completed"
    assert run.progress.step == 3 * STEPS_PER_EPOCH
    assert run.progress.images == 3 * 8


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"), [(2, 5, 5), (1, 100, 4), (None, 6, 6), (2, None, 8), (None, None, None)]
)
def test_total_steps_is_the_nearest_limit(epochs: int | None, max_steps: int | None, expected: int | None) -> None:
    assert settings(epochs=epochs, max_steps=max_steps, max_time=1.0).total_steps(STEPS_PER_EPOCH) == expected


def test_max_steps_ends_a_run_within_an_epoch(tmp_path: Path) -> None:
    run = Run(tmp_path, epochs=None, max_steps=6)
    assert run.trainer.fit() == "completed"
    assert run.progress.step == 6
    assert run.trainer.epoch == 2


def test_no_steps_at_all_train_and_save_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, max_steps=0)
    assert run.trainer.fit() == "completed"
    assert run.progress.step == 0
    assert run.checkpoints.steps() == []


def test_each_epoch_sees_each_image_once_in_another_order(tmp_path: Path) -> None:
    seen: list[int] = []

    def spy(*arguments: Any, **options: Any) -> Any:
        seen.extend(arguments[3].index_N.tolist())
        return train_step(*arguments, **options)

    run = Run(tmp_path, epochs=3)
    run.train_state.step = spy
    run.trainer.fit()
    epochs = [seen[start : start + 8] for start in (0, 8, 16)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(8))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


class Clock:
    """Advances by a second each time that it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(trainer_module, "time", SimpleNamespace(perf_counter=clock))
    return clock


@pytest.mark.usefixtures("clock")
def test_max_time_ends_a_run_and_validates_and_saves(tmp_path: Path) -> None:
    run = Run(tmp_path, epochs=None, max_time=3.0)  # a second a step
    assert run.trainer.fit() == "completed"
    assert run.progress.step == 3
    assert run.steps("val") == [3]
    assert run.checkpoints.steps() == [3]


def test_validation_takes_no_training_time(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*arguments: Any) -> dict[str, float]:
        clock.now += 100
        return {"loss": 1.0, "accuracy": 0.5}

    monkeypatch.setattr(trainer_module, "evaluate", slow)
    run = Run(tmp_path, epochs=2, validate_every_steps=1)
    run.trainer.fit()
    assert run.progress.seconds == 8


def test_what_recording_takes_is_training_time(tmp_path: Path, clock: Clock) -> None:
    def slow(record: Record) -> None:
        if isinstance(record, Metrics) and record.split == "train":
            clock.now += 100

    run = Run(tmp_path, epochs=1, log_every=2)  # four steps of a second; the last record comes right before validation
    run.trainer.log = slow
    run.trainer.fit()
    assert run.progress.seconds == 4 + 100


@pytest.mark.usefixtures("clock")
def test_max_time_counts_over_resumptions(tmp_path: Path) -> None:
    run = Run(tmp_path, epochs=None, max_time=5.0, interrupted_at=2)
    run.trainer.fit()
    resumed = Run(tmp_path, epochs=None, max_time=5.0)
    resumed.trainer.load_state_dict(run.trainer.state_dict())
    resumed.trainer.fit()
    assert resumed.progress.step == 5


# cadence


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"validate_every_epochs": 1}, [4, 8, 12]),
        ({"validate_every_epochs": 2}, [8, 12]),  # and at the end
        ({"validate_every_epochs": None, "validate_every_steps": 5}, [5, 10, 12]),
        ({"validate_every_epochs": 1, "validate_every_steps": 3}, [3, 4, 6, 8, 9, 12]),
        ({"validate_every_epochs": None}, [12]),
        ({"validate_every_epochs": None, "max_steps": 5}, [5]),
    ],
)
def test_when_validation_happens(tmp_path: Path, changes: dict[str, Any], expected: list[int]) -> None:
    run = Run(tmp_path, epochs=3, **changes)
    run.trainer.fit()
    assert run.steps("val") == expected


@pytest.mark.parametrize(("checkpoint_every", "expected"), [(None, [4, 8]), (3, [3, 4, 6, 8]), (100, [4, 8])])
def test_checkpoints_are_written_at_their_cadence_and_at_every_validation(
    tmp_path: Path, saved_steps: list[int], checkpoint_every: int | None, expected: list[int]
) -> None:
    Run(tmp_path, epochs=2, checkpoint_every=checkpoint_every).trainer.fit()
    assert saved_steps == expected


@pytest.mark.parametrize(("log_every", "expected"), [(1, [1, 2, 3, 4, 5, 6, 7, 8]), (3, [3, 6, 8]), (8, [8])])
def test_training_is_recorded_at_its_cadence_and_at_the_end(
    tmp_path: Path, log_every: int, expected: list[int]
) -> None:
    run = Run(tmp_path, log_every=log_every)
    run.trainer.fit()
    assert run.steps("train") == expected


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
    at_once, later_on = (
        [
            (one.step, one.epoch, one.split, one.final, {k: v for k, v in one.values.items() if k in COMPARED})
            for one in run.records
            if isinstance(one, Metrics)
        ]
        for run in runs
    )
    assert at_once == later_on
    assert len(at_once) >= 3
    states = [run.trainer.state_dict() for run in runs]
    assert states[0]["tally"] == states[1]["tally"]


def test_a_loss_that_is_not_finite_is_named_by_its_step_when_it_is_read_later(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    run = Run(tmp_path, network=network, log_every=2, epochs=2)
    run.trainer.reads_later = True
    losses = iter([1.0, 1.0, 1.0, math.nan, 1.0, 1.0, 1.0, 1.0])
    run.train_state.loss = lambda output_NK, target: F.cross_entropy(output_NK, target) * next(losses)
    with pytest.raises(TrainingError, match=r"the loss of step 4 is not a finite number"):
        run.trainer.fit()


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
    plain, watched = (run.network.state_dict() for run in runs)
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    measured = [[{k: v for k, v in r.values.items() if k in COMPARED} for r in run.metrics("train")] for run in runs]
    assert measured[0] == measured[1]


def test_a_watched_update_records_the_change_of_its_own_batch(tmp_path: Path) -> None:
    run = Run(tmp_path, watch_every=1, max_steps=1, train=loader(shuffle=False))
    images = next(iter(loader(8, 2, shuffle=False)))
    before = F.cross_entropy(run.network(images.x_NCHW), images.target).item()
    run.trainer.fit()
    after = F.cross_entropy(run.network(images.x_NCHW), images.target).item()
    (descent,) = [record for record in run.records if isinstance(record, Descent)]
    assert descent.loss == pytest.approx(before, rel=1e-6)
    assert descent.loss_change == pytest.approx(after - before, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"snapshot_every_epochs": 2, "epochs": 3}, [8, 12]),  # and at the end
        ({"snapshot_every_epochs": 1, "max_steps": 6}, [4, 6]),
        ({"snapshot_every_epochs": None}, []),
    ],
)
def test_snapshots_are_taken_at_their_cadence_and_change_no_bit(
    tmp_path: Path, changes: dict[str, Any], expected: list[int]
) -> None:
    def network() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.ELU(inplace=True), nn.Flatten(), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))

    shown, plain = (
        Run(tmp_path / str(number), network=network(), **(changes | more))
        for number, more in enumerate(({}, {"snapshot_every_epochs": None}))
    )
    for run in (shown, plain):
        torch.manual_seed(2)
        run.trainer.fit()
    assert [record.step for record in shown.records if isinstance(record, Snapshot)] == expected
    assert all(
        torch.equal(*pair)
        for pair in zip(shown.network.state_dict().values(), plain.network.state_dict().values(), strict=True)
    )
    assert shown.checkpoints.steps() == plain.checkpoints.steps()


def test_a_network_that_cannot_be_copied_trains_without_snapshots(tmp_path: Path) -> None:
    run = Run(tmp_path, snapshot_every_epochs=1)
    run.network.lock = threading.Lock()  # type: ignore[assignment]
    assert run.trainer.fit() == "completed"
    notices = [record.text for record in run.records if isinstance(record, Notice)]
    assert notices == ["no snapshots: TypeError: cannot pickle '_thread.lock' object"]


@pytest.mark.parametrize(
    ("count", "every", "expected"), [(4, 2, True), (5, 2, False), (1, 1, True), (3, 5, False), (4, None, False)]
)
def test_due_at_every_so_many(count: int, every: int | None, expected: bool) -> None:
    assert due(count, every) is expected


# records


def test_records_carry_their_epoch_counted_from_one(tmp_path: Path) -> None:
    run = Run(tmp_path, epochs=2)
    run.trainer.fit()
    assert [record.epoch for record in run.metrics("train")] == [1, 1, 1, 1, 2, 2, 2, 2]
    assert [(record.step, record.epoch) for record in run.metrics("val")] == [(4, 1), (8, 2)]


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


def test_a_validation_record_is_what_evaluate_measures(tmp_path: Path) -> None:
    run = Run(tmp_path, epochs=1)
    run.trainer.fit()
    expected = evaluate(run.network, F.cross_entropy, loader(6, 4, shuffle=False), Execution())
    assert run.metrics("val")[0].values == expected


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_recorded_lr_is_that_of_the_update_and_advances_once_a_step(tmp_path: Path, accumulate: int) -> None:
    run = Run(tmp_path, factor=lambda step: 1 / (1 + step), accumulate=accumulate, max_steps=4)
    run.trainer.fit()
    assert [record.values["lr"] for record in run.metrics("train")] == pytest.approx([0.1, 0.1 / 2, 0.1 / 3, 0.1 / 4])


def test_the_gradients_norm_is_recorded_as_it_was_before_clipping(tmp_path: Path) -> None:
    unclipped, clipped = Run(tmp_path / "a", max_steps=1), Run(tmp_path / "b", max_steps=1, clip_norm=1e-3)
    for run in (unclipped, clipped):
        run.trainer.fit()
    norm = unclipped.metrics("train")[0].values["gradient_norm"]
    assert norm > 1e-2
    assert clipped.metrics("train")[0].values["gradient_norm"] == norm


def test_the_norm_of_a_gradient_that_the_scaler_skipped_is_not_recorded(tmp_path: Path) -> None:
    run = Run(tmp_path, epochs=2)
    run.train_state.scaler = torch.amp.GradScaler("cpu", init_scale=3e38)  # halved until 10 times the gradient fits
    run.train_state.loss = lambda output_NK, target: 10 * F.cross_entropy(output_NK, target)
    run.trainer.fit()
    measured = ["gradient_norm" in record.values for record in run.metrics("train")]
    assert (measured[0], measured[-1]) == (False, True)


@pytest.mark.usefixtures("clock")
def test_throughput_is_images_per_second_of_training(tmp_path: Path) -> None:
    run = Run(tmp_path, log_every=2)  # two images a step, a second a step
    run.trainer.fit()
    assert [record.values["images_per_second"] for record in run.metrics("train")] == [2.0] * 4
    assert [record.values["seconds"] for record in run.metrics("train")] == [2, 4, 6, 8]


def test_training_continues_in_training_mode_after_validation(tmp_path: Path) -> None:
    modes: list[bool] = []
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    network.register_forward_hook(lambda module, arguments, output: modes.append(module.training))
    Run(tmp_path, network=network, epochs=2).trainer.fit()
    assert modes == [*[True] * 4, False, False, *[True] * 4, False, False]


# which is best, when to stop


@pytest.mark.parametrize(
    ("monitor", "values", "best"),
    [
        ("accuracy/val", [0.1, 0.4, 0.3], 2),
        ("accuracy/val", [0.4, 0.4, 0.4], 1),  # of equal losses the earlier
        ("accuracy/val", [0.1, 0.2, 0.3], 3),
        ("loss/val", [0.9, 0.2, 0.3], 2),
        ("loss/val", [0.2, 0.2, 0.9], 1),
        ("loss/val", [math.nan, 0.5, 0.6], 2),
        ("loss/val", [0.5, math.nan, 0.6], 1),
        ("accuracy/val", [0.0, 0.0, 0.0], 1),
    ],
)
def test_best_is_the_step_with_the_best_monitor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, monitor: str, values: list[float], best: int
) -> None:
    script_validation(monkeypatch, monitor.split("/")[0], values)
    run = Run(tmp_path, monitor=monitor, max_steps=3, validate_every_steps=1)
    run.trainer.fit()
    assert run.progress.best_step == run.checkpoints.named("best") == best
    assert run.progress.best == values[best - 1]
    assert run.progress.best_values[monitor] == values[best - 1]
    assert run.checkpoints.named("last") == 3


@pytest.mark.parametrize(
    ("monitor", "losses", "best"),
    [
        ("accuracy/val", [0.9, 0.5, 0.7], 2),  # of equal accuracies the lower loss
        ("accuracy/val", [0.5, 0.5, math.nan], 1),  # then the earlier step
        (None, [0.1, 0.2, 0.3], 3),
    ],
)
def test_of_equal_monitors_the_lower_loss_is_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, monitor: str | None, losses: list[float], best: int
) -> None:
    script_validation(monkeypatch, "loss", losses)
    run = Run(tmp_path, monitor=monitor, max_steps=3, validate_every_steps=1)
    run.trainer.fit()
    assert run.progress.best_step == run.checkpoints.named("best") == best
    assert run.progress.best_values["loss/val"] == losses[best - 1]
    assert run.progress.last_values["loss/val"] is losses[-1]


def test_a_lower_loss_at_the_same_accuracy_does_not_reset_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_validation(monkeypatch, "loss", [0.5, 0.4, 0.3, 0.2])
    run = Run(tmp_path, patience=2, epochs=2, validate_every_steps=1)
    run.trainer.fit()
    assert (run.progress.step, run.progress.best_step) == (3, 3)


def test_the_best_checkpoint_has_the_weights_that_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_validation(monkeypatch, "accuracy", [0.1, 0.9, 0.2, 0.3, 0.4])
    seen: list[Tensor] = []
    measure: Callable[..., dict[str, float]] = trainer_module.evaluate

    def spy(network: nn.Module, *arguments: Any) -> dict[str, float]:
        seen.append(network.state_dict()["1.weight"].clone())
        return measure(network, *arguments)

    monkeypatch.setattr(trainer_module, "evaluate", spy)
    run = Run(tmp_path, max_steps=5, validate_every_steps=1)
    run.trainer.fit()
    assert torch.equal(run.checkpoints.resolve("best").weights["1.weight"], seen[1])


@pytest.mark.parametrize(("min_delta", "best"), [(0.0, 4), (0.15, 3), (0.5, 1)])
def test_an_improvement_is_more_than_min_delta(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, min_delta: float, best: int
) -> None:
    script_validation(monkeypatch, "accuracy", [0.1, 0.2, 0.3, 0.35])
    run = Run(tmp_path, min_delta=min_delta, max_steps=4, validate_every_steps=1)
    run.trainer.fit()
    assert run.progress.best_step == best


def test_without_a_monitor_the_last_is_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script_validation(monkeypatch, "accuracy", [0.9, 0.1])
    run = Run(tmp_path, monitor=None, epochs=2)
    run.trainer.fit()
    assert run.progress.best_step == run.checkpoints.named("best") == 8
    assert run.progress.best_values["accuracy/val"] == 0.1


@pytest.mark.parametrize(
    ("patience", "values", "last"),
    [
        (1, [0.5, 0.4], 2),
        (2, [0.5, 0.4, 0.3], 3),
        (2, [0.5, 0.4, 0.6, 0.6, 0.6], 5),  # a better one starts the count anew, a tie does not
        (3, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], 8),
    ],
)
def test_patience_ends_a_run_that_no_longer_improves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int, values: list[float], last: int
) -> None:
    script_validation(monkeypatch, "accuracy", values)
    run = Run(tmp_path, patience=patience, epochs=2, validate_every_steps=1)
    assert run.trainer.fit() == "completed"
    assert run.progress.step == last == run.checkpoints.named("last")


def test_early_stopping_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script_validation(monkeypatch, "accuracy", [0.5, 0.4, 0.3])
    run = Run(tmp_path, patience=2, validate_every_steps=1)
    run.trainer.fit()
    assert Notice("accuracy/val has not improved for 2 validations") in run.records


def test_validation_sees_the_averaged_weights_where_there_are_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[nn.Module] = []

    def spy(network: nn.Module, *arguments: Any) -> dict[str, float]:
        seen.append(network)
        return evaluate(network, *arguments)

    monkeypatch.setattr(trainer_module, "evaluate", spy)
    run = Run(tmp_path, ema=0.9, epochs=1)
    run.trainer.fit()
    ema = run.train_state.ema
    assert ema is not None
    assert seen == [ema.network]
    assert ema.updates == 4
    checkpoint = run.checkpoints.resolve("best")
    assert torch.equal(checkpoint.inference_weights["1.weight"], ema.network.state_dict()["1.weight"])
    assert torch.equal(checkpoint.weights["1.weight"], run.network.state_dict()["1.weight"])


# interruption, resumption


def test_an_interruption_saves_and_leaves_without_validating(tmp_path: Path) -> None:
    run = Run(tmp_path, interrupted_at=3)
    assert run.trainer.fit() == "interrupted"
    assert run.progress.step == 3
    assert run.checkpoints.steps() == [3]
    assert run.steps("val") == []


def test_stop_is_polled_after_each_step_and_each_validation(tmp_path: Path) -> None:
    polled: list[tuple[int, int]] = []

    def stop() -> str | None:
        polled.append((run.progress.step, len(run.steps("val"))))
        return "pruned" if polled[-1] == (3, 1) else None

    run = Run(tmp_path, stop=stop, validate_every_steps=3)
    assert run.trainer.fit() == "pruned"
    assert polled == [(1, 0), (2, 0), (3, 0), (3, 1)]
    assert run.checkpoints.steps() == [3]


def test_a_run_that_is_stopped_as_completed_is_validated(tmp_path: Path) -> None:
    run = Run(tmp_path, stop=lambda: "completed" if run.progress.step == 2 else None)
    assert run.trainer.fit() == "completed"
    assert run.steps("val") == run.checkpoints.steps() == [2]


def test_an_interruption_at_the_last_step_is_a_completed_run(tmp_path: Path) -> None:
    run = Run(tmp_path, interrupted_at=8)
    assert run.trainer.fit() == "completed"


@pytest.mark.parametrize("interrupted_at", [1, 3, 4, 5])
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
    checkpoint = second.checkpoints.newest_whole()
    assert checkpoint is not None
    assert checkpoint.ema is not None
    second.network.load_state_dict(checkpoint.weights)
    second.train_state.evaluated.load_state_dict(checkpoint.ema)
    second.trainer.load_state_dict(checkpoint.state())
    assert second.trainer.fit() == "completed"

    def shown(*runs: Run) -> list[tuple[Any, ...]]:
        names = ("loss", "accuracy", "lr", "gradient_norm")
        records = [record for each in runs for record in each.records if isinstance(record, Metrics)]
        return [(r.step, r.epoch, r.split, *(r.values.get(name) for name in names)) for r in records]

    assert shown(first, second) == shown(whole)
    for mine, theirs in ((second.network, whole.network), (second.train_state.evaluated, whole.train_state.evaluated)):
        weights = theirs.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in mine.state_dict().items())
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
    checkpoint = second.checkpoints.newest_whole()
    assert checkpoint is not None
    second.network.load_state_dict(checkpoint.weights)
    second.trainer.load_state_dict(checkpoint.state())
    second.trainer.fit()
    for name, value in whole.network.state_dict().items():
        assert torch.equal(second.network.state_dict()[name], value)


def test_resuming_a_finished_run_records_its_last_steps_as_before(tmp_path: Path) -> None:
    run, resumed = Run(tmp_path, log_every=3, max_steps=7), Run(tmp_path, log_every=3, max_steps=7)
    run.trainer.fit()
    checkpoint = resumed.checkpoints.newest_whole()
    assert checkpoint is not None
    resumed.trainer.load_state_dict(checkpoint.state())
    assert resumed.trainer.fit() == "completed"
    assert resumed.records == run.records[-1:]


def test_a_checkpoint_carries_the_runs_description(tmp_path: Path) -> None:
    run = Run(tmp_path, epochs=1)
    run.trainer.fit()
    assert run.checkpoints.resolve("last").meta == {"name": "tiny"}


# what is no number


class Poisoned(nn.Module):
    """Linear, but its answer to image 5 is no number."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        brightest_N = x_NCHW.flatten(1).amax(1)
        fifth = (10 * 5 + 3 - 35) / 20
        return self.linear(x_NCHW.flatten(1)).masked_fill(((brightest_N - fifth).abs() < 1e-3)[:, None], math.nan)


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_loss_that_is_no_number_names_its_step_and_images(tmp_path: Path, log_every: int) -> None:
    run = Run(tmp_path, network=Poisoned(), train=loader(shuffle=False), log_every=log_every)
    with pytest.raises(TrainingError, match=r"the loss of step 3 is not a finite number; its training images are 4, 5"):
        run.trainer.fit()


def test_a_loss_that_is_no_number_leaves_the_last_checkpoint_finite(tmp_path: Path) -> None:
    run = Run(tmp_path, network=Poisoned(), train=loader(shuffle=False), checkpoint_every=1)
    with pytest.raises(TrainingError):
        run.trainer.fit()
    assert run.checkpoints.steps() == [1, 2]
    checkpoint = run.checkpoints.newest_whole()
    assert checkpoint is not None
    assert checkpoint.step == 2
    assert all(bool(weight.isfinite().all()) for weight in checkpoint.weights.values())


def test_only_the_first_images_of_a_large_batch_are_named(tmp_path: Path) -> None:
    run = Run(tmp_path, network=Poisoned(), train=loader(12, 12, shuffle=False))
    with pytest.raises(TrainingError, match=r"images are 0, 1, 2, 3, 4, 5, 6, 7, …\."):
        run.trainer.fit()


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, max_steps=1)
    weight = run.network.get_parameter("1.weight")  # the loss of the first step is finite, its update overflows
    monkeypatch.setattr(run.train_state.optimizer, "step", lambda: weight.data.fill_(math.inf))
    with pytest.raises(TrainingError, match="the weights after step 1 are not finite"):
        run.trainer.fit()
    assert run.checkpoints.steps() == []


# settings


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": None}, "epochs"),  # no limit at all
        ({"max_steps": -1}, "max_steps"),
        ({"max_time": 0}, "max_time"),
        ({"accumulate": 0}, "accumulate"),
        ({"clip_norm": 0}, "clip_norm"),
        ({"ema": 1.0}, "ema"),
        ({"log_every": 0}, "log_every"),
        ({"validate_every_epochs": 0}, "validate_every_epochs"),
        ({"validate_every_steps": 0}, "validate_every_steps"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"patience": 0}, "patience"),
        ({"patience": 3, "monitor": None}, "patience"),
        ({"min_delta": -0.1}, "min_delta"),
        ({"watch_every": 0}, "watch_every"),
        ({"snapshot_every_epochs": 0}, "snapshot_every_epochs"),
        ({"watch_top": 0}, "watch_top"),
    ],
)
def test_an_illegal_value_is_refused_by_its_name(changes: dict[str, Any], argument: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        settings(**changes)
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    "changes",
    [
        {"max_steps": 0},
        {"epochs": None, "max_time": 0.5},
        {"epochs": None, "max_steps": 3},
        {"ema": 0.0},
        {"clip_norm": 1},
        {"validate_every_epochs": None, "validate_every_steps": None},
        {"monitor": None},
        {"monitor": "loss/test", "monitor_test": True},
    ],
)
def test_legal_values_are_taken(changes: dict[str, Any]) -> None:
    taken = settings(**changes)
    assert all(getattr(taken, name) == value for name, value in changes.items())


def test_an_unknown_monitor_is_answered_with_the_legal_ones() -> None:
    with pytest.raises(ArgumentError, match=r"one of accuracy/val, loss/val or null, received 'accuracy/test'"):
        settings(monitor="accuracy/test").check_monitor([])
