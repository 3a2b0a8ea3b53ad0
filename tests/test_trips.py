"""The trips that CONTRIBUTING describes are those that a batch, a key and a checkpoint take through the files."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from commands import run
from fast_run import train_fast

from cnnlab.cli import train
from cnnlab.engine.backends.compiled import missing_compiler
from cnnlab.engine.backends.cuda_graph import Captured
from cnnlab.engine.step import forward_backward
from cnnlab.engine.trainer import Trainer
from cnnlab.runtime.batch import Batch

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "cnnlab"
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text()
NOT_COUNTED = ("blocks/", "losses.py", "runtime/")  # what any batch meets, whatever computes the step

Call = tuple[str, str]  # qualified name, file below cnnlab/


@cache
def below_package(file: str) -> str:
    return Path(file).relative_to(PACKAGE).as_posix() if Path(file).is_relative_to(PACKAGE) else ""


def file_of(frame: FrameType) -> str:
    """The file below `cnnlab/`; empty for others' code."""
    return below_package(frame.f_code.co_filename)


@contextmanager
def profiled(note: Callable[[FrameType], None]) -> Iterator[None]:
    """`note` gets the frame of each call of the package's functions in this thread."""

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and file_of(frame):
            note(frame)

    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)


def first_calls(action: Callable[[], Any]) -> list[Call]:
    """The package's functions in the order of their first call."""
    seen: dict[Call, None] = {}
    with profiled(lambda frame: seen.setdefault((frame.f_code.co_qualname, file_of(frame)))):
        action()
    return list(seen)


def section(title: str) -> str:
    return CONTRIBUTING.split(f"## {title}\n")[1].split("\n## ")[0]


def stops(text: str) -> list[Call]:
    """What a section names as `function` (`file`), in its order."""
    return re.findall(r"`([\w.]+)`\s\(`([\w/]+\.py)`\)", text)


def assert_taken(trip: list[Call], calls: list[Call]) -> None:
    assert len(trip) >= 4
    assert [stop for stop in trip if stop not in calls] == []
    places = [calls.index(stop) for stop in trip]
    assert [(one, other) for one, other in pairwise(trip) if calls.index(one) > calls.index(other)] == [], places


def test_the_trip_of_a_key(in_tmp_path: Path) -> None:
    text = section("The trip of a key")
    command = re.search(r"`python train\.py (.*?)`", text)
    message = re.search(r"`(error: .*?)`", text)
    assert command
    assert message
    answers: list[Any] = []
    calls = first_calls(lambda: answers.append(run(train, *command[1].split())))
    assert (answers[0].code, answers[0].err.strip()) == (2, message[1])
    assert_taken(stops(text), calls)


def test_the_trips_of_a_batch_and_a_checkpoint(in_tmp_path: Path) -> None:
    written, read = section("The trip of a checkpoint").split("resume=RUN")
    calls = first_calls(lambda: train_fast("run_dir=run", "trainer.log_every=1"))
    assert_taken(stops(section("The trip of a batch")), calls)
    assert_taken(stops(written), calls)
    assert_taken(
        stops(read), first_calls(lambda: run(train, "resume=run", "trainer.max_steps=8", "schedule.restart=true"))
    )


def in_eager(trainer: Trainer) -> None:
    """As the run has built it."""


def in_a_captured_step(trainer: Trainer) -> None:
    """The CUDA graph's step, whose replay takes the captured step itself where there is no GPU."""
    trainer.train_state.step = Captured(trainer.progress.images, forward_backward)


EXECUTIONS = {
    "eager": (in_eager, []),
    "accumulated, clipped": (in_eager, ["trainer.accumulate=2", "trainer.clip_norm=1"]),
    "compiled": (in_eager, ["trainer.execution.compile=true", "model=mlp"]),
    "captured": (in_a_captured_step, []),
}


def holds_images(value: Any, batch: Batch) -> bool:
    """True for a batch, for images of its size, and for a sequence or mapping with one of them."""
    if isinstance(value, torch.Tensor):
        return value.shape[1:] == batch.x_NCHW.shape[1:]
    if isinstance(value, dict):
        return holds_images(list(value.values()), batch)
    return isinstance(value, Batch) or (
        isinstance(value, list | tuple) and any(holds_images(item, batch) for item in value)
    )


@pytest.mark.parametrize(
    "execution", [pytest.param(name, marks=[pytest.mark.slow] if name == "compiled" else []) for name in EXECUTIONS]
)
def test_a_batch_enters_at_most_six_files_downward(
    in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch, execution: str
) -> None:
    """From the loader's yield to the end of the step; a file that handed it on does not get it again."""
    prepare, overrides = EXECUTIONS[execution]
    if execution == "compiled" and (missing := missing_compiler(torch.device("cpu"))):
        pytest.skip(f"there is no {missing}")
    entered = {"data/loader.py": 0}  # whose generator yields it
    returned: list[Call] = []
    take_step = Trainer._step

    def watched(trainer: Trainer, batch: Batch) -> None:
        """The fourth step: those before may prepare what all others use."""

        def note(frame: FrameType) -> None:
            if not holds_images(dict(frame.f_locals), batch):
                return
            stack, outer = [file_of(frame)], frame.f_back
            while outer and outer.f_code is not watched.__code__:
                if file_of(outer) not in ("", stack[-1]):
                    stack.append(file_of(outer))
                outer = outer.f_back
            counted = [file for file in stack if not file.startswith(NOT_COUNTED)]
            entered.update(dict.fromkeys(counted[:1], len(entered)))
            if len(set(counted)) < len(counted):
                returned.append((frame.f_code.co_qualname, stack[0]))

        if trainer.progress.step == 1:
            prepare(trainer)
        with profiled(note) if trainer.progress.step == 3 else nullcontext():
            take_step(trainer, batch)

    monkeypatch.setattr("cnnlab.engine.backends.cuda_graph.capture", lambda step, *given: step)
    monkeypatch.setattr(Trainer, "_step", watched)
    answer = train_fast("trainer.max_steps=4", *overrides)
    assert answer.code == 0, answer.err
    assert "engine/trainer.py" in entered
    assert returned == []
    assert len(entered) <= 6
