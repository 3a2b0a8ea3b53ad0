"""The interface of data sources, and the images of a split."""

import contextlib
import hashlib
import mmap
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cnnlab.data.image_files import ImageReader
from cnnlab.runtime.errors import TrainingError
from cnnlab.runtime.terminal import printable

CHUNK = 1 << 24  # bytes of images in memory at once in a pass over all of them


@dataclass(frozen=True)
class DataSpec:
    """The sizes of a data set, known without reading an image.

    `input_shape` is (C, H, W); `counts` are images by split, `train` before any validation split is carved. `val`
    is among them where the data set brings a validation split of its own, and `test` where there is a test split.
    `origins` names where a split comes from, for those of which that is not obvious. `held_out` are the training
    images that validate, where groups decide how many.
    """

    input_shape: tuple[int, int, int]
    counts: dict[str, int]
    class_names: tuple[str, ...]
    origins: Mapping[str, str] = field(default_factory=dict)
    held_out: int | None = None

    @property
    def classes(self) -> int:
        return len(self.class_names)


@dataclass(frozen=True)
class Labels:
    """The class of each training image, int64 (N,), and its group: images of one group stay in one split."""

    y_N: Tensor
    group_N: Tensor | None = None


def image_digest(x_CHW: Tensor) -> int:
    """64 bits of an image's SHA-256, as a signed integer; never 0."""
    first = hashlib.sha256(x_CHW.contiguous().numpy().data).digest()[:8]
    return int.from_bytes(first, "little", signed=True) or 1


def image_digests(x_NCHW: Tensor) -> Tensor:
    """The `image_digest` of each image, int64 (N,); several times as fast as one by one."""
    pixels = x_NCHW.contiguous().numpy().reshape(-1).data.cast("B")
    size = x_NCHW[0].nbytes if len(x_NCHW) else 1
    starts = range(0, len(pixels), size)
    found = b"".join([hashlib.sha256(pixels[start : start + size]).digest()[:8] for start in starts])
    digest_N = torch.from_numpy(np.frombuffer(found, dtype="<i8").astype(np.int64))
    return digest_N.masked_fill_(digest_N == 0, 1)


