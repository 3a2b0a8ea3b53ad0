"""Decoded images, kept for later runs: one file for each split, mapped into memory."""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

import PIL
from torch import Tensor

from cnnlab.data.cache_file import CacheFile, Keep, cache_folder
from cnnlab.data.image_files import ImageReader, UnreadableError
from cnnlab.data.source import Images
from cnnlab.runtime.errors import ConfigError, first_line
from cnnlab.runtime.terminal import print_wrapped, printable

FORMAT = "cnnlab images 2"
LOCK = ".lock"  # of all decoding into a folder
KEPT = 7 * 24 * 3600  # seconds for which a decoding that was stopped can be continued


def read_files(root: Path, paths: Sequence[str], y_N: Tensor, reader: ImageReader) -> Images:
    """The images at `paths` below `root` with their labels, decoded by the first run that needs them.

    They are in a file that is mapped into memory, keyed by the images' relative paths, sizes and modification times,
    the labels, the reader's settings and the decoder's version; a file whose content changes while its size and
    modification time stay is not noticed. A decoding that was stopped continues with the images that are missing; it is
    kept for a week.
    Raises `ConfigError` for images that cannot be read, or a cache that cannot be written.
    """
    folder = cache_folder()
    if folder.resolve().is_relative_to(root.resolve()):
        raise ConfigError(
            f"CNNLAB_CACHE: {printable(folder)} is inside the folder of the data, {printable(root)}: expected a folder "
            f"elsewhere"
        )
    shape = (len(paths), reader.channels, *reader.size)
    cached = CacheFile(folder / f"{_key(root, paths, y_N, reader)}.images", shape, FORMAT)
    temporary = cached.path.with_suffix(".part")

    def decode(missing: Sequence[int], keep: Keep) -> None:
        print_wrapped(f"decoding {len(missing):,} images once, into {printable(cached.path)}")
        try:
            reader.read_each([root / paths[row] for row in missing], lambda n, x_CHW: keep(missing[n], x_CHW))
        except UnreadableError as error:
            reasons = {missing[number]: reason for number, reason in error.reasons.items()}
            raise UnreadableError(reasons, error.count, "data.root: ") from error

    def make() -> Images:
        for left in folder.glob("*.part"):
            begun = left.stat()
            is_old = begun.st_mtime < time.time() - KEPT
            if is_old or (left == temporary and begun.st_size != cached.file_size):
                left.unlink()
        return cached.make(y_N, temporary, decode)

    return cached.read_or_make(y_N, LOCK, make)


def _key(root: Path, paths: Sequence[str], y_N: Tensor, reader: ImageReader) -> str:
    """32 hexadecimal digits for everything the images depend on. Raises `ConfigError` for a file that is missing."""
    files = []
    folder = os.path.join(root, "")
    for path in paths:
        try:
            status = os.stat(folder + path)  # a fraction of the time of a Path's own
        except OSError as error:
            raise ConfigError(f"data.root: {printable(root / path)}: {first_line(error)}") from error
        files.append((path, status.st_size, status.st_mtime_ns))
    settings = (FORMAT, PIL.__version__, *astuple(reader))
    return hashlib.sha256(json.dumps([settings, files, y_N.tolist()]).encode()).hexdigest()[:32]
