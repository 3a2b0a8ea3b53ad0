"""The files of a run: its directory is made, locked, read and written here.

Two rooms below this one write into the directory, too: `engine/checkpoint.py` the folders under `checkpoints/`, the
observers their logs.
"""

import contextlib
import io
import itertools
import json
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnlab.config.programs import given
from cnnlab.config.saved_config import find_config
from cnnlab.runtime.errors import ConfigError, TrainingError, first_line
from cnnlab.runtime.files import read_regular, replace_file
from cnnlab.runtime.ranks import is_first, world_size
from cnnlab.runtime.terminal import printable

if TYPE_CHECKING:
    import numpy as np
    from filelock import FileLock

    from cnnlab.engine.checkpoint import Checkpoint, Checkpoints

RUNS = Path("runs")
CONFIG, OVERRIDES, ENVIRONMENT = "config.yaml", "overrides.yaml", "environment.json"
MODEL, DIAGRAM, SUMMARY = "model.txt", "model.svg", "summary.json"
CHECKPOINTS, FIGURES, EXPORTS, LOCK = "checkpoints", "figures", "exports", ".lock"
HOLDER = ".lock-holder"  # apart from the lock itself, which Windows lets nobody read
LARGEST_HOLDER = 1000  # bytes
LARGEST_JSON = 1 << 24  # bytes; the largest is an evaluation of thousands of classes


