"""What a data source is."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DataSpec:
    """What can be said of a data set without reading a picture.

    `input_shape` is (C, H, W); `counts` are pictures by split, `train` before any validation split is carved.
    """

    input_shape: tuple[int, int, int]
    counts: dict[str, int]
    class_names: tuple[str, ...]

    @property
    def classes(self) -> int:
        return len(self.class_names)


@dataclass(frozen=True)
class Pictures:
    """One split in memory: `x_NCHW` uint8, `y_N` int64 class indices, `index_N` positions in their split's file."""

    x_NCHW: Tensor
    y_N: Tensor
    index_N: Tensor

    def __len__(self) -> int:
        return self.x_NCHW.shape[0]

    def select(self, rows: Tensor) -> "Pictures":
        return Pictures(self.x_NCHW[rows], self.y_N[rows], self.index_N[rows])

    @classmethod
    def of(cls, x_NCHW: Tensor, y_N: Tensor) -> "Pictures":
        """Pictures in the order of their file. Raises `ValueError` unless each has one label."""
        if len(x_NCHW) != len(y_N):
            raise ValueError(f"{len(x_NCHW):,} pictures and {len(y_N):,} labels")
        return cls(x_NCHW, y_N.to(torch.int64), torch.arange(len(y_N)))

    def digest(self) -> str:
        """SHA-256 over pictures and labels."""
        digest = hashlib.sha256(str(tuple(self.x_NCHW.shape)).encode())
        for tensor in (self.x_NCHW, self.y_N):
            digest.update(tensor.contiguous().cpu().numpy().data)
        return digest.hexdigest()


class Source(ABC):
    """A data set with a `train` and a `test` split."""

    @abstractmethod
    def describe(self) -> DataSpec:
        """Sizes and class names; reads no pictures."""

    def check(self) -> None:  # noqa: B027 — a source without files has nothing to check
        """Makes sure that the pictures are there. Raises `ConfigError` that says how to get them."""

    @abstractmethod
    def read(self, split: str) -> Pictures:
        """All pictures of `train` or `test`."""
