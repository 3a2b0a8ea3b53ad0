"""A process that has imported what a job needs and forks for each: a copy starts without the seconds of imports.

A copy is as a fresh process is: it has its own environment, file descriptors and working state, no other thread, and
nothing was computed before it. CUDA is not initialized before the fork, and each process chooses its own GPU.
"""

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

from cnnlab.sweep.processes import KILLED, Process, Start, Task, start_fresh

PAUSE = 0.01  # seconds between two looks at the copies
NEEDED = ("cnnlab.application", "cnnlab.run.training", "torch.utils.tensorboard")


@contextmanager
def starter(environment: Mapping[str, str], jobs: int) -> Iterator[Start]:
    """How so many jobs start: as copies where the system forks safely and there are several."""
    if sys.platform != "linux" or jobs < 2:
        yield start_fresh
        return
    with closing(Worker(environment)) as worker:
        yield worker.start


class Worker:
    """Starts tasks of Python's `-c` as copies of one process. One that was killed is replaced by fresh processes."""

    def __init__(self, environment: Mapping[str, str], modules: Iterable[str] = NEEDED) -> None:
        ours, theirs = Pipe()
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; from cnnlab.sweep.worker import serve; "
            f"exec(serve({theirs.fileno()}, {tuple(modules)!r}))"
        )
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._connection: Connection = ours
        self._returncodes: dict[int, int] = {}

    def start(self, task: Task, environment: Mapping[str, str]) -> Process:
        """Runs `[python, "-c", program, *arguments]`; what it prints is added to the task's log."""
        try:
            self._connection.send((*task.command[2:], dict(environment), str(task.log.absolute())))
            while isinstance(message := self._connection.recv(), tuple):
                self._note(message)
        except (EOFError, OSError):
            return start_fresh(task, environment)
        return Copy(self, message)

    def returncode(self, pid: int) -> int | None:
        """As `Popen.poll`: None while the copy runs."""
        try:
            while self._connection.poll():
                self._note(self._connection.recv())
        except (EOFError, OSError):  # the worker was killed: nobody knows more than that its copy is gone
            if not _is_alive(pid):
                self._returncodes.setdefault(pid, KILLED)
        return self._returncodes.get(pid)

    def _note(self, message: tuple[int, int]) -> None:
        pid, status = message
        self._returncodes[pid] = status

    def close(self) -> None:
        """Ends the worker; copies that still run are left alone."""
        self._connection.close()
        self._process.wait()


class Copy:
    """What `subprocess.Popen` is to a fresh process."""

    def __init__(self, worker: Worker, pid: int) -> None:
        self.worker = worker
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.worker.returncode(self.pid)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# in the worker


def serve(descriptor: int, modules: Sequence[str]) -> str:
    """Returns the program to run, in each copy; the worker itself exits when the connection is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they come to the whole group: the copies answer them
        signal.signal(number, signal.SIG_IGN)
    for name in modules:
        importlib.import_module(name)
    with Connection(descriptor) as connection:
        while True:
            if connection.poll(PAUSE):
                try:
                    program, *arguments, environment, log = connection.recv()
                except EOFError:
                    sys.exit()
                pid = os.fork()
                if pid == 0:
                    break
                connection.send(pid)
            for ended in _ended():
                connection.send(ended)
    _become_fresh(arguments, environment, Path(log))
    return str(program)


def _ended() -> Iterable[tuple[int, int]]:
    """Process ids and return codes of copies that have ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def _become_fresh(arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with log.open("ab") as file:
        for descriptor in (sys.stdout.fileno(), sys.stderr.fileno()):
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
