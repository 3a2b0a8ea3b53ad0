import json
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import pytest
import safetensors.torch
import torch
from planted import reseal, seal
from repetitions import times
from safetensors import SafetensorError

import cnnlab
from cnnlab.engine.checkpoint import (
    EMA_WEIGHTS,
    MANIFEST,
    STATE,
    WEIGHTS,
    Checkpoint,
    Checkpoints,
    DamagedCheckpointError,
    read_checkpoint,
)
from cnnlab.engine.state_file import write_state
from cnnlab.runtime.errors import ConfigError, TrainingError

FILES = (WEIGHTS, EMA_WEIGHTS, STATE, MANIFEST)


def save(checkpoints: Checkpoints, step: int, **changes: Any) -> None:
    """A checkpoint whose weights and state are its step."""
    weights = {"weight": torch.full((3, 2), float(step)), "bias": torch.full((2,), float(step))}
    state = {"progress": {"step": step}, "momentum": torch.full((5,), float(step))}
    arguments: dict[str, Any] = {"weights": weights, "state": state, "meta": {"step_again": step}, **changes}
    checkpoints.save(step, **arguments)


def assert_whole(checkpoint: Checkpoint | None, step: int) -> None:
    assert checkpoint is not None
    assert checkpoint.step == step
    assert torch.equal(checkpoint.weights["weight"], torch.full((3, 2), float(step)))
    assert checkpoint.state()["progress"] == {"step": step}


