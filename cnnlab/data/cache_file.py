"""Files of the cache: a row of numbers for each image of a split, each compared with its digest whenever it is read.

A file's name is a digest of everything its content depends on. It holds a header of JSON, a digest of each row in 8
bytes, then the rows as plain numbers; nothing in it is ever executed. It is mapped into memory, so a start reads no
more than it needs. Any of the files may be deleted at any time.
"""

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from cnnlab.data.source import Images, MappedFile, image_digest
from cnnlab.runtime.device import size_text
from cnnlab.runtime.errors import ConfigError, first_line
from cnnlab.runtime.files import sync_folder
from cnnlab.runtime.terminal import print_wrapped, printable

HEADER = 4096  # bytes
SPARE = 1 << 26  # bytes that a disk keeps free

Keep = Callable[[int, Tensor], None]  # writes the row of an image, from any thread


def cache_folder() -> Path:
    """`$CNNLAB_CACHE`, else `cnnlab` in `$XDG_CACHE_HOME`, else `~/.cache/cnnlab`."""
    own, shared = os.environ.get("CNNLAB_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    if own:
        return Path(own).expanduser().absolute()
    return (Path(shared) if os.path.isabs(shared) else Path.home() / ".cache") / "cnnlab"


class DamagedError(Exception):
    """A cache's file is not as this version wrote it; the message follows the file's name."""


@dataclass(frozen=True)
class CacheFile:
    """A file of the cache and what it has to hold: `shape` (N, …) rows of `dtype`.

    `what` are the rows in a message, and `mend` is what helps where they are too large for the disk.
    """

    path: Path
    shape: tuple[int, ...]
    format: str
    dtype: torch.dtype = torch.uint8
    what: str = "decoded images"
    mend: str = "a smaller data.size"

    @property
    def start(self) -> int:
        """Where the rows begin, after the header and 8 bytes for each."""
        return HEADER + 8 * self.shape[0]

    @property
    def row_size(self) -> int:
        return prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def file_size(self) -> int:
        return self.start + self.shape[0] * self.row_size

    @property
    def header(self) -> dict[str, object]:
        """The header without the digest of the digests."""
        return {"format": self.format, "shape": list(self.shape), "key": self.path.stem}

    def read_or_make(self, y_N: Tensor, lock: str, make: Callable[[], Images]) -> Images:
        """What the file holds; `make` writes it where there is none or a damaged one, in one process at a time.

        Raises `ConfigError` for a folder that cannot be used.
        """
        folder = self.path.parent
        with self._usable(folder):
            with contextlib.suppress(FileNotFoundError, DamagedError):
                return self.open(y_N)
            with _alone(folder / lock, folder):
                try:
                    return self.open(y_N)  # another process has made it meanwhile
                except FileNotFoundError:
                    pass
                except DamagedError as error:
                    print_wrapped(f"{printable(self.path)} {error}: it is written again")
                return make()

    def open(self, y_N: Tensor) -> Images:
        """Maps the file and checks its header. Raises `FileNotFoundError`, or `DamagedError` with the reason."""
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != self.file_size:
                raise DamagedError(f"is damaged ({size:,} bytes and not {self.file_size:,})")
            try:
                header = json.loads(file.read(HEADER))
                digest = header.pop("digest")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise DamagedError("is damaged (its header cannot be read)") from None
            if header != self.header:
                raise DamagedError("is damaged (its header is of another file)")
            images = self._images(file, y_N)
        assert images.file
        if _sha256(images.file.digests_N) != digest:
            raise DamagedError("is damaged (its digests do not match the SHA-256 in its header)")
        return images

    def make(self, y_N: Tensor, temporary: Path, fill: Callable[[Sequence[int], Keep], None]) -> Images:
        """Has `fill` write the missing rows into a temporary file, which is renamed once it is complete.

        What a process that was stopped has written is checked and kept: this one holds the lock.
        """
        self._check_disk(temporary)
        with _create_or_open(temporary) as file:
            file.truncate(self.file_size)

            def keep(row: int, x: Tensor) -> None:
                x = x.contiguous()
                _write_at(file, self.start + row * self.row_size, x.numpy().data.cast("B"))
                _write_at(file, HEADER + 8 * row, memoryview(image_digest(x).to_bytes(8, "little", signed=True)))

            try:
                fill(self._missing(file, y_N), keep)
            except ConfigError:  # such as an image that is damaged: mended, it makes another cache
                temporary.unlink()
                raise
            digests_N = self._digests(file)
            header = json.dumps({**self.header, "digest": _sha256(digests_N)}).encode()
            _write_at(file, 0, memoryview(header.ljust(HEADER - 1) + b"\n"))
            os.fsync(file.fileno())
        temporary.replace(self.path)  # nothing has it open: Windows renames no file that is in use
        sync_folder(self.path.parent)
        with self.path.open("rb") as made:
            return self._images(made, y_N)

    def _missing(self, file: IO[bytes], y_N: Tensor) -> list[int]:
        """The rows that are not there, or not whole."""
        images = self._images(file, y_N)
        assert images.file
        digests = images.file.digests_N.tolist()
        return [
            row
            for row, (digest, x) in enumerate(zip(digests, images.stored_NCHW, strict=True))
            if not digest or image_digest(x) != digest
        ]

    def _digests(self, file: IO[bytes]) -> Tensor:
        file.seek(HEADER)
        return torch.frombuffer(bytearray(file.read(8 * self.shape[0])), dtype=torch.int64)

    def _images(self, file: IO[bytes], y_N: Tensor) -> Images:
        content = mmap.mmap(file.fileno(), self.file_size, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch has no read-only tensors; these are never written to
            x_NCHW = torch.frombuffer(content, dtype=self.dtype, offset=self.start).reshape(self.shape)
        return Images.of(x_NCHW, y_N, MappedFile(self.path, content, self._digests(file)))

    def _check_disk(self, begun: Path) -> None:
        """Raises `ConfigError` where the folder's disk lacks the space; what `begun` takes of it is there already."""
        folder, needed = self.path.parent, self.file_size
        blocks = getattr(begun.stat(), "st_blocks", 0) if begun.exists() else 0
        free = shutil.disk_usage(folder).free + 512 * blocks
        if needed + SPARE > free:
            raise ConfigError(
                f"CNNLAB_CACHE: the {self.what} take {size_text(needed)} ({needed:,} bytes), and {printable(folder)} "
                f"has {size_text(free)} free ({free:,} bytes): expected a CNNLAB_CACHE on a larger disk, or {self.mend}"
            )

    @contextlib.contextmanager
    def _usable(self, folder: Path) -> Iterator[None]:
        """Makes the folder; a folder that cannot be written to raises `ConfigError`."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise ConfigError(
                f"CNNLAB_CACHE: {self.what} cannot be kept in {printable(folder)} ({first_line(error)}): expected a "
                f"folder to write to, as CNNLAB_CACHE=FOLDER names it"
            ) from error


def _create_or_open(path: Path) -> IO[bytes]:
    return path.open("rb+" if path.exists() else "xb+", buffering=0)


def _sha256(digests_N: Tensor) -> str:
    return hashlib.sha256(digests_N.numpy().data).hexdigest()


_SEEKING = threading.Lock()


def _write_at(file: IO[bytes], offset: int, content: memoryview) -> None:
    """Writes from any thread; where a system has no `pwrite`, one after the other."""
    while content:
        if hasattr(os, "pwrite"):
            written = os.pwrite(file.fileno(), content, offset)
        else:
            with _SEEKING:
                file.seek(offset)
                written = file.write(content)
        offset, content = offset + written, content[written:]


@contextlib.contextmanager
def _alone(lock_file: Path, folder: Path) -> Iterator[None]:
    """Holds a lock of the cache: the jobs of a grid would all compute the same."""
    from filelock import FileLock, Timeout  # most runs write nothing

    lock = FileLock(lock_file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print_wrapped(f"waiting for another process that writes into {printable(folder)}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
