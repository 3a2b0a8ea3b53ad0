"""A disk that is full, or files that cannot be read: one sentence, and what was saved before is whole."""

import io
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import Answer, run
from fast_run import FAST

from cnnlab.cli import evaluate, train
from cnnlab.engine.checkpoint import Checkpoints

pytestmark = pytest.mark.torture(figure="attacks")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to let any file grow beyond so many bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def assert_one_sentence(answer: Answer, status: int) -> None:
    assert answer.code == status, answer.err
    assert "Traceback" not in answer.err
    assert next(line for line in answer.err.splitlines() if not line.startswith("warning: ")).startswith("error: ")


@pytest.mark.parametrize("size", [0, 500, 4000, 60_000])
def test_a_fresh_run_on_a_full_disk_ends_with_a_sentence(in_tmp_path: Path, size: int) -> None:
    with largest_file(size):
        answer = run(train, FAST, "run_dir=run")
    assert_one_sentence(answer, 2 if size == 0 else 1)  # not even its lock could be written
    assert "written" in answer.err or "locked" in answer.err


@pytest.mark.parametrize("size", [0, 500, 4000, 60_000])
def test_a_resumed_run_on_a_full_disk_keeps_its_checkpoints(finished: Path, size: int) -> None:
    with largest_file(size):
        answer = run(train, "resume=run", "trainer.max_steps=12", "schedule.restart=true")
    assert_one_sentence(answer, 2 if size == 0 else 1)
    checkpoint = Checkpoints(finished / "checkpoints").newest_whole()
    assert checkpoint
    assert checkpoint.step == 6
    assert run(train, "resume=run", "trainer.max_steps=12", "schedule.restart=true").code == 0


def test_an_evaluation_on_a_full_disk_ends_with_a_sentence(finished: Path) -> None:
    with largest_file(100):
        answer = run(evaluate, "run=run")
    assert_one_sentence(answer, 1)
    assert "cannot be written" in answer.err


@pytest.fixture
def forbid(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a file one that this user may not read; whoever runs the tests may read all of them."""

    def unreadable(name: str) -> None:
        def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(path: Any, *arguments: Any, **options: Any) -> Any:
                if str(path).endswith(name):
                    raise PermissionError(13, "Permission denied", str(path))
                return function(path, *arguments, **options)

            return call

        monkeypatch.setattr(io, "open", guarded(io.open))
        monkeypatch.setattr(os, "open", guarded(os.open))

    return unreadable


@pytest.mark.parametrize(
    "name",
    [
        "run/config.yaml",
        "run/overrides.yaml",
        "run/environment.json",
        "run/metrics.jsonl",
        "checkpoints/best",
        "step-00000006/manifest.json",
        "step-00000006/model.safetensors",
        "step-00000006/state.safetensors",
    ],
)
@pytest.mark.parametrize("command", ["resume", "evaluate"])
def test_a_file_that_cannot_be_read_is_named_or_not_needed(
    finished: Path, forbid: Callable[[str], None], name: str, command: str
) -> None:
    forbid(name)
    answer = (
        run(train, "resume=run", "trainer.max_steps=7", "schedule.restart=true")
        if command == "resume"
        else run(evaluate, "run=run")
    )
    assert "Traceback" not in answer.err
    assert answer.code in (0, 1, 2)
    if answer.code:
        assert name in answer.err
    assert not list((finished / "checkpoints").glob("damaged*"))  # nobody knows that it is
