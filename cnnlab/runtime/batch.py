"""What travels from the loader through the training step."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Some images, what they show, and which they are.

    `x_NCHW` float images; `target` class indices (N,) int64 or class probabilities (N, K) float; `index_N`
    positions in the data set, so that a non-finite loss or a mistake can name its images.
    """

    x_NCHW: Tensor
    target: Tensor
    index_N: Tensor

    def __len__(self) -> int:
        return self.x_NCHW.shape[0]

    def __getitem__(self, places: slice) -> "Batch":
        """Some of its images; no pixel is copied."""
        return Batch(self.x_NCHW[places], self.target[places], self.index_N[places])

    def chunks(self, count: int) -> "list[Batch]":
        """Splits into at most `count` batches whose sizes differ as little as `torch.chunk` allows."""
        if count == 1:
            return [self]
        parts = zip(self.x_NCHW.chunk(count), self.target.chunk(count), self.index_N.chunk(count), strict=True)
        return [Batch(*part) for part in parts]
