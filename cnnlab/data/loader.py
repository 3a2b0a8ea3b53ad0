"""The base of all loaders: the order of an epoch, the position in it, and how stored images become batches."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cnnlab.data.augmentation import Augment
from cnnlab.data.normalization import Normalization, normalized
from cnnlab.data.source import Images
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.randomness import derive

SAMPLINGS = ("shuffle", "balanced")
# values: small batches are made together, as many as fill a megabyte of float32, or 32 of a GPU's memory, where each
# operation costs its launch
BLOCK, BLOCK_ON_CUDA = 1 << 18, 1 << 23


class ImageLoader(ABC):
    """Batches of one split, in an order that is a pure function of (seed, epoch).

    `batch_size` is over all ranks; every rank draws the same order and takes every `world_size`-th image of each
    batch. `shuffle` takes each image once an epoch; with `balanced` as well, an epoch is as long, and has each class
    as often as any other (`balanced_order`). `drop_last` leaves out the images that fill no whole batch. Position
    within the epoch is an integer (`state_dict`), so an epoch can be resumed in the middle. Iterating yields the rest
    of the current epoch; then `set_epoch` starts another. `augment` changes the images of each batch. Without a
    `normalization` what is stored comes as it is, such as float features of any shape (N, …).

    A subclass decides where images are gathered; the batches are the same to the bit.
    """

    def __init__(
        self,
        images: Images,
        normalization: Normalization | None,
        batch_size: int,
        *,
        device: torch.device,
        shuffle: bool,
        balanced: bool = False,
        drop_last: bool = False,
        augment: Augment | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.device = device
        self.y_N = images.y_N.to(device)
        self.index_N = images.index_N.to(device)
        self.normalization = normalization.tensors(device) if normalization else None
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.balanced = balanced
        self.drop_last = drop_last
        self.augment = augment
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.per_rank = len(range(rank, batch_size, world_size))  # images of a whole batch
        numbers = max(1, self.per_rank) * images.stored_NCHW[0].numel()
        block = BLOCK_ON_CUDA if device.type == "cuda" else BLOCK
        self.batches_at_once = 1 if augment and augment.mixes else max(1, block // numbers)
        self.epoch = 0
        self.position = 0

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(len(self.y_N), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    @property
    def images(self) -> int:
        """Images in an epoch, over all ranks."""
        return len(self) * self.batch_size if self.drop_last else len(self.y_N)

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch (counted from 0)."""
        self.epoch, self.position = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]

    def close(self) -> None:  # noqa: B027 — most hold nothing but memory
        """Stops worker processes, if there are any; iterating starts them again."""

    def order(self, epoch: int) -> "Order":
        """The order of that epoch, the same on every device."""
        if self.shuffle and self.balanced:
            return balanced_order(self.y_N.cpu(), self.seed, epoch)
        turn_N = torch.full((len(self.y_N),), epoch)
        if not self.shuffle:
            return Order(torch.arange(len(self.y_N)), turn_N)
        generator = torch.Generator().manual_seed(derive(self.seed, "order", epoch))
        return Order(torch.randperm(len(self.y_N), generator=generator), turn_N)

    def __iter__(self) -> Iterator[Batch]:
        places = torch.arange(self.images)
        # batch after batch, `per_rank` in each
        order = self.order(self.epoch).take(places[places % self.batch_size % self.world_size == self.rank])
        # a block begins where it always does, so that a resumed epoch computes what an unbroken one did
        starts = range(self.position - self.position % self.batches_at_once, len(self), self.batches_at_once)
        blocks = [slice(start * self.per_rank, (start + self.batches_at_once) * self.per_rank) for start in starts]
        gathered = self._gather(order.row_N, blocks)
        row_N, turn_N = self.to_device(order.row_N), self.to_device(order.turn_N)
        for start, block, x_NCHW in zip(starts, blocks, gathered, strict=True):
            made = self._assemble(x_NCHW, row_N[block], turn_N[block], start)
            for position in range(max(start, self.position), min(start + self.batches_at_once, len(self))):
                # before the batch is handed out: a checkpoint after its step counts it
                self.position = position + 1
                first = (position - start) * self.per_rank
                batch = made[first : first + self.per_rank]
                yield batch if self.world_size == 1 else replace(batch, global_count=self._size(position))

    def _size(self, position: int) -> int:
        """Images of the batch at the position, over all ranks."""
        return min(self.batch_size, self.images - position * self.batch_size)

    def to_device(self, numbers: Tensor) -> Tensor:
        """Copies to the device, from pinned memory: a GPU's queued work is not waited for."""
        return numbers.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else numbers

    @abstractmethod
    def _gather(self, rows: Tensor, blocks: Sequence[slice]) -> Iterator[Tensor]:
        """The images of each block of rows, as stored but on the device, one block after the other."""

    def _assemble(self, x_NCHW: Tensor, row_N: Tensor, turn_N: Tensor, position: int) -> Batch:
        """Consecutive batches as one: augmented, normalised, with their targets."""
        target, index_N = self.y_N[row_N], self.index_N[row_N]
        if self.augment and len(row_N):  # a rank may get no image of a small last batch
            x_NCHW, target = self.augment(x_NCHW.float(), target, index_N, turn_N, self.epoch, position)
        if self.normalization:
            x_NCHW = normalized(x_NCHW, *self.normalization)
        return Batch(x_NCHW, target, index_N)


