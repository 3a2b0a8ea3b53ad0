"""The interface of data sources, and the images of a split."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from mmap import mmap

import torch
from torch import Tensor

from cnnlab.data.image_files import ImageReader

CHUNK = 1 << 24  # bytes of images in memory at once in a pass over all of them


@dataclass(frozen=True)
class DataSpec:
    """The sizes of a data set, known without reading an image.

    `input_shape` is (C, H, W); `counts` are images by split, `train` before any validation split is carved. `val`
    is among them where the data set brings a validation split of its own, and `test` where there is a test split.
    `origins` names where a split comes from, for those of which that is not obvious.
    """

    input_shape: tuple[int, int, int]
    counts: dict[str, int]
    class_names: tuple[str, ...]
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        return len(self.class_names)


@dataclass(frozen=True)
class Images:
    """One split: uint8 images or float features (N, …), `y_N` int64 class indices, `index_N` positions in their file.

    Image i is `stored_NCHW[rows_N[i]]`, or `stored_NCHW[i]` without `rows_N`. The storage is in memory, or a file
    mapped by `mapping`, of which only what is touched is read. A selection copies no pixel.
    """

    stored_NCHW: Tensor
    y_N: Tensor
    index_N: Tensor
    rows_N: Tensor | None = None
    mapping: mmap | None = None

    def __len__(self) -> int:
        return len(self.y_N)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image."""
        return tuple(self.stored_NCHW.shape[1:])

    @property
    def x_NCHW(self) -> Tensor:  # noqa: N802 — its shape is part of the name
        """The images in one tensor; of a selection that is a copy, in memory."""
        return self.stored_NCHW if self.rows_N is None else self.stored_NCHW.index_select(0, self.rows_N)

    def chunks(self) -> Iterator[Tensor]:
        """The images in their order, (n, C, H, W) at a time: no more than `CHUNK` bytes, or one image."""
        count = max(1, CHUNK // self.stored_NCHW[0].nbytes)
        for start in range(0, len(self), count):
            rows = slice(start, start + count)
            yield self.stored_NCHW[rows] if self.rows_N is None else self.stored_NCHW.index_select(0, self.rows_N[rows])

    def select(self, rows: Tensor) -> "Images":
        stored_rows = rows if self.rows_N is None else self.rows_N[rows]
        return replace(self, y_N=self.y_N[rows], index_N=self.index_N[rows], rows_N=stored_rows)

    @classmethod
    def of(cls, x_NCHW: Tensor, y_N: Tensor, mapping: mmap | None = None) -> "Images":
        """Images in the order of their file. Raises `ValueError` unless each has one label."""
        if len(x_NCHW) != len(y_N):
            raise ValueError(f"{len(x_NCHW):,} images and {len(y_N):,} labels")
        return cls(x_NCHW, y_N.to(torch.int64), torch.arange(len(y_N)), mapping=mapping)

    def digest(self) -> str:
        """SHA-256 over images and labels, computed once."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(str((len(self), *self.shape)).encode())
        for tensor in (*self.chunks(), self.y_N):
            digest.update(tensor.contiguous().cpu().numpy().data)
        return digest.hexdigest()


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

    def reader(self) -> ImageReader:
        """Reads any image file in this source's input shape, for predictions."""
        channels, height, width = self.describe().input_shape
        return ImageReader((height, width), channels)

    def notes(self) -> list[str]:
        """Sentences about what was found and left out, printed when a run starts."""
        return []
