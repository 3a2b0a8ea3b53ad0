"""Commands in separate processes, some at a time, on the machine's cores and GPUs."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PAUSE = 0.05  # seconds between two looks at the processes
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
GPUS = "CUDA_VISIBLE_DEVICES"
# what a process gets when its parent is stopped: the other signal, since its first may have come to the whole group
# already (Ctrl-C in a terminal, a batch system), and a second of the same kind would stop it before it has saved
PASSED_ON = {signal.SIGINT: signal.SIGTERM, signal.SIGTERM: signal.SIGINT}
KILLED = -signal.SIGKILL if hasattr(signal, "SIGKILL") else 1  # how a process that was killed ends
END = object()  # of the tasks
STOPPED = {status for number in PASSED_ON for status in (128 + number, -number)}


def shared_threads(environment: Mapping[str, str], cores: int, at_once: int) -> dict[str, str]:
    """The variables that give each of `at_once` processes an equal number of the cores; the user's own setting wins."""
    if at_once == 1 or "OMP_NUM_THREADS" in environment:
        return {}
    return {name: str(max(1, cores // at_once)) for name in THREADS if name not in environment}


def gpus_to_share(environment: Mapping[str, str], count: int) -> list[str]:
    """The names, as CUDA_VISIBLE_DEVICES takes them, of the `count` GPUs there are; none where there is one."""
    named = environment[GPUS].split(",") if GPUS in environment else [str(number) for number in range(count)]
    return named[:count] if len(named) > 1 and count > 1 else []


def least_used(gpus: Sequence[str], in_use: Sequence[str]) -> str:
    """The GPU with the fewest processes, the first of several."""
    return min(gpus, key=in_use.count)


@dataclass(frozen=True)
class Task:
    """A command line, and the file that gets what it prints."""

    command: Sequence[str]
    log: Path


@dataclass(frozen=True)
class Ended:
    """How a process ended: `completed`, `failed` or `interrupted`; `remark` names the cause."""

    status: str
    seconds: float
    remark: str = ""


class Process(Protocol):
    """Of `subprocess.Popen`, what is used here."""

    returncode: int | None

    def poll(self) -> int | None: ...
    def send_signal(self, number: int, /) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


def start_fresh(task: Task, environment: Mapping[str, str]) -> Process:
    """A new process; what it prints is added to the task's log."""
    with task.log.open("ab") as log:
        return subprocess.Popen(
            task.command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )


Start = Callable[[Task, Mapping[str, str]], Process]


@dataclass
class _Child:
    number: int
    process: Process
    started: float
    gpu: str
    signalled: bool = False


class Processes:
    """Runs tasks, `at_once` at a time, each on the GPU that the fewest use.

    SIGINT and SIGTERM stop it: no further task starts, those that run get the signal and are waited for. A second
    signal kills them. `stopped_by` is the first signal's number.
    """

    def __init__(self, at_once: int, gpus: Sequence[str], environment: Mapping[str, str]) -> None:
        self.at_once = at_once
        self.gpus = gpus
        self.environment = environment
        self.received: list[int] = []
        self.running: list[_Child] = []

    @property
    def stopped_by(self) -> int | None:
        return self.received[0] if self.received else None

    def run(
        self,
        tasks: Iterable[tuple[int, Task] | None],
        ended: Callable[[int, Ended], None],
        look: Callable[[], None] = lambda: None,
        start: Start = start_fresh,
    ) -> None:
        """Calls `ended` with a task's number as it ends, and `look` whenever some have started or ended.

        The next task is asked for when there is room for it; None in its place means that there is none yet.
        """
        coming = iter(tasks)
        more = True
        try:
            with self._stop_signals():
                while self.running or (more and not self.received):
                    while more and not self.received and len(self.running) < self.at_once:
                        task = next(coming, END)
                        more = task is not END
                        if not isinstance(task, tuple):
                            break
                        number, what = task
                        self._start(number, what, start)
                        look()
                    self._pass_signals_on()
                    for child in [child for child in self.running if child.process.poll() is not None]:
                        self.running.remove(child)
                        ended(child.number, self._how_it_ended(child))
                        look()
                    time.sleep(PAUSE)
        finally:  # after an error of ours no process is left running
            for child in self.running:
                child.process.terminate()

    def _start(self, number: int, task: Task, start: Start) -> None:
        gpu = least_used(self.gpus, [child.gpu for child in self.running]) if self.gpus else ""
        environment = {**self.environment, **({GPUS: gpu} if gpu else {})}
        self.running.append(_Child(number, start(task, environment), time.monotonic(), gpu))

    @contextmanager
    def _stop_signals(self) -> Iterator[None]:
        """The handlers only note the signal; what is to be done is done between two looks."""
        previous: dict[signal.Signals, Any] = {}
        for number in PASSED_ON:
            previous[number] = signal.signal(number, lambda received, frame: self.received.append(received))
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _pass_signals_on(self) -> None:
        for child in self.running:
            if len(self.received) > 1:
                child.process.kill()
            elif self.received and not child.signalled:
                if os.name != "nt":  # on Windows, Ctrl-C goes to every process of a console, and nothing else saves
                    child.process.send_signal(PASSED_ON[signal.Signals(self.received[0])])
                child.signalled = True

    def _how_it_ended(self, child: _Child) -> Ended:
        code, seconds = child.process.returncode, time.monotonic() - child.started
        assert code is not None
        if code == 0:
            return Ended("completed", seconds)
        killed_by_us = code == KILLED and len(self.received) > 1
        if code in STOPPED or killed_by_us:
            return Ended("interrupted", seconds, f"stopped by {signal.Signals(abs(code) % 128).name}")
        if code < 0:
            memory = ": perhaps out of memory" if code == KILLED else ""
            return Ended("failed", seconds, f"killed by {signal.Signals(-code).name}{memory}")
        return Ended("failed", seconds, f"exit status {code}")