def entries(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def flip(path: Path, position: int, mask: int = 0x10) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= mask
    path.write_bytes(data)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints")


@pytest.fixture
def folder(checkpoints: Checkpoints) -> Path:
    """A checkpoint with all four files."""
    save(checkpoints, 430, ema={"weight": torch.rand(3, 2), "bias": torch.rand(2)})
    return checkpoints.path(430)


@pytest.fixture
def four(checkpoints: Checkpoints) -> Checkpoints:
    """Steps 1 to 4 were saved, of which 2 is the best."""
    for step in range(1, 5):
        save(checkpoints, step, best_step=2 if step >= 2 else None)
    return checkpoints


# what is saved is read


def test_what_was_saved_is_read(checkpoints: Checkpoints) -> None:
    """Also views of one memory, and a tensor with two names, which is written once."""
    square = torch.arange(2500.0).reshape(50, 50)
    weights = {"b": torch.tensor(7), "c": torch.rand(4, dtype=torch.float64), "d": torch.zeros(0)}
    weights |= {"w": square, "tied": square, "transposed": square.t(), "part": square[:2]}
    weights |= {"bits": square[:1].view(torch.int32)}
    weights |= {"conv": torch.rand(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)}
    state = {"numbers": [1, 2.5, None, "x"], "tensor": torch.arange(4), "nested": {"t": (1, 2)}}
    checkpoints.save(5, weights, state, {"class_names": ["a", "b"], "mean": 0.1})
    checkpoint = read_checkpoint(checkpoints.path(5))
    assert checkpoint.step == 5
    assert checkpoint.meta == {"class_names": ["a", "b"], "mean": 0.1}
    assert checkpoint.weights.keys() == weights.keys()
    for name, tensor in weights.items():
        assert checkpoint.weights[name].dtype == tensor.dtype
        assert torch.equal(checkpoint.weights[name], tensor)
    assert (checkpoints.path(5) / WEIGHTS).stat().st_size < 3 * square.nbytes
    loaded = checkpoint.state()
    assert torch.equal(loaded.pop("tensor"), state.pop("tensor"))  # type: ignore[arg-type]
    assert loaded == state


@pytest.mark.parametrize("averaged", [True, False])
def test_inference_takes_the_averaged_weights_where_there_are_any(checkpoints: Checkpoints, averaged: bool) -> None:
    save(checkpoints, 1, ema={"weight": torch.full((3, 2), 9.0)} if averaged else None)
    checkpoint = read_checkpoint(checkpoints.path(1))
    assert (checkpoint.ema is not None) is averaged
    assert float(checkpoint.weights["weight"][0, 0]) == 1
    assert float(checkpoint.inference_weights["weight"][0, 0]) == (9 if averaged else 1)


def test_a_step_that_is_saved_again_is_replaced(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1, weights={"weight": torch.zeros(1)})
    save(checkpoints, 1)
    assert_whole(checkpoints.newest_whole(), 1)


# names, order, pruning


def test_steps_are_in_the_order_of_their_numbers(checkpoints: Checkpoints) -> None:
    assert checkpoints.steps() == []
    assert checkpoints.newest_whole() is None
    checkpoints.folder.mkdir()
    for step in (99_999_999, 100_000_000, 5):
        checkpoints.path(step).mkdir()
    (checkpoints.folder / "step-7").mkdir()  # no name of ours
    (checkpoints.folder / ".writing-00000008-1").mkdir()
    assert checkpoints.steps() == [5, 99_999_999, 100_000_000]


@pytest.mark.parametrize(("best", "kept"), [([1], [1, 4, 5]), ([1, 3], [3, 4, 5]), ([5], [4, 5]), ([], [4, 5])])
def test_the_newest_two_and_the_best_are_kept(checkpoints: Checkpoints, best: list[int], kept: list[int]) -> None:
    for step in range(1, 6):
        save(checkpoints, step, best_step=max((one for one in best if one <= step), default=None))
    assert checkpoints.steps() == kept
    assert all(name.startswith("step-") or name in ("best", "last") for name in entries(checkpoints))


@pytest.mark.parametrize("text", [b"", b"step-7", b"../step-00000001", b"\xff\xfe", b"step-00000001/../x"])
def test_a_name_that_is_damaged_names_nothing(checkpoints: Checkpoints, text: bytes) -> None:
    save(checkpoints, 1, best_step=1)
    (checkpoints.folder / "best").write_bytes(text)
    assert checkpoints.named("best") is None


def test_a_pipe_in_the_place_of_best_is_not_waited_for(checkpoints: Checkpoints) -> None:
    checkpoints.folder.mkdir()
    assert checkpoints.named("best") is None
    os.mkfifo(checkpoints.folder / "best")
    assert checkpoints.named("best") is None


def test_a_checkpoint_is_found_by_name_or_step(four: Checkpoints) -> None:
    assert (four.folder / "best").read_text() == "step-00000002\n"
    for which, step in (("best", 2), ("last", 4), ("3", 3), ("00000002", 2)):
        assert_whole(four.resolve(which), step)


@pytest.mark.parametrize("which", ["1", "newest", "-2", "best"])
def test_a_checkpoint_that_is_not_there_is_answered_with_those_that_are(four: Checkpoints, which: str) -> None:
    (four.folder / "best").unlink()
    with pytest.raises(ConfigError, match=rf"best, last or one of the steps 2, 3, 4 .* received '{which}'"):
        four.resolve(which)


def test_resolving_a_damaged_checkpoint_is_an_error_and_leaves_it_there(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1)
    save(checkpoints, 2)
    flip(checkpoints.path(2) / STATE, 40)
    with pytest.raises(ConfigError, match=r"damaged.*expected another of 1, 2"):
        checkpoints.resolve("last")
    assert checkpoints.steps() == [1, 2]


# damage


@pytest.mark.torture(figure="F4")
@pytest.mark.parametrize("name", FILES)
def test_any_flipped_byte_and_any_truncation_is_noticed(
    folder: Path, name: str, record_property: Callable[[str, object], None]
) -> None:
    draw, path = random.Random(0), folder / name
    whole, most = path.read_bytes(), times(30, 300)
    lengths = draw.sample(range(len(whole)), min(most, len(whole)))
    damaged = [whole[:length] for length in {0, 1, len(whole) - 1, *lengths}]
    for place in (draw.randrange(len(whole)) for _ in range(most)):
        damaged.append(whole[:place] + bytes([whole[place] ^ draw.randrange(1, 256)]) + whole[place + 1 :])
    for content in (*damaged, whole + b"\n"):
        path.write_bytes(content)
        with pytest.raises(DamagedCheckpointError):
            read_checkpoint(folder)
    path.write_bytes(whole)
    read_checkpoint(folder)
    record_property("count", len(damaged) + 1)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_or_a_link_in_its_place_is_noticed(folder: Path, tmp_path: Path, name: str) -> None:
    shutil.move(folder / name, tmp_path / "elsewhere")
    with pytest.raises(DamagedCheckpointError, match=name):
        read_checkpoint(folder)
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedCheckpointError):
        read_checkpoint(folder)


def test_a_manifest_of_another_size_class_is_refused_unread(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b" " * (1 << 20) + (folder / MANIFEST).read_bytes())
    with pytest.raises(DamagedCheckpointError, match="is no manifest"):
        read_checkpoint(folder)


def test_the_newest_whole_one_is_taken_and_damaged_ones_are_set_aside(checkpoints: Checkpoints) -> None:
    messages: list[str] = []
    for step in (1, 2, 3):
        save(checkpoints, step, best_step=1)
    flip(checkpoints.path(2) / MANIFEST, 100)
    flip(checkpoints.path(3) / WEIGHTS, 50)
    assert_whole(Checkpoints(checkpoints.folder, messages.append).newest_whole(), 1)
    assert checkpoints.steps() == [1]
    assert {"damaged-0-step-00000002", "damaged-0-step-00000003"} <= set(entries(checkpoints))
    assert len(messages) == 2
    assert "set aside as damaged-0-step-00000003" in messages[0]


