"""What travels from the loader through the training step."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Some images, their targets and their indices.

    `x_NCHW` float images; `target` class indices (N,) int64 or class probabilities (N, K) float; `index_N`
    positions in the data set, so that a non-finite loss or a mistake can name its images. `global_count` is the number
    of images in the whole batch that these belong to, over all ranks; None where they are all of it.
    """

    x_NCHW: Tensor
    target: Tensor
    index_N: Tensor
    global_count: int | None = None

    def __len__(self) -> int:
        return self.x_NCHW.shape[0]

    @property
    def whole(self) -> int:
        """The number of images in the whole batch that these belong to."""
        return len(self) if self.global_count is None else self.global_count

    def __getitem__(self, places: slice) -> "Batch":
        """Some of its images; no pixel is copied."""
        return Batch(self.x_NCHW[places], self.target[places], self.index_N[places])

    @property
    def weight(self) -> float:
        """The fraction of the whole batch: mean losses times their weights add up to the whole batch's mean loss."""
        return 1.0 if self.global_count is None else len(self) / self.global_count

    @property
    def signature(self) -> tuple[tuple[torch.Size, tuple[int, ...], torch.dtype], ...]:
        """Shape, strides and dtype of images and target: what a graph is made for."""
        return tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in (self.x_NCHW, self.target))

    def chunks(self, count: int) -> "list[Batch]":
        """Splits into at most `count` microbatches, none empty, whose sizes differ as `torch.chunk` has it."""
        if count == 1 or not len(self):
            return [self] if len(self) else []
        pieces = zip(self.x_NCHW.chunk(count), self.target.chunk(count), self.index_N.chunk(count), strict=True)
        return [Batch(*piece, global_count=self.whole) for piece in pieces]
