"""A run's directory: made exclusively, locked while a process works in it."""

import contextlib
import fcntl
import itertools
import json
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any, TextIO

from cnnlab.config.saved_config import find_config
from cnnlab.runtime.errors import ConfigError, first_line

RUNS = Path("runs")


class RunDirectory:
    """`runs/NAME/DATE_TIME_xxxx`; two processes never work in one. Raises `ConfigError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made: list[Path] = []  # innermost first
        self._lock: TextIO | None = None

    @classmethod
    def create(cls, name: str, wanted: Path | None) -> "RunDirectory":
        """Makes the directory `wanted`, or one of a name of its own under `runs/NAME`."""
        path = wanted or RUNS / name / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{secrets.token_hex(2)}"
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(exist_ok=False)
        except OSError as error:
            if path.exists():
                raise ConfigError(
                    f"run_dir: {path.absolute()} exists: expected a new directory, or resume={path} to go on in it"
                ) from None
            raise ConfigError(
                f"run_dir: {path.absolute()} cannot be made: {first_line(error)}; expected a place to write to"
            ) from error
        directory = cls(path)
        directory._made = made
        directory.lock()
        return directory

    @classmethod
    def open(cls, path: Path, key: str) -> "RunDirectory":
        """An existing run's directory; `key` is where in the config it was named."""
        find_config(path, key)
        return cls(path)

    def lock(self) -> None:
        """Holds the run until this process ends. Raises `ConfigError` that names the holder."""
        path = self.path / ".lock"
        self._lock = path.open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            holder = path.read_text().strip() or "another process"
            raise ConfigError(
                f"resume: {self.path} is in use by {holder}: expected a run that no process works in"
            ) from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._lock.flush()

    def release(self) -> None:
        if self._lock:
            self._lock.close()
            self._lock = None

    def discard(self) -> None:
        """Removes the directory in which nothing was written yet, and the empty folders that were made around it."""
        self.release()
        (self.path / ".lock").unlink(missing_ok=True)
        for folder in self._made:
            with contextlib.suppress(OSError):  # another run has begun in it
                folder.rmdir()

    def write_text(self, name: str, text: str) -> Path:
        """Replaces a file at once: it is the old one or the new one."""
        temporary = self.path / f".{name}.tmp"
        temporary.write_text(text)
        return temporary.replace(self.path / name)

    def write_json(self, name: str, content: dict[str, Any]) -> Path:
        return self.write_text(name, json.dumps(content, indent=2) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """The content of a JSON file, empty where there is none."""
        path = self.path / name
        if not path.is_file():
            return {}
        content = json.loads(path.read_text())
        assert isinstance(content, dict)
        return content


def make_sweep_directory(wanted: Path) -> Path:
    """Makes `wanted`, or `wanted_2`, … where that is taken: two sweeps never share one. Raises `ConfigError`."""
    for number in itertools.count(1):
        path = wanted if number == 1 else Path(f"{wanted}_{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(
                f"hydra.sweep.dir: {path.absolute()} cannot be made: {first_line(error)}; expected a place to write to"
            ) from error
        break
    return path