def test_a_step_that_is_damaged_twice_is_set_aside_twice(checkpoints: Checkpoints) -> None:
    for _ in range(2):
        save(checkpoints, 2)
        flip(checkpoints.path(2) / STATE, 40)
        assert checkpoints.newest_whole() is None
    assert {"damaged-0-step-00000002", "damaged-1-step-00000002"} <= set(entries(checkpoints))


# strangers' files: the hashes agree, the content is not ours


def test_a_state_that_fits_its_manifest_is_read_and_any_other_file_is_refused(folder: Path) -> None:
    write_state(folder / STATE, {"other": 1})
    reseal(folder)
    assert read_checkpoint(folder).state() == {"other": 1}
    (folder / STATE).write_bytes(pickle.dumps({"step": 1}))
    reseal(folder)
    with pytest.raises(ConfigError, match="was not read: it is no state"):
        read_checkpoint(folder).state()


def test_a_checkpoint_of_an_older_version_is_answered_with_a_sentence(checkpoints: Checkpoints, folder: Path) -> None:
    body = json.loads((folder / MANIFEST).read_text())["manifest"]
    seal(folder, {**body, "format": 1})
    with pytest.raises(ConfigError, match=r"was written by cnnlab 0\.1"):
        checkpoints.newest_whole()


@pytest.mark.parametrize("body", [{}, [], 3, {"files": {WEIGHTS: {}, STATE: {}}}, {"files": []}], ids=str)
def test_a_sealed_manifest_of_another_kind_is_damage(folder: Path, body: Any) -> None:
    seal(folder, body)
    with pytest.raises(DamagedCheckpointError):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", ["model.bin", "../outside"])
def test_a_manifest_that_names_other_files_is_refused(folder: Path, name: str) -> None:
    body = json.loads((folder / MANIFEST).read_text())["manifest"]
    body["files"][name] = body["files"][STATE]
    seal(folder, body)
    with pytest.raises(DamagedCheckpointError, match="has other files"):
        read_checkpoint(folder)