@dataclass(frozen=True)
class Order:
    """The images of an epoch: `row_N` int64 rows, `turn_N` int64 how often each of them came before."""

    row_N: Tensor
    turn_N: Tensor

    def take(self, places: Tensor) -> "Order":
        return Order(self.row_N[places], self.turn_N[places])


def balanced_order(y_N: Tensor, seed: int, epoch: int) -> Order:
    """(N,) images of an epoch in which each class that has an image comes as often as any other, ± 1.

    The epoch goes in rounds; in each, every class gives one image, in a new random order: so any beginning of it is
    balanced, whatever `drop_last` cuts off. Each class goes through permutations of its own images without end and
    continues in the next epoch where it stopped, so that no image comes again before all others of its class did.
    The images that fill no round are given by other classes from epoch to epoch.
    """
    labels, class_N, sizes = y_N.unique(return_inverse=True, return_counts=True)
    count = len(labels)
    rounds, rest = divmod(len(y_N), count)
    generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
    whole = torch.rand(rounds, count, generator=generator).argsort(stable=True).flatten()
    last = ((torch.arange(rest) + epoch * rest) % count)[torch.randperm(rest, generator=generator)]
    giver_N = torch.cat([whole, last])
    row_N, turn_N = torch.empty_like(giver_N), torch.empty_like(giver_N)
    rows_by_class = class_N.argsort(stable=True).split(sizes.tolist())
    places_by_class = giver_N.argsort(stable=True).split(giver_N.bincount(minlength=count).tolist())
    for number, label in enumerate(labels.tolist()):
        # in the whole rounds of the epochs before, and ⌈(epoch · rest − number) / count⌉ at their ends
        given_before = epoch * rounds - (number - epoch * rest) // count
        places, rows = places_by_class[number], rows_by_class[number]
        given = given_before + torch.arange(len(places))
        turn_N[places] = given // len(rows)
        row_N[places] = rows[_permutations(len(rows), given, seed, label)]
    return Order(row_N, turn_N)


def _permutations(size: int, given: Tensor, seed: int, label: int) -> Tensor:
    """The numbers at consecutive positions `given` of an endless sequence of permutations of 0 … size − 1."""
    if not len(given):
        return given
    first, last = int(given[0]) // size, int(given[-1]) // size
    permutations = [
        torch.randperm(size, generator=torch.Generator().manual_seed(derive(seed, "class", label, turn)))
        for turn in range(first, last + 1)
    ]
    return torch.cat(permutations)[given - first * size]
