"""Jobs as copies of a process that has imported what they need."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from commands import ok, run
from fast_run import FAST

from cnnlab.cli import train
from cnnlab.engine.checkpoint import read_checkpoint
from cnnlab.sweep.processes import KILLED, Ended, Process, Processes, Task, start_fresh
from cnnlab.sweep.worker import Worker, starter


@pytest.fixture
def worker() -> Iterator[Worker]:
    with closing(Worker(os.environ, modules=())) as worker:
        yield worker


def start(worker: Worker, program: str, log: Path, **environment: str) -> Process:
    return worker.start(Task(["python", "-c", program, "argument"], log), {**os.environ, **environment})


def end(process: Process) -> int:
    deadline = time.monotonic() + 30
    while process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.returncode is not None
    return process.returncode


def test_a_copy_has_what_a_fresh_process_has(worker: Worker, tmp_path: Path) -> None:
    program = """
import os, random, signal, sys, threading
print(__name__, sys.argv, os.environ["ONLY"], sys.stdin.read() == "", threading.active_count())
print([signal.getsignal(number) is how for number, how in ((2, signal.default_int_handler), (15, signal.SIG_DFL))])
print(random.random(), file=sys.stderr)
"""
    logs = [tmp_path / name for name in ("first.log", "second.log")]
    assert [end(start(worker, program, log, ONLY="here")) for log in logs] == [0, 0]
    first, second = (log.read_text().splitlines() for log in logs)
    assert first[:2] == second[:2] == ["__main__ ['-c', 'argument'] here True 1", "[True, True]"]
    assert first[2] != second[2]
    assert "ONLY" not in os.environ


def test_a_copy_leaves_nothing_in_the_next(worker: Worker, tmp_path: Path) -> None:
    end(start(worker, "import os, sys; sys.left = 1; os.chdir('/'); os.umask(0o777)", tmp_path / "log"))
    program = f"import os, sys; assert not hasattr(sys, 'left'); assert os.getcwd() == {os.getcwd()!r}"
    assert end(start(worker, program, tmp_path / "log")) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each job has a new interpreter")
def test_several_jobs_are_copies_and_a_single_one_starts_fresh() -> None:
    with starter(os.environ, 2) as start_one:
        assert isinstance(getattr(start_one, "__self__", None), Worker)
    with starter(os.environ, 1) as start_one:
        assert start_one is start_fresh


def test_where_the_worker_was_killed_jobs_start_fresh(worker: Worker, tmp_path: Path) -> None:
    running = start(worker, "import time; time.sleep(0.5)", tmp_path / "log")
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._process.wait()
    assert running.poll() is None
    assert end(start(worker, "print('fresh')", tmp_path / "fresh.log")) == 0
    assert (tmp_path / "fresh.log").read_text() == "fresh\n"
    assert end(running) == KILLED  # how it ended, nobody knows


@pytest.mark.slow
def test_a_trained_copy_has_the_bits_of_a_fresh_process(in_tmp_path: Path) -> None:
    """With what draws and keeps state: dropout, batch norm, augmentation, averaged weights."""
    settings = (FAST, "model=resnet_small", "data.augment.move={type: shift, pixels: 1}", "trainer.ema=0.9")
    ok(run(train, "-m", *settings, "seed=3,4", "hydra.sweep.dir=copies"))
    program = "from cnnlab.cli import train; train()"
    ended: dict[int, Ended] = {}
    task = Task([sys.executable, "-c", program, *settings, "seed=3", "run_dir=fresh"], Path("fresh.log"))
    Processes(1, (), dict(os.environ)).run([(0, task)], ended.__setitem__)
    assert ended[0].status == "completed", Path("fresh.log").read_text(encoding="utf-8")
    (copy,) = Path("copies").glob("000_*/")
    ours, fresh = (read_checkpoint(one / "checkpoints/step-00000006") for one in (copy, Path("fresh")))
    assert all(torch.equal(ours.weights[name], value) for name, value in fresh.weights.items())
