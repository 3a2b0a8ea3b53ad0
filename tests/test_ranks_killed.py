"""A job of two ranks under torchrun, one of which is killed, continues by itself and ends with the same bits."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from repetitions import times
from test_resume import assert_same_end, last_step
from two_ranks import REPOSITORY, needs_loopback

pytestmark = [pytest.mark.slow, needs_loopback]
STEPS = 95
SETTINGS = (
    "seed=3",
    "data.batch_size=64",
    "+data.augment={flip: horizontal_flip, move: {type: shift, pixels: 1}}",
    "trainer.epochs=5",
    "trainer.accumulate=2",
    "trainer.ema=0.99",
    "trainer.clip_norm=2",
    "trainer.checkpoint_every=7",
    "trainer.log_every=5",
    "trainer.execution.layout=channels_last",
    "resume=auto",
)
SECONDS = 90  # until a job has ended, whatever happens to one of its ranks


def start(run: Path, *overrides: str, restarts: int = 0) -> "subprocess.Popen[str]":
    options = ["--standalone", "--nproc-per-node=2", f"--max-restarts={restarts}"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, str(REPOSITORY / "train.py")]
    return subprocess.Popen(
        [*command, *SETTINGS, f"run_dir={run}", *overrides],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def output_of(job: "subprocess.Popen[str]") -> str:
    try:
        output, _ = job.communicate(timeout=300)
    finally:
        for process in (*psutil.Process(job.pid).children(recursive=True), job) if job.poll() is None else ():
            process.kill()
    return output


def errors(output: str) -> list[str]:
    """The beginning of each of our sentences."""
    return [line.partition(" on ")[0] for line in output.splitlines() if line.startswith("error:")]


def wait_for_step(run: Path, step: int, job: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 240
    while last_step(run) < step:
        assert time.monotonic() < deadline
        assert job.poll() is None, output_of(job)
        time.sleep(0.005)


def ranks(job: "subprocess.Popen[str]") -> dict[int, psutil.Process]:
    """The processes of the job by their numbers."""
    found = {}
    for child in psutil.Process(job.pid).children():
        number = child.environ().get("RANK")
        if number is not None:
            found[int(number)] = child
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    job = start(run)
    output = output_of(job)
    assert job.returncode == 0, output
    return run


@pytest.mark.torture(figure="F7")
@pytest.mark.parametrize("seed", range(times(2, 20)))
def test_a_job_whose_rank_is_killed_continues_to_the_same_bits(uninterrupted: Path, tmp_path: Path, seed: int) -> None:
    run, step, killed = tmp_path / "run", random.Random(seed).randrange(7, STEPS - 14), seed % 2
    job = start(run, restarts=1)
    wait_for_step(run, step, job)
    ranks(job)[killed].send_signal(signal.SIGKILL)
    output = output_of(job)
    assert job.returncode == 0, output
    assert errors(output) == [f"error: another rank has ended: this one, rank {1 - killed}"]
    assert_same_end(run, uninterrupted, STEPS)


def fill_disk(process: psutil.Process) -> None:
    """No file of the process may have more than a byte from now on."""
    process.rlimit(psutil.RLIMIT_FSIZE, (1, 1))


LOST = "error: another rank has ended: this one, rank 1"
FAULTS: dict[str, tuple[Callable[[psutil.Process, dict[int, psutil.Process]], Any], list[str]]] = {
    "killed": (lambda agent, ranks: ranks[0].kill(), [LOST]),
    "stopped": (
        lambda agent, ranks: ranks[0].send_signal(signal.SIGSTOP),
        ["error: another rank did not answer within 5 s: this one, rank 1"],
    ),
    "disk": (lambda agent, ranks: fill_disk(ranks[0]), ["error: the checkpoint of step"]),
    "TERM to one": (lambda agent, ranks: ranks[1].terminate(), []),
    "TERM to all ranks": (lambda agent, ranks: [rank.terminate() for rank in ranks.values()], []),
    "TERM to the agent": (lambda agent, ranks: agent.terminate(), []),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_no_rank_waits_for_one_that_does_not_come(tmp_path: Path, fault: str) -> None:
    """Where nothing is lost, as after SIGTERM, the job has saved its last step."""
    cause, expected = FAULTS[fault]
    run = tmp_path / "run"
    job = start(run, "trainer.epochs=1000", "trainer.collective_timeout=5")
    wait_for_step(run, 7, job)
    started = time.monotonic()
    cause(psutil.Process(job.pid), ranks(job))
    output = output_of(job)
    assert time.monotonic() - started < SECONDS
    assert job.returncode != 0
    assert [line[: len(start)] for line, start in zip(errors(output), expected, strict=True)] == expected, output
    assert ("interrupted: " in output) is (not expected), output
    assert not expected or last_step(run) % 7 == 0
