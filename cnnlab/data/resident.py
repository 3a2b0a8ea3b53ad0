"""The resident loader: the whole split is on the device as uint8, a batch is a few tensor operations."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from cnnlab.data.loader import ImageLoader
from cnnlab.data.normalization import Normalization
from cnnlab.data.source import Images
from cnnlab.runtime.device import cpu_count

MOST_THREADS = 4  # each holds one chunk of images


class ResidentLoader(ImageLoader):
    """Gathers from images on the device; for the CPU, images in memory are not copied."""

    def __init__(
        self,
        images: Images,
        normalization: Normalization | None,
        batch_size: int,
        *,
        device: torch.device,
        **options: Any,
    ) -> None:
        super().__init__(images, normalization, batch_size, device=device, **options)
        if device.type == "cpu" and images.file is None:
            self.x_NCHW, self.rows_N = images.stored_NCHW, images.rows_N
        else:
            self.x_NCHW, self.rows_N = _loaded(images, device), None

    def _gather(self, rows: Tensor, blocks: Sequence[slice]) -> Iterator[Tensor]:
        rows = self.to_device(rows if self.rows_N is None else self.rows_N[rows])
        for block in blocks:
            yield self.x_NCHW.index_select(0, rows[block])


def _loaded(images: Images, device: torch.device) -> Tensor:
    """(N, …) on the device, chunk by chunk: the images are in main memory once at most."""
    x_NCHW = torch.empty((len(images), *images.shape), dtype=images.stored_NCHW.dtype, device=device)

    def load(rows: slice) -> None:
        x_NCHW[rows] = images.chunk(rows)

    with ThreadPoolExecutor(min(MOST_THREADS, cpu_count())) as pool:  # most of the time goes into digests
        for _ in pool.map(load, images.chunk_slices()):
            pass
    return x_NCHW
