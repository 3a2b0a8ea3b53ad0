"""A run that was stopped, in a fresh process, ends as one that was not: every bit of it."""

import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run as in_this_process
from planted import plant_state
from repetitions import times
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainings import Training, run_to_end

from cnnlab.cli import train
from cnnlab.engine.checkpoint import STATE, read_checkpoint

EPOCHS = times(7, 12)
STEPS = 19 * EPOCHS
# dropout and batch norm are in the default network; an epoch has 19 steps, so the kills fall into the middle of one
SETTINGS = (
    "seed=3",
    "data.batch_size=64",
    "+data.augment={flip: horizontal_flip, move: {type: shift, pixels: 1}, two: {type: rand_augment, num_ops: 1}, "
    "light: {type: color_jitter, brightness: 0.2, contrast: 0.2}, hide: {type: random_erasing, value: random}, "
    "noise: {type: gaussian_noise, sigma: 0.02}, mix: mixup}",
    f"trainer.epochs={EPOCHS}",
    "trainer.accumulate=2",
    "trainer.ema=0.99",
    "trainer.clip_norm=2",
    "trainer.checkpoint_every=7",
    "trainer.log_every=5",
    "trainer.execution.layout=channels_last",  # fresh runs that choose might choose differently
    "trainer.watch_every=4",
)
SENT: list[float] = []  # when signals were sent
MEASURED_TIME = ("seconds", "recorded_seconds", "images_per_second")


def stop_after(run: Path, step: int, number: signal.Signals, *overrides: str) -> int:
    """Starts a run, sends the signal once a checkpoint of `step` or later is there; returns the exit status."""
    training = Training(*SETTINGS, f"run_dir={run}", *overrides)
    try:
        deadline = time.monotonic() + 240
        while last_step(run) < step:
            assert time.monotonic() < deadline
            training.check_running()
            time.sleep(0.005)
        SENT.append(time.time())
        training.process.send_signal(number)
        return training.wait(times(60, 10))  # 10 s are promised, on a machine with nothing else to do
    finally:
        training.kill()