@dataclass(frozen=True)
class MappedFile:
    """A file of images that is mapped into memory, and a digest of each, which is compared whenever it is read.

    Another process may write to the file at any time: what is used is a copy that was compared.
    """

    path: Path
    mapping: mmap.mmap
    digests_N: Tensor

    def check(self, rows: Tensor, x_NCHW: Tensor) -> None:
        """Raises `TrainingError` unless the images, a copy, are those that were stored in these rows.

        The damaged file is removed, so that the next start decodes its images again.
        """
        damaged = rows[image_digests(x_NCHW) != self.digests_N[rows]]
        if len(damaged):
            self.path.unlink(missing_ok=True)
            raise TrainingError(
                f"image {damaged[0]} in {printable(self.path)} is not as it was decoded: the file was overwritten or "
                f"is damaged. It was removed, and the next start decodes the images again"
            )

    def forget(self) -> None:
        """Takes what was read out of this process's memory again; the system may still have it."""
        with contextlib.suppress(AttributeError):  # on Windows
            self.mapping.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class Images:
    """One split: uint8 images or float features (N, …), `y_N` int64 class indices, `index_N` positions in their file.

    Image i is `stored_NCHW[rows_N[i]]`, or `stored_NCHW[i]` without `rows_N`. The storage is in memory, or a mapped
    `file`, of which only what is touched is read: by `gather` and `chunks`, which check it. A selection copies no
    pixel.
    """

    stored_NCHW: Tensor
    y_N: Tensor
    index_N: Tensor
    rows_N: Tensor | None = None
    file: MappedFile | None = None

    def __len__(self) -> int:
        return len(self.y_N)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image."""
        return tuple(self.stored_NCHW.shape[1:])

    @property
    def x_NCHW(self) -> Tensor:  # noqa: N802 — its shape is part of the name
        """The images in one tensor; of a selection or a file that is a copy, in memory."""
        if self.rows_N is None and self.file is None:
            return self.stored_NCHW
        return self.gather(self._stored_rows)

    def gather(self, rows: Tensor) -> Tensor:
        """A copy of the images in these rows of the storage. Raises `TrainingError` where a file was changed."""
        x_NCHW = self.stored_NCHW.index_select(0, rows)
        if self.file:
            self.file.check(rows, x_NCHW)
        return x_NCHW

    def chunks(self) -> Iterator[Tensor]:
        """The images in their order, (n, C, H, W) at a time: no more than `CHUNK` bytes, or one image."""
        return map(self.chunk, self.chunk_slices())

    def chunk_slices(self) -> list[slice]:
        """The parts that `chunks` goes by; `chunk` may be called for several in threads."""
        count = max(1, CHUNK // self.stored_NCHW[0].nbytes)
        return [slice(start, min(start + count, len(self))) for start in range(0, len(self), count)]

    def chunk(self, part: slice) -> Tensor:
        """The images of a slice of this split. Raises `TrainingError` where a file was changed."""
        if self.rows_N is None and self.file is None:
            return self.stored_NCHW[part]
        x_NCHW = self.gather(torch.arange(part.start, part.stop) if self.rows_N is None else self.rows_N[part])
        if self.file:
            self.file.forget()  # else all of the file would be in memory beside a copy of it
        return x_NCHW

    @property
    def _stored_rows(self) -> Tensor:
        return torch.arange(len(self)) if self.rows_N is None else self.rows_N

    def select(self, rows: Tensor) -> "Images":
        stored_rows = rows if self.rows_N is None else self.rows_N[rows]
        return replace(self, y_N=self.y_N[rows], index_N=self.index_N[rows], rows_N=stored_rows)

    @classmethod
    def of(cls, x_NCHW: Tensor, y_N: Tensor, file: MappedFile | None = None) -> "Images":
        """Images in the order of their file. Raises `ValueError` unless each has one label."""
        if len(x_NCHW) != len(y_N):
            raise ValueError(f"{len(x_NCHW):,} images and {len(y_N):,} labels")
        return cls(x_NCHW, y_N.to(torch.int64), torch.arange(len(y_N)), file=file)

    def digest(self) -> str:
        """SHA-256 over images and labels, computed once; of a file's images, over the digest of each."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(str((len(self), *self.shape)).encode())
        content = self.chunks() if self.file is None else [self.file.digests_N[self._stored_rows]]
        for tensor in (*content, self.y_N):
            digest.update(tensor.contiguous().cpu().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Readable:
    """The images of a split that can be read, and the reason for each of the others, by its position in the split."""

    images: Images
    unreadable: Mapping[int, str] = field(default_factory=dict)


class Source(ABC):
    """A data set with a `train` split, mostly a `test` split, and sometimes a `val` split of its own."""

    @abstractmethod
    def describe(self) -> DataSpec:
        """Sizes and class names; reads no images."""

    def check(self) -> None:  # noqa: B027 — a source without files has nothing to check
        """Makes sure that the images are there. Raises `ConfigError` that explains how to get them."""

    @abstractmethod
    def read(self, split: str) -> Images:
        """All images of one of the splits that `describe` counts."""

    def paths(self, split: str) -> list[str] | None:
        """The files of a split, relative to the data's root and printable, where each image is a file; None elsewhere.

        `paths(split)[i]` is the image whose `index_N` in `read(split)` is i. A validation split that was carved out
        of the training images keeps their indices: its files are among `paths("train")`.
        """
        return None

    def image_files(self, split: str) -> list[Path] | None:
        """The files of a split in the order of `paths`, to be opened; None where images are no files of their own."""
        return None

    def read_readable(self, split: str) -> "Readable":
        """What can be read of a split. Raises `ConfigError` where that is nothing."""
        return Readable(self.read(split))

    def labels(self) -> Labels | None:
        """Of the images that `read("train")` returns, where they are known without reading any; else None."""
        return None

    def reader(self, input_shape: tuple[int, int, int]) -> ImageReader:
        """Reads any image file in this source's input shape, (C, H, W), for predictions. Needs none of its files."""
        channels, height, width = input_shape
        return ImageReader((height, width), channels)

    def notes(self) -> list[str]:
        """Sentences about what was found and left out, printed when a run starts."""
        return []