class MakesFolder:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_a_strangers_code_does_not_run(folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save({"progress": MakesFolder(canary)}, tmp_path / "pickled")
    shutil.copy(tmp_path / "pickled", folder / STATE)
    reseal(folder)
    torch.load(tmp_path / "pickled", weights_only=False)
    assert canary.is_dir()  # it would run
    canary.rmdir()
    with pytest.raises(ConfigError, match="was not read"):
        read_checkpoint(folder).state()
    assert not canary.exists()


# a write that is cut short


class Killed(BaseException):
    """Stands for SIGKILL: nothing that follows is done, no file is cleaned up."""


@pytest.mark.torture(figure="F2")
def test_death_at_any_moment_of_a_write_leaves_a_whole_newest_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    """Dies before the first, the second, … of all the calls that make something durable, visible or absent."""
    three = Checkpoints(tmp_path / "three")
    for step in (1, 2, 3):
        save(three, step, best_step=1)
    for moment in count():
        messages: list[str] = []
        checkpoints = Checkpoints(Path(shutil.copytree(three.folder, tmp_path / str(moment))), messages.append)
        calls = count()

        def dies(function: Callable[..., Any], calls: count = calls, moment: int = moment) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                if next(calls) >= moment:
                    raise Killed
                return function(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            durable = [(os, name) for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")]
            for module, name in (*durable, (safetensors.torch, "save_file")):
                patch.setattr(module, name, dies(getattr(module, name)))
            try:
                save(checkpoints, 4, best_step=4)
                survived = True
            except Killed:
                survived = False
        newest = checkpoints.newest_whole()
        assert newest is not None
        assert newest.step in ((4,) if survived else (3, 4))
        for step in checkpoints.steps():
            assert_whole(read_checkpoint(checkpoints.path(step)), step)
        assert checkpoints.resolve("best").step in (1, 4)
        assert checkpoints.resolve("last").step in (3, 4)
        assert messages == []
        save(checkpoints, 5)  # the next one clears up
        assert not [name for name in entries(checkpoints) if name.startswith(".")]
        if survived:
            break
    assert moment >= 10
    record_property("count", moment)


@pytest.mark.parametrize("leftover", [".writing-00000002-77", ".removing-00000001"])
def test_what_a_kill_left_is_ignored_and_cleared(checkpoints: Checkpoints, leftover: str) -> None:
    save(checkpoints, 1)
    shutil.copytree(checkpoints.path(1), checkpoints.folder / leftover)
    (checkpoints.folder / ".writing-best").write_text("step-0")
    assert checkpoints.steps() == [1]
    assert_whole(checkpoints.newest_whole(), 1)
    save(checkpoints, 2)
    assert entries(checkpoints) == ["last", "step-00000001", "step-00000002"]


@pytest.mark.parametrize("error", [SafetensorError("No space left on device"), OSError(28, "No space left on device")])
def test_a_disk_that_refuses_leaves_the_older_checkpoints(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*arguments: Any) -> NoReturn:
        raise error

    save(checkpoints, 1)
    with monkeypatch.context() as patch:
        patch.setattr("cnnlab.engine.checkpoint.write_state", full)
        with pytest.raises(TrainingError) as caught:
            save(checkpoints, 2)
    assert "the checkpoint of step 2 could not be written" in str(caught.value)
    assert str(error) in str(caught.value)
    assert entries(checkpoints) == ["last", "step-00000001"]
    assert_whole(checkpoints.newest_whole(), 1)


@pytest.mark.parametrize("large", ["weights", "state"])
def test_a_file_that_the_system_cuts_off_leaves_the_older_checkpoint(checkpoints: Checkpoints, large: str) -> None:
    save(checkpoints, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(TrainingError, match="the checkpoint of step 2 could not be written"):
            save(checkpoints, 2, **{large: {"weight": torch.zeros(50_000)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert entries(checkpoints) == ["last", "step-00000001"]
    assert_whole(checkpoints.newest_whole(), 1)


KILLS = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from cnnlab.engine.checkpoint import Checkpoints

torch.set_num_threads(1)
draw = random.Random(int(sys.argv[2]))
messages = []
checkpoints = Checkpoints(Path(sys.argv[1]), messages.append)

def save(step):
    state = {"progress": {"step": step}, "momentum": torch.full((60_000,), float(step))}
    weights = {"weight": torch.full((300, 200), float(step))}
    checkpoints.save(step, weights, state, {}, best_step=step - step % 7 or None)

def save_for_ever(step):
    while True:
        step += 1
        save(step)

newest = 0
for kill in range(int(sys.argv[3])):
    child = os.fork()
    if child == 0:
        save_for_ever(newest)
    while max([0, *checkpoints.steps()]) == newest:  # until it has written one
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    checkpoint = checkpoints.newest_whole()
    assert checkpoint is not None and checkpoint.step > newest, (checkpoint, newest)
    newest = checkpoint.step
    assert bool((checkpoint.weights["weight"] == newest).all())
    assert checkpoint.state()["progress"] == {"step": newest}
    assert bool((checkpoint.state()["momentum"] == newest).all())
    assert not messages, messages
    print(newest)
"""


@pytest.mark.torture(figure="F2")
@pytest.mark.parametrize("seed", range(times(1, 20)))
def test_kill_9_at_random_moments_leaves_a_whole_newest_checkpoint(
    checkpoints: Checkpoints, seed: int, record_property: Callable[[str, object], None]
) -> None:
    """The process that is killed is forked from a fresh one, so that torch is imported once."""
    environment = {**os.environ, "PYTHONPATH": str(Path(cnnlab.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLS, str(checkpoints.folder), str(seed), "12"]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    newest = [int(line) for line in answer.stdout.splitlines()]
    assert len(newest) == 12
    assert newest == sorted(set(newest))
    record_property("count", len(newest))


# what is kept


def test_checkpoints_at_a_cadence_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep_every=4)
    for step in range(1, 12):
        save(checkpoints, step)
    assert checkpoints.steps() == [4, 8, 10, 11]


@pytest.mark.parametrize("again", [False, True], ids=["one process", "a process for each"])
def test_those_with_the_highest_scores_stay_of_equal_ones_the_lower_loss(tmp_path: Path, again: bool) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep_best=3)
    scores = {1: [0.5, -1.0], 2: [0.9, -0.3], 3: [0.9, -0.2], 4: [0.7, -0.5], 5: None, 6: [0.7, -0.4], 7: [0.1, -9.0]}
    for step, score in {**scores, 8: None, 9: None}.items():
        if again:
            checkpoints = Checkpoints(tmp_path / "checkpoints", keep_best=3)
        save(checkpoints, step, score=score)
    assert checkpoints.steps() == [2, 3, 6, 8, 9]


# the best


def test_the_best_of_both_newest_ones_is_kept_and_named_when_it_is_resumed(checkpoints: Checkpoints) -> None:
    for step, best in ((1, 1), (2, 1), (3, 3)):
        save(checkpoints, step, best_step=best)
    assert checkpoints.steps() == [1, 2, 3]
    flip(checkpoints.path(3) / WEIGHTS, 50)
    assert_whole(checkpoints.newest_whole(), 2)
    assert checkpoints.named("best") == 1


def test_a_kill_between_a_checkpoint_and_the_name_of_the_best_is_mended(checkpoints: Checkpoints) -> None:
    for step, best in ((1, 1), (2, 2)):
        save(checkpoints, step, best_step=best)
    (checkpoints.folder / "best").write_text("step-00000001\n")  # as the kill leaves it
    assert_whole(checkpoints.newest_whole(), 2)
    assert checkpoints.named("best") == 2