def last_step(run: Path) -> int:
    """The newest checkpoint; a kill may come before the file `last` names it."""
    return max((int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*")), default=0)


def metric_log(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (run / name).read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key not in MEASURED_TIME} for entry in entries]


def differences(left: Any, right: Any, place: str = "") -> list[str]:
    """Where two nested states differ, measured time left out."""
    if isinstance(left, torch.Tensor):
        return [] if torch.equal(left, right) else [place]
    if isinstance(left, dict):
        missing = [f"{place}.{key}" for key in left.keys() ^ right.keys()]
        shared = [key for key in left if key in right and key not in MEASURED_TIME]
        return missing + [found for key in shared for found in differences(left[key], right[key], f"{place}.{key}")]
    if isinstance(left, list | tuple):
        pairs = zip(left, right, strict=True)
        return [found for i, pair in enumerate(pairs) for found in differences(*pair, f"{place}[{i}]")]
    return [] if left == right else [place]


def assert_same_end(run: Path, reference: Path, steps: int = STEPS) -> None:
    ours = read_checkpoint(run / "checkpoints" / f"step-{steps:08d}")
    theirs = read_checkpoint(reference / "checkpoints" / f"step-{steps:08d}")
    assert not differences(ours.weights, theirs.weights)
    assert not differences(ours.ema, theirs.ema)
    assert not differences(ours.state(), theirs.state())
    assert metric_log(run) == metric_log(reference)
    if (reference / "gradients.jsonl").exists():
        assert metric_log(run, "gradients.jsonl") == metric_log(reference, "gradients.jsonl")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    run_to_end(*SETTINGS, f"run_dir={run}")
    return run


@pytest.fixture(scope="module")
def uninterrupted_plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Runs it when it is called first: few tests need it."""
    run = tmp_path_factory.mktemp("plain") / "run"

    def path() -> Path:
        if not run.exists():
            run_to_end(*SETTINGS, *PLAIN, f"run_dir={run}")
        return run

    return path


STREAMING = ("data.memory_fraction=1e-9", "data.workers=1")
PLAIN = ("~data.augment.mix", "trainer.accumulate=1", "trainer.ema=null", "trainer.clip_norm=null")
MODES = {"resident": (), "streaming": STREAMING, "without mixup, accumulation and EMA": PLAIN}


@pytest.mark.torture(figure="F1")
@pytest.mark.parametrize("seed", range(times(2, 100)))
def test_a_killed_run_resumes_to_the_same_bits(
    uninterrupted: Path, uninterrupted_plain: Callable[[], Path], tmp_path: Path, seed: int
) -> None:
    """A run that streams its images ends with the bits of one that does not."""
    mode = list(MODES)[seed % 3]
    run, step = tmp_path / "run", random.Random(seed).randrange(7, STEPS // 2)
    assert stop_after(run, step, signal.SIGKILL, *MODES[mode]) == -signal.SIGKILL
    assert step <= last_step(run) < STEPS
    printed = run_to_end(f"resume={run}")
    assert ("data: streaming from memory with 1 worker" in printed) is (mode == "streaming")
    assert_same_end(run, uninterrupted_plain() if MODES[mode] is PLAIN else uninterrupted)


@pytest.mark.slow
def test_a_run_with_a_restarted_schedule_is_killed_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    short, lengthened = ("trainer.epochs=3",), ("trainer.epochs=6", "schedule.restart=true")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_to_end(*SETTINGS, *short, f"run_dir={whole}")
    shutil.copytree(whole, killed)
    run_to_end(f"resume={whole}", *lengthened)
    training = Training(f"resume={killed}", *lengthened)
    while last_step(killed) < 70:
        training.check_running()
        time.sleep(0.005)
    training.kill()
    run_to_end(f"resume={killed}")
    assert_same_end(killed, whole, 6 * 19)


LONG_STEPS = times(300, 700)
LONG_EPOCH = ("data.batch_size=2", f"trainer.max_steps={LONG_STEPS}", "trainer.accumulate=1")


@pytest.fixture(scope="module")
def uninterrupted_long_epoch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("long") / "run"
    run_to_end(*SETTINGS, *LONG_EPOCH, f"run_dir={run}")
    return run


@pytest.mark.slow
@pytest.mark.torture(figure="F3")
@pytest.mark.parametrize("kills", range(3, 4) if times(0, 1) == 0 else range(1, 11))
def test_several_kills_in_one_epoch_change_nothing(uninterrupted_long_epoch: Path, tmp_path: Path, kills: int) -> None:
    """The first epoch has 628 steps."""
    run, draw = tmp_path / "run", random.Random(kills)
    stop_after(run, 21, signal.SIGKILL, *LONG_EPOCH)
    for _ in range(kills - 1):
        training = Training(f"resume={run}")
        reached = last_step(run)
        while last_step(run) == reached and training.process.poll() is None:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.1))
        training.kill()
    assert last_step(run) < min(628, LONG_STEPS)
    run_to_end(f"resume={run}")
    assert_same_end(run, uninterrupted_long_epoch, LONG_STEPS)


@pytest.mark.torture(figure="F6")
@pytest.mark.parametrize("workers", [2] if times(0, 1) == 0 else [0, 1, 2])
def test_the_number_of_workers_changes_no_bit(uninterrupted: Path, tmp_path: Path, workers: int) -> None:
    run = tmp_path / "run"
    printed = run_to_end(*SETTINGS, f"run_dir={run}", "data.memory_fraction=1e-9", f"data.workers={workers}")
    assert "data: streaming from memory" in printed
    assert_same_end(run, uninterrupted)


def places(state: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of nested dicts, from the top down."""
    for key, value in state.items() if isinstance(state, dict) else ():
        yield (*place, key)
        yield from places(value, (*place, key))


def leave_out(state: dict[str, Any], place: tuple[str, ...]) -> None:
    for key in place[:-1]:
        state = state[key]
    del state[place[-1]]


@pytest.mark.torture(figure="F5")
def test_no_part_of_the_state_can_be_missing(
    uninterrupted: Path, in_tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Left out one at a time, all but what a parameter without a gradient lacks, too."""
    run = Path(shutil.copytree(uninterrupted, in_tmp_path / "run"))
    shutil.rmtree(run / "checkpoints" / f"step-{STEPS:08d}")
    newest = run / "checkpoints" / f"step-{last_step(run):08d}"
    whole = (newest / STATE).read_bytes()
    omitted = [one for one in places(read_checkpoint(newest).state()) if len(one) < 5 or one[2] != "state"]
    draw = random.Random(0)
    for place in draw.sample(omitted, min(times(8, 1000), len(omitted))):
        (newest / STATE).write_bytes(whole)
        plant_state(newest, partial(leave_out, place=place))
        answer = in_this_process(train, f"resume={run}")
        assert answer.code == 2, (place, answer.err)
        assert answer.err.startswith("error: checkpoint: "), (place, answer.err)
    record_property("count", min(times(8, 1000), len(omitted)))


@pytest.mark.torture(figure="F8")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)] * times(1, 50))
def test_a_signal_saves_and_leaves_with_its_status(
    uninterrupted: Path,
    tmp_path: Path,
    number: signal.Signals,
    status: int,
    record_property: Callable[[str, object], None],
) -> None:
    run = tmp_path / "run"
    assert stop_after(run, 28, number) == status
    record_property("seconds", (run / "summary.json").stat().st_mtime - SENT[-1])
    assert json.loads((run / "summary.json").read_text())["status"] == "interrupted"
    run_to_end(f"resume={run}")
    assert_same_end(run, uninterrupted)


def test_a_damaged_newest_checkpoint_is_set_aside_and_an_older_one_taken(uninterrupted: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stop_after(run, 28, signal.SIGKILL)
    newest = run / "checkpoints" / f"step-{last_step(run):08d}" / "state.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert "set aside" in run_to_end(f"resume={run}")
    assert_same_end(run, uninterrupted)


def test_a_resumed_run_has_no_doubled_points_in_tensorboard(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stop_after(run, 28, signal.SIGKILL)
    run_to_end(f"resume={run}")
    events = EventAccumulator(str(run))
    events.Reload()
    expected = [entry["step"] for entry in metric_log(run) if entry["split"] == "train"]
    assert [event.step for event in events.Scalars("loss/train")] == expected


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            ("trainer.execution.compile=true", "model=mlp", "+model.blocks.norm={type: batch_norm, after: hidden1}"),
            marks=pytest.mark.slow,
            id="compiled dropout and batch norm",
        ),
        pytest.param(
            (
                "model=none",
                "model.blocks={first: {type: torch.nn.Dropout, p: 0.2, inplace: true}, flatten: flatten, "
                "output: {type: linear, out_features: classes}}",
            ),
            id="a first layer that works in place",
        ),
    ],
)
def test_a_step_resumes_to_the_same_bits(tmp_path: Path, settings: tuple[str, ...]) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run_to_end("experiment=debug/fast", *settings, f"run_dir={whole}")
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "checkpoints" / "step-00000006")
    run_to_end(f"resume={stopped}")
    ours, theirs = (read_checkpoint(path / "checkpoints" / "step-00000006") for path in (stopped, whole))
    assert not differences(ours.weights, theirs.weights)
    assert not differences(ours.state(), theirs.state())


# 4 steps an epoch, and 10 in the run: two boundaries of epochs at which layers are frozen or released
FREEZING = (
    "data.batch_size=256",
    "trainer.epochs=2.5",
    "trainer.keep_every=1",
    "model.freeze={conv1: {until: 1}, norm2: {after: 1}, output.bias: {after: 1, until: 2}}",
    "optimizer=muon",
    "optimizer.layer_decay=0.8",
    "trainer.lookahead={every: 2, alpha: 0.3, power: 3}",
    "trainer.clip_norm=1",
    "trainer.execution.layout=channels_last",
    "observers=quiet",
)
FAST_SGD = ("optimizer=sgd", "trainer.execution.compile=true", "trainer.lookahead=null", "trainer.ema=0.9")


@pytest.mark.parametrize(
    ("settings", "step"),
    [
        (FREEZING, 3),  # before the first boundary
        *(pytest.param(FREEZING, step, marks=pytest.mark.slow) for step in (4, 5, 9)),
        *(pytest.param((*FREEZING, *FAST_SGD), step, marks=pytest.mark.slow) for step in (3, 6)),
    ],
)
def test_a_run_that_freezes_some_epochs_resumes_to_the_same_bits(
    in_tmp_path: Path, settings: tuple[str, ...], step: int
) -> None:
    """With several optimizers and slow weights, from a checkpoint before and after what is frozen changes."""
    assert in_this_process(train, *settings, "run_dir=whole").code == 0
    whole, stopped = in_tmp_path / "whole", Path(shutil.copytree("whole", "stopped"))
    for later in range(step + 1, 11):
        shutil.rmtree(stopped / "checkpoints" / f"step-{later:08d}")
    run_to_end(f"resume={stopped}")
    ours, theirs = (read_checkpoint(path / "checkpoints" / "step-00000010") for path in (stopped, whole))
    assert not differences([ours.weights, ours.ema, ours.state()], [theirs.weights, theirs.ema, theirs.state()])


@pytest.mark.slow
def test_a_recurrent_network_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """Dropout between its layers draws from a generator that the checkpoint holds; permuted pixels need no state."""
    lstm = "model.blocks.lstm={type: lstm, hidden_size: 8, num_layers: 2, dropout: 0.3}"
    settings = ("model=row_lstm", lstm, "model.blocks.permute=permute_pixels", "schedule=constant", "observers=quiet")
    run_to_end(*settings, "trainer.max_steps=40", f"run_dir={tmp_path / 'whole'}")
    run_to_end(*settings, "trainer.max_steps=17", f"run_dir={tmp_path / 'parts'}")
    run_to_end(f"resume={tmp_path / 'parts'}", "trainer.max_steps=40", "trainer.watch_every=10")
    whole, parts = (read_checkpoint(tmp_path / name / "checkpoints" / "step-00000040") for name in ("whole", "parts"))
    assert not differences(whole.weights, parts.weights)
    assert not differences(whole.state()["generators"], parts.state()["generators"])


def test_two_processes_never_work_in_one_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    training = Training(*SETTINGS, f"run_dir={run}")
    try:
        while not (run / "checkpoints").exists():
            training.check_running()
            time.sleep(0.005)
        training.process.send_signal(signal.SIGSTOP)
        second = Training(f"resume={run}")
        assert second.wait() == 2
        assert f"process {training.process.pid}" in second.output
    finally:
        training.kill()
