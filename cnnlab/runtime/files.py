"""Reading and writing single files: regular ones only, with a limit, and never through a link at their own name.

Where a system lacks a flag the rest still holds: Windows has no O_NOFOLLOW, and cannot make a folder's names durable.
"""

import contextlib
import hashlib
import os
import stat
from pathlib import Path
from typing import IO

_NO_WAIT, _NO_LINK, _CLOSE, _BINARY, _FOLDERS = (
    getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY", "O_DIRECTORY")
)


def read_regular(path: Path, largest: int) -> bytes:
    """The content of a regular file of at most `largest` bytes.

    Raises `OSError` for what is no such file; a pipe is not waited for.
    """
    descriptor = os.open(path, os.O_RDONLY | _NO_WAIT | _CLOSE | _BINARY)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is no regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(largest + 1)
    finally:
        os.close(descriptor)
    if len(content) > largest:
        raise OSError(f"it has more than {largest:,} bytes")
    return content


def replace_file(path: Path, content: bytes) -> Path:
    """Writes a file so that it is the old one or the new one, whenever the process or the machine stops.

    Raises `OSError`, and then the old one is there.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # a kill left it
        with _create(temporary) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return path


def _create(path: Path) -> IO[bytes]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK | _CLOSE | _BINARY
    return os.fdopen(os.open(path, flags, 0o666), "wb")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable; does nothing on Windows, which opens no folder."""
    if not _FOLDERS:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