class RunDirectory:
    """`runs/NAME/DATE_TIME_SLUG_xxxx`; two jobs never work in one. Raises `ConfigError`.

    Among several ranks the first alone makes, locks and writes; to the others its writing methods do nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made: list[Path] = []  # innermost first
        self._lock: FileLock | None = None

    @classmethod
    def create(cls, name: str, wanted: Path | None, slug: str = "") -> "RunDirectory":
        """Makes and locks the directory `wanted`, or a new one under `runs/NAME` with `slug` in its name.

        Every rank gets it.
        """
        if world_size() == 1:
            return cls._create(name, wanted, slug)
        from cnnlab.runtime.distributed import from_first  # imports torch, which a grid's own process does without

        made: list[RunDirectory] = []

        def make() -> Path:
            made.append(cls._create(name, wanted, slug))
            return made[0].path

        path = from_first(make)
        return made[0] if made else cls(path)

    @classmethod
    def _create(cls, name: str, wanted: Path | None, slug: str) -> "RunDirectory":
        parts = (time.strftime("%Y-%m-%d_%H-%M-%S"), slug, secrets.token_hex(2))
        path = wanted or RUNS / name / "_".join(part for part in parts if part)
        try:
            made = [folder for folder in (path, *path.parents) if not folder.exists()]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(exist_ok=False)
        except (OSError, ValueError) as error:
            if isinstance(error, FileExistsError) and os.path.lexists(path):
                raise ConfigError(
                    f"run_dir: {path.absolute()} exists: expected a new directory, or {given('resume', path)} to "
                    "continue it"
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
        """An existing run's directory; `key` is the config's key that named it.

        It may come from a stranger: a link or a pipe in it is refused, wherever it would be read or written.
        """
        find_config(path, key)
        _check_entries(path, key)
        return cls(path)

    def lock(self) -> None:
        """Holds the run until this process ends. Raises `ConfigError` that names the holder."""
        if not is_first():
            return
        from filelock import FileLock, Timeout  # longer to import than a refused command should wait

        lock = FileLock(self.path / LOCK, thread_local=False)  # follows no link
        try:
            lock.acquire(blocking=False)
            self._lock = lock
            replace_file(self.path / HOLDER, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        except Timeout:
            raise ConfigError(
                f"resume: {self.path} is in use by {self._holder()}: expected a run that no process works in"
            ) from None
        except (OSError, NotImplementedError) as error:  # the second: a file system without locks
            self.release()
            raise ConfigError(f"resume: {self.path / LOCK} cannot be locked: {first_line(error)}") from error

    def is_locked(self) -> bool:
        """Whether a process works in the run at this moment."""
        from filelock import FileLock, Timeout

        if not (self.path / LOCK).is_file():
            return False
        try:
            with FileLock(self.path / LOCK).acquire(blocking=False):
                return False
        except Timeout:
            return True

    def _holder(self) -> str:
        try:
            return read_regular(self.path / HOLDER, LARGEST_HOLDER).decode().strip() or "another process"
        except (OSError, UnicodeDecodeError):
            return "another process"

    def release(self) -> None:
        if self._lock:
            self._lock.release()
            self._lock = None

    def discard(self) -> None:
        """Removes the directory, which holds no more than its config, and the empty folders made for it."""
        if not is_first():
            return
        self.release()
        for name in (LOCK, HOLDER, CONFIG, OVERRIDES):
            (self.path / name).unlink(missing_ok=True)
        for folder in self._made:
            with contextlib.suppress(OSError):  # another run is in it
                folder.rmdir()

    def checkpoints(self, notify: Callable[[str], None] = lambda text: None, **kept: Any) -> "Checkpoints":
        """`kept` are `keep_every` and `keep_best`, for who writes checkpoints."""
        from cnnlab.engine.checkpoint import Checkpoints  # imports torch, which a grid's own process does without

        return Checkpoints(self.path / CHECKPOINTS, notify, **kept)

    def write_text(self, name: str, text: str) -> Path:
        """Replaces a file at once. Raises `TrainingError` where the disk refuses; the old file is then still there."""
        if not is_first():
            return self.path / name
        try:
            return replace_file(self.path / name, text.encode(errors="backslashreplace"))  # of names that are no UTF-8
        except OSError as error:
            raise TrainingError(f"{self.path / name} cannot be written: {first_line(error)}") from error

    def write_json(self, name: str, content: dict[str, Any]) -> Path:
        return self.write_text(name, json.dumps(content, indent=2) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """The content of a JSON file, empty where there is none. Raises `ConfigError` for anything but an object."""
        path = self.path / name
        try:
            content = json.loads(read_regular(path, LARGEST_JSON))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: expected JSON as a run writes it, but {first_line(error)}") from error
        if not isinstance(content, dict):
            raise ConfigError(f"{path}: expected a JSON object, received {type(content).__name__}")
        return content

    def write_figure(self, name: str, image_HWC: "np.ndarray") -> Path:
        """A PNG under `figures/`, or in a folder there. Raises `TrainingError` where the disk refuses."""
        path = self.path / FIGURES / name
        if not is_first():
            return path
        try:
            for folder in dict.fromkeys((self.path / FIGURES, path.parent)):
                if folder.is_symlink():
                    raise OSError("expected a folder, not a link")
                folder.mkdir(exist_ok=True)
            return replace_file(path, png(image_HWC))
        except OSError as error:
            raise TrainingError(f"{path} cannot be written: {first_line(error)}") from error

    def write_image(self, name: str, image_HWC: "np.ndarray") -> Path:
        """A PNG beside the config. Raises `TrainingError` where the disk refuses."""
        if not is_first():
            return self.path / name
        try:
            return replace_file(self.path / name, png(image_HWC))
        except OSError as error:
            raise TrainingError(f"{self.path / name} cannot be written: {first_line(error)}") from error

    @contextlib.contextmanager
    def new_folder(self, name: str) -> Iterator[Path]:
        """An empty folder that becomes `name`, as in `exports/step-00000430`, when the block ends without an error.

        Until then it is hidden; nothing is left of it where the block raises. Raises `TrainingError` where the disk
        refuses.
        """
        final = self.path / name
        try:
            final.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".", dir=final.parent, ignore_cleanup_errors=True) as hidden:
                folder = Path(hidden) / final.name
                folder.mkdir()
                yield folder
                folder.rename(final)
        except OSError as error:
            raise TrainingError(f"{final} cannot be written: {first_line(error)}") from error
        finally:
            with contextlib.suppress(OSError):  # something is in it
                final.parent.rmdir()


def found_by_first(checkpoints: "Checkpoints", find: Callable[[], "Checkpoint | None"]) -> "Checkpoint | None":
    """What `find` returns on the first rank, which alone may set damaged checkpoints aside; the others read it."""
    if world_size() == 1:
        return find()
    from cnnlab.engine.checkpoint import read_checkpoint
    from cnnlab.runtime.distributed import from_first

    found: list[Checkpoint | None] = []

    def look() -> int | None:
        found.append(find())
        return found[0].step if found[0] else None

    step = from_first(look)
    return found[0] if found else None if step is None else read_checkpoint(checkpoints.path(step))


def _check_entries(folder: Path, key: str) -> None:
    """Raises `ConfigError` for anything below a run that is neither a regular file nor a folder."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    _check_entries(Path(entry.path), key)
                elif not entry.is_file(follow_symlinks=False):
                    kind = "a link" if entry.is_symlink() else "no regular file"
                    raise ConfigError(
                        f"{key}: {printable(entry.path)} is {kind}: expected regular files and folders in a run's "
                        f"directory; remove it if you know that it is not needed"
                    )
    except OSError as error:
        raise ConfigError(f"{key}: {printable(folder)} cannot be listed: {first_line(error)}") from error


def png(image_HWC: "np.ndarray") -> bytes:
    """An image, (H, W, 3) uint8, as the content of a PNG file."""
    from PIL import Image  # with NumPy, longer to import than a refused command takes

    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "PNG")
    return buffer.getvalue()


def make_sweep_directory(wanted: Path) -> Path:
    """Makes `wanted`, or `wanted_2`, … if it exists: two sweeps never use the same one. Raises `ConfigError`."""
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
