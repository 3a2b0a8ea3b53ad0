"""Decoded images, kept for later runs: one file of plain bytes for each split, mapped into memory.

A file's name is a digest of everything its content depends on. It holds a header of JSON, a digest of each image in 8
bytes, then the images as uint8 (N, C, H, W); nothing in it is ever executed. An image is compared with its digest
whenever it is read, so a start reads no more than it needs. Any of the files may be deleted at any time.
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
from dataclasses import astuple, dataclass
from math import prod
from pathlib import Path
from typing import IO

import PIL
import torch
from torch import Tensor

from cnnlab.data.image_files import ImageReader, UnreadableError
from cnnlab.data.source import Images, MappedFile, image_digest
from cnnlab.runtime.device import size_text
from cnnlab.runtime.errors import ConfigError, first_line
from cnnlab.runtime.files import sync_folder
from cnnlab.runtime.terminal import print_wrapped, printable

FORMAT = "cnnlab images 2"
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
    modification time stay is not noticed. A decoding that was stopped continues with the images that are missing.
    Raises `ConfigError` for images that cannot be read, or a cache that cannot be written.
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
            return cached.make([root / path for path in paths], y_N, reader)


class _DamagedError(Exception):
    """A cache's file is not as this version wrote it; the message follows the file's name."""


@dataclass(frozen=True)
class _Cached:
    """A file of the cache and what it has to hold."""

    path: Path
    shape: tuple[int, ...]

    @property
    def start(self) -> int:
        """Where the images begin, after the header and 8 bytes for each."""
        return HEADER + 8 * self.shape[0]

    @property
    def file_size(self) -> int:
        return self.start + prod(self.shape)

    @property
    def header(self) -> dict[str, object]:
        """The header without the digest of the digests."""
        return {"format": FORMAT, "shape": list(self.shape), "key": self.path.stem}

    def open(self, y_N: Tensor) -> Images:
        """Maps the file and checks its header. Raises `FileNotFoundError`, or `_DamagedError` with the reason."""
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != self.file_size:
                raise _DamagedError(f"is damaged ({size:,} bytes and not {self.file_size:,})")
            try:
                header = json.loads(file.read(HEADER))
                digest = header.pop("digest")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise _DamagedError("is damaged (its header cannot be read)") from None
            if header != self.header:
                raise _DamagedError("is damaged (its header is of another file)")
            images = self._images(file, y_N)
        assert images.file
        if _sha256(images.file.digests_N) != digest:
            raise _DamagedError("is damaged (its digests do not match the SHA-256 in its header)")
        return images

    def make(self, files: Sequence[Path], y_N: Tensor, reader: ImageReader) -> Images:
        """Decodes into a temporary file, which is renamed once it is complete.

        What a process that was stopped has decoded is checked and kept: this one holds the lock.
        """
        temporary = self.path.with_suffix(".part")
        for left in temporary.parent.glob("*.part"):
            if left != temporary or left.stat().st_size != self.file_size:
                left.unlink()
        _check_disk(self.path.parent, self.file_size, temporary)
        with _create_or_open(temporary) as file:
            file.truncate(self.file_size)
            missing = self._missing(file, y_N)
            print_wrapped(f"decoding {len(missing):,} images once, into {printable(self.path)}")
            try:
                self._decode(file, files, missing, reader)
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

    def _decode(self, file: IO[bytes], files: Sequence[Path], missing: Sequence[int], reader: ImageReader) -> None:
        image_bytes = prod(self.shape[1:])

        def keep(number: int, x_CHW: Tensor) -> None:
            row, x_CHW = missing[number], x_CHW.contiguous()
            _write_at(file, self.start + row * image_bytes, x_CHW.numpy().data.cast("B"))
            _write_at(file, HEADER + 8 * row, memoryview(image_digest(x_CHW).to_bytes(8, "little", signed=True)))

        try:
            reader.read_each([files[row] for row in missing], keep)
        except UnreadableError as error:
            reasons = {missing[number]: reason for number, reason in error.reasons.items()}
            raise UnreadableError(reasons, error.count, "data.root: ") from error

    def _missing(self, file: IO[bytes], y_N: Tensor) -> list[int]:
        """The rows whose image is not there, or not whole."""
        images = self._images(file, y_N)
        assert images.file
        digests = images.file.digests_N.tolist()
        return [
            row
            for row, (digest, x_CHW) in enumerate(zip(digests, images.stored_NCHW, strict=True))
            if not digest or image_digest(x_CHW) != digest
        ]

    def _digests(self, file: IO[bytes]) -> Tensor:
        file.seek(HEADER)
        return torch.frombuffer(bytearray(file.read(8 * self.shape[0])), dtype=torch.int64)

    def _images(self, file: IO[bytes], y_N: Tensor) -> Images:
        content = mmap.mmap(file.fileno(), self.file_size, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch has no read-only tensors; these are never written to
            x_NCHW = torch.frombuffer(content, dtype=torch.uint8, offset=self.start).reshape(self.shape)
        return Images.of(x_NCHW, y_N, MappedFile(self.path, content, self._digests(file)))


def _create_or_open(path: Path) -> IO[bytes]:
    return path.open("rb+" if path.exists() else "xb+", buffering=0)


def _sha256(digests_N: Tensor) -> str:
    return hashlib.sha256(digests_N.numpy().data).hexdigest()


def _key(root: Path, paths: Sequence[str], y_N: Tensor, reader: ImageReader) -> str:
    """32 hexadecimal digits for everything the images depend on. Raises `ConfigError` for a file that is missing."""
    files = []
    for path in paths:
        try:
            status = os.stat(os.path.join(root, path))  # a fraction of the time of a Path's own
        except OSError as error:
            raise ConfigError(f"data.root: {printable(root / path)}: {first_line(error)}") from error
        files.append((path, status.st_size, status.st_mtime_ns))
    settings = (FORMAT, PIL.__version__, *astuple(reader))
    return hashlib.sha256(json.dumps([settings, files, y_N.tolist()]).encode()).hexdigest()[:32]


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


def _check_disk(folder: Path, needed: int, begun: Path) -> None:
    """Raises `ConfigError` where the folder's disk lacks the space; what `begun` takes of it is there already."""
    blocks = getattr(begun.stat(), "st_blocks", 0) if begun.exists() else 0
    free = shutil.disk_usage(folder).free + 512 * blocks
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
