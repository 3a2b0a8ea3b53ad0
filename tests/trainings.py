"""Trainings in processes of their own, which can be killed and have nothing of the tests' process.

`make torture` starts each afresh. Otherwise each is a copy of one process that has imported what a training needs and
done nothing else, which saves the seconds of imports; tests/sweep/test_worker.py shows that its bits are the same.
"""

import atexit
import os
import sys
import time
from functools import cache
from pathlib import Path
from tempfile import mkstemp

from repetitions import times

from cnnlab.sweep.processes import Process, Start, Task, start_fresh
from cnnlab.sweep.worker import Worker


@cache
def start() -> Start:
    """How a process is started."""
    if times(0, 1) or sys.platform != "linux":
        return start_fresh
    worker = Worker(os.environ)
    atexit.register(worker.close)
    return worker.start


class Training:
    """`python train.py OVERRIDES` in the working directory."""

    def __init__(self, *overrides: str) -> None:
        number, log = mkstemp(prefix="training", suffix=".log")
        os.close(number)
        self.log = Path(log)
        program = f"import os; os.chdir({os.getcwd()!r}); from cnnlab.cli import train; train()"
        self.process: Process = start()(Task([sys.executable, "-c", program, *overrides], self.log), os.environ)

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait(self, timeout: float = 240) -> int:
        """The exit status, -n after signal n. Raises `TimeoutError`."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(self.output)
            time.sleep(0.005)
        assert self.process.returncode is not None
        return self.process.returncode

    def check_running(self) -> None:
        assert self.process.poll() is None, self.output

    def kill(self) -> None:
        self.process.kill()
        self.wait()


def run_to_end(*overrides: str) -> str:
    """What a training that completes prints."""
    training = Training(*overrides)
    try:
        assert training.wait() == 0, training.output
    finally:
        training.kill()
    return training.output
