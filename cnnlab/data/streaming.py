"""The streaming loader: images stay where they are stored, and worker processes gather them ahead of training."""

import contextlib
import mmap
import multiprocessing
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cnnlab.data.loader import ImageLoader
from cnnlab.data.normalization import Normalization
from cnnlab.data.source import Images
from cnnlab.runtime.errors import TrainingError

TERMINATED = -signal.SIGTERM


class StreamingLoader(ImageLoader):
    """Gathers from images in a mapped file, or in main memory where the device's is too small.

    A worker returns the stored images of a block of rows; all else happens on the device, as in any loader. Workers
    live until `close`; with `workers=0` this process gathers. Where a file `fits` into main
    memory, the system is asked to read all of it ahead. Raises `TrainingError` where a worker dies.
    """

    def __init__(
        self,
        images: Images,
        normalization: Normalization | None,
        batch_size: int,
        *,
        device: torch.device,
        workers: int,
        fits: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(images, normalization, batch_size, device=device, **options)
        self.stored = _Stored(images)
        self.rows_N = images.rows_N
        if images.file is not None:
            # images are read in random order: reading on after each would take a hundred times as long
            with contextlib.suppress(AttributeError):  # on Windows
                images.file.mapping.madvise(mmap.MADV_WILLNEED if fits else mmap.MADV_RANDOM)
        self.workers = workers
        self._requests: list[np.ndarray] = []  # the rows of each block to come; the workers' DataLoader reads it
        self._reader: DataLoader[Tensor | str] | None = None
        self._processes: list[BaseProcess] = []

    def close(self) -> None:
        self._reader, self._processes = None, []

    def _gather(self, rows: Tensor, blocks: Sequence[slice]) -> Iterator[Tensor]:
        rows = rows if self.rows_N is None else self.rows_N[rows]
        self._requests[:] = [rows[block].numpy() for block in blocks]
        gathered = self._prefetched() if self.workers else map(self.stored.__getitem__, list(self._requests))
        for x_NCHW in gathered:
            if isinstance(x_NCHW, str):
                raise TrainingError(x_NCHW)
            yield x_NCHW.to(self.device, non_blocking=self.device.type == "cuda")

    def _prefetched(self) -> Iterator[Tensor | str]:
        """The workers' images in the order of the requests."""
        requests = list(self._requests)
        results: Iterator[Tensor | str] | None = None
        for number in range(len(requests)):
            try:
                results = results or self._start()
                x_NCHW = next(results)
            except (RuntimeError, OSError, EOFError) as error:  # a dead worker shows as any of them
                if not self._were_terminated(error):
                    raise
                yield from map(self.stored.__getitem__, requests[number:])
                return
            yield x_NCHW

    def _start(self) -> Iterator[Tensor | str]:
        """Sends the requests to the workers, which are started if there are none yet."""
        if self._reader is not None:
            return iter(self._reader)
        self._reader = DataLoader(
            self.stored,
            batch_size=None,  # a request is a whole block
            sampler=self._requests,
            num_workers=self.workers,
            collate_fn=_unchanged,
            pin_memory=self.device.type == "cuda",
            persistent_workers=True,
            multiprocessing_context="fork",  # the workers map the images of this process
            worker_init_fn=_ignore_interrupts,
            generator=torch.Generator(),  # it draws a seed for its workers: not from the run's own generator
        )
        before = set(multiprocessing.active_children())
        with _own_signals(), warnings.catch_warnings():
            # Python 3.12 warns of forking beside torch's threads; a worker uses none of them
            warnings.simplefilter("ignore", DeprecationWarning)
            results = iter(self._reader)
        self._processes = [process for process in multiprocessing.active_children() if process not in before]
        return results

    def _were_terminated(self, error: Exception) -> bool:
        """True if the workers got the SIGTERM that the run got as well: it still needs a batch to save.

        Raises `TrainingError` that names workers that died otherwise. False if none died.
        """
        dead = [process for process in self._processes if process.exitcode is not None]
        self.close()
        killed = [process for process in dead if process.exitcode != TERMINATED]
        if killed:
            named = ", ".join(f"process {process.pid}, {_ending(process.exitcode or 0)}" for process in killed)
            raise TrainingError(
                f"a worker that reads images died ({named}): the system ends processes so where memory is short. "
                f"What was saved is whole, and a run can be resumed; data.workers=0 reads without workers"
            ) from error
        return bool(dead)


class _Stored(Dataset["Tensor | str"]):
    """The stored images, as a worker reads them; a message in the place of images that were changed.

    What a worker raises reaches the run with its traceback for a message.
    """

    def __init__(self, images: Images) -> None:
        self.images = images

    def __getitem__(self, rows: np.ndarray) -> "Tensor | str":
        try:
            return self.images.gather(torch.from_numpy(rows))
        except TrainingError as error:
            return str(error)


def _unchanged(images: Any) -> Any:
    return images


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C goes to all processes of a terminal: the run saves at its next step, which needs a batch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Takes torch's handler of SIGCHLD away again: it would raise amid a training step or the writing of a file.

    The loader notices a dead worker within five seconds of waiting for it.
    """
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)


def _ending(exit_code: int) -> str:
    return f"by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"status {exit_code}"
