"""Decoded images, kept for later runs: one file of plain bytes for each split, mapped into memory.

A file's name is a digest of everything its content depends on. It holds a header of JSON, then the images as uint8
(N, C, H, W); nothing in it is ever executed. Any of the files may be deleted at any time.
"""

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

import PIL
import torch
from torch import Tensor

from cnnlab.data.image_files import ImageReader, Keep
from cnnlab.data.source import Images
from cnnlab.runtime.device import size_text
from cnnlab.runtime.errors import ConfigError, first_line
from cnnlab.runtime.terminal import print_wrapped, printable

FORMAT = "cnnlab images 1"
HEADER = 4096  # bytes
SPARE = 1 << 26  # bytes that a disk keeps free


def cache_folder() -> Path:
    """`$CNNLAB_CACHE`, else `cnnlab` in `$XDG_CACHE_HOME`, else `~/.cache/cnnlab`."""
    own, shared = os.environ.get("CNNLAB_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    if own:
        return Path(own).expanduser().absolute()
    return (Path(shared) if os.path.isabs(shared) else Path.home() / ".cache") / "cnnlab"


def read_files(root: Path, paths: Sequence[str], y_N: Tensor, reader: ImageReader) -> Images:
    """The images at `paths` below `root` with their labels, decoded by the first run that needs them.

    They are in a file that is mapped into memory, keyed by the images' relative paths, sizes and modification times,
    the labels, the reader's settings and the decoder's version; a file whose content changes while its size and
    modification time stay is not noticed. Its SHA-256 is checked each time; a damaged file is written again. Raises
    `ConfigError` for images that cannot be read, or a cache that cannot be written.
    """
    folder = cache_folder()
    if folder.resolve().is_relative_to(root.resolve()):
        raise ConfigError(
            f"CNNLAB_CACHE: {printable(folder)} is inside the folder of the data, {printable(root)}: expected a folder "
            f"elsewhere"
        )
    cached = _Cached(folder / f"{_key(root, paths, y_N, reader)}.images", (len(paths), reader.channels, *reader.size))
    with _usable(folder):
        with contextlib.suppress(FileNotFoundError, _DamagedError):
            return cached.open(y_N)
        with _alone_in(folder):
            try:
                return cached.open(y_N)  # another process has made it meanwhile
            except FileNotFoundError:
                pass
            except _DamagedError as error:
                print_wrapped(f"{printable(cached.path)} {error}: it is written again")
            _check_disk(folder, cached.bytes)
            print_wrapped(f"decoding {len(paths):,} images once, into {printable(cached.path)}")
            return cached.make([root / path for path in paths], y_N, reader)


class _DamagedError(Exception):
    """A cache's file is not as this version wrote it; the message follows the file's name."""


@dataclass(frozen=True)
class _Cached:
    """A file of the cache and what it has to hold."""

    path: Path
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return HEADER + prod(self.shape)

    @property
    def header(self) -> dict[str, object]:
        """The header without the digest of the content."""
        return {"format": FORMAT, "shape": list(self.shape), "key": self.path.stem}

    def open(self, y_N: Tensor) -> Images:
        """Maps and checks the file. Raises `FileNotFoundError`, or `_DamagedError` with the reason."""
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != self.bytes:
                raise _DamagedError(f"is damaged ({size:,} bytes and not {self.bytes:,})")
            try:
                header = json.loads(file.read(HEADER))
                digest = header.pop("digest")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise _DamagedError("is damaged (its header cannot be read)") from None
            if header != self.header:
                raise _DamagedError("is damaged (its header is of another file)")
            images = self._images(file.fileno(), y_N)
        if images.digest() != digest:
            raise _DamagedError("is damaged (its content does not match the SHA-256 in its header)")
        return images

    def make(self, files: Sequence[Path], y_N: Tensor, reader: ImageReader) -> Images:
        """Decodes into a temporary file, which is renamed once it is complete."""
        temporary = self.path.with_suffix(".part")
        for left in temporary.parent.glob("*.part"):  # by a process that was killed: this one holds the lock
            left.unlink()
        image_bytes = prod(self.shape[1:])
        try:
            with temporary.open("xb+", buffering=0) as file:

                def keep(row: int, x_CHW: Tensor) -> None:
                    _write_at(file, HEADER + row * image_bytes, x_CHW.contiguous().numpy().data.cast("B"))

                _decode(reader, files, keep)
                digest = self._images(file.fileno(), y_N).digest()
                header = json.dumps({**self.header, "digest": digest}).encode()
                _write_at(file, 0, memoryview(header.ljust(HEADER - 1) + b"\n"))
                os.fsync(file.fileno())
            temporary.replace(self.path)  # nothing has it open: Windows renames no file that is in use
        finally:
            temporary.unlink(missing_ok=True)
        with self.path.open("rb") as made:
            return self._images(made.fileno(), y_N)

    def _images(self, descriptor: int, y_N: Tensor) -> Images:
        content = mmap.mmap(descriptor, self.bytes, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch has no read-only tensors; these are never written to
            x_NCHW = torch.frombuffer(content, dtype=torch.uint8, offset=HEADER).reshape(self.shape)
        return Images.of(x_NCHW, y_N, content)


def _key(root: Path, paths: Sequence[str], y_N: Tensor, reader: ImageReader) -> str:
    """32 hexadecimal digits for everything the images depend on. Raises `ConfigError` for a file that is missing."""
    files = []
    for path in paths:
        try:
            status = (root / path).stat()
        except OSError as error:
            raise ConfigError(f"data.root: {printable(root / path)}: {first_line(error)}") from error
        files.append((path, status.st_size, status.st_mtime_ns))
    settings = (FORMAT, PIL.__version__, reader.size, reader.channels, reader.resize)
    return hashlib.sha256(json.dumps([settings, files, y_N.tolist()]).encode()).hexdigest()[:32]


def _decode(reader: ImageReader, files: Sequence[Path], keep: Keep) -> None:
    try:
        reader.read_each(files, keep)
    except ConfigError as error:
        raise ConfigError(f"data.root: {error}") from error


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


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed + SPARE > free:
        raise ConfigError(
            f"CNNLAB_CACHE: the decoded images take {size_text(needed)} ({needed:,} bytes), and {printable(folder)} "
            f"has {size_text(free)} free ({free:,} bytes): expected a CNNLAB_CACHE on a larger disk, or a smaller "
            f"data.size"
        )


@contextlib.contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Makes the folder; a folder that cannot be written to raises `ConfigError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ConfigError(
            f"CNNLAB_CACHE: decoded images cannot be kept in {printable(folder)} ({first_line(error)}): expected a "
            f"folder to write to, as CNNLAB_CACHE=FOLDER names it"
        ) from error


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Holds the cache's lock: the jobs of a grid would all decode the same images."""
    from filelock import FileLock, Timeout  # most runs decode nothing

    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print_wrapped(f"waiting for another process that decodes images into {printable(folder)}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
