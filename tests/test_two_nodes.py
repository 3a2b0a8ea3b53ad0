"""Two machines, each a network namespace of Linux's: one loses a rank, or its cable for a while."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from test_ranks_killed import SETTINGS, STEPS, output_of, ranks
from test_resume import assert_same_end, last_step
from two_ranks import REPOSITORY

NAMESPACE = ["unshare", "--map-root-user", "--net"]


def can_make_namespaces() -> bool:
    if not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return False
    command = [*NAMESPACE, "ip", "link", "add", "left", "type", "veth", "peer", "name", "right"]
    return subprocess.run(command, capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_make_namespaces(), reason="this system makes no network namespaces"),
]


@dataclass
class Node:
    """A namespace, held by a process that sleeps, with an address at its end of the cable."""

    holder: "subprocess.Popen[bytes]"
    cable: str
    address: str

    def command(self, *command: str) -> list[str]:
        return ["nsenter", f"--target={self.holder.pid}", "--user", "--preserve-credentials", "--net", *command]

    def ip(self, *arguments: str) -> None:
        subprocess.run(self.command("ip", *arguments), check=True, capture_output=True)

    def start(self, run: Path, *overrides: str) -> "subprocess.Popen[str]":
        """One rank of a job of two machines; the first of them keeps the rendezvous."""
        options = [
            "--nnodes=2",
            "--nproc-per-node=1",
            "--rdzv-backend=c10d",
            "--rdzv-endpoint=10.77.0.1:29400",
            f"--rdzv-conf=is_host={int(self.address == '10.77.0.1')}",
            "--rdzv-id=job",
            f"--local-addr={self.address}",
            "--max-restarts=3",
        ]
        train = [str(REPOSITORY / "train.py"), *SETTINGS, f"run_dir={run}", *overrides]
        return subprocess.Popen(
            self.command(sys.executable, "-m", "torch.distributed.run", *options, *train),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": self.cable},
        )


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    """Two of them, joined by a cable."""
    first = subprocess.Popen([*NAMESPACE, "sleep", "600"])
    wait_for_namespace(first)
    left = Node(first, "left", "10.77.0.1")
    # in the same user namespace, where the second's end of the cable may be moved to it
    second = subprocess.Popen(left.command("unshare", "--net", "sleep", "600"))
    wait_for_namespace(second)
    right = Node(second, "right", "10.77.0.2")
    try:
        left.ip("link", "add", "left", "type", "veth", "peer", "name", "right", "netns", str(second.pid))
        for node in (left, right):
            node.ip("address", "add", f"{node.address}/24", "dev", node.cable)
            node.ip("link", "set", node.cable, "up")
            node.ip("link", "set", "lo", "up")
        yield [left, right]
    finally:
        for process in (second, first):
            process.kill()
            process.wait()


def wait_for_namespace(process: "subprocess.Popen[bytes]") -> None:
    """Until it sleeps in its own."""
    while psutil.Process(process.pid).name() != "sleep":
        time.sleep(0.01)


def finish(jobs: "Sequence[subprocess.Popen[str]]") -> list[str]:
    outputs = [output_of(job) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], "\n".join(outputs)
    return outputs


def wait_for_step(run: Path, step: int, jobs: "Sequence[subprocess.Popen[str]]") -> None:
    deadline = time.monotonic() + 240
    while last_step(run) < step:
        assert time.monotonic() < deadline
        assert all(job.poll() is None for job in jobs), [output_of(job) for job in jobs if job.poll() is not None]
        time.sleep(0.005)


@pytest.fixture
def unbroken(nodes: list[Node], tmp_path: Path) -> Path:
    run = tmp_path / "unbroken"
    finish([node.start(run) for node in nodes])
    return run


def test_a_job_of_two_machines_ends_the_same_whatever_happens_to_one(
    nodes: list[Node], unbroken: Path, tmp_path: Path
) -> None:
    for number, node in enumerate(nodes):
        run = tmp_path / f"killed{number}"
        jobs = [node.start(run) for node in nodes]
        wait_for_step(run, 35, jobs)
        [rank] = ranks(jobs[number]).values()
        rank.kill()
        finish(jobs)
        assert_same_end(run, unbroken, STEPS)
    run = tmp_path / "disconnected"
    jobs = [node.start(run) for node in nodes]
    wait_for_step(run, 35, jobs)
    nodes[1].ip("link", "set", "right", "down")
    time.sleep(3)
    step = last_step(run)
    time.sleep(2)
    assert last_step(run) == step  # nobody goes on alone
    nodes[1].ip("link", "set", "right", "up")
    finish(jobs)
    assert_same_end(run, unbroken, STEPS)
