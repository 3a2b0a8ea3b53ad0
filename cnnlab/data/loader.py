"""What loaders share: the order of an epoch, the position in it, and how gathered images become batches."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from cnnlab.data.augmentation import Augment
from cnnlab.data.normalization import Normalization, normalized
from cnnlab.data.source import Images
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.randomness import derive

SAMPLINGS = ("shuffle", "balanced")
# numbers: small batches are made together, as many as fill a megabyte of float32, or 32 of a GPU's memory, where each
# operation costs its launch
BLOCK, BLOCK_ON_CUDA = 1 << 18, 1 << 23


class ImageLoader(ABC):
    """Batches of one split, in an order that is a pure function of (seed, epoch).

    `batch_size` is over all ranks; every rank draws the same order and takes every `world_size`-th image of each
    batch. `shuffle` takes each image once an epoch; with `balanced` as well, an epoch is as long, and has each class
    as often as any other (`balanced_order`). `drop_last` leaves out the images that fill no whole batch. Position
    within the epoch is an integer (`state_dict`), so an epoch can be taken up in the middle. Iterating yields the rest
    of the current epoch; then `set_epoch` starts another. `augment` changes the images of each batch.

    A subclass says where images are gathered; the batches are the same to the bit.
    """

    def __init__(
        self,
        images: Images,
        normalization: Normalization,
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
        self.shift_C11, self.scale_C11 = normalization.tensors(device)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.balanced = balanced
        self.drop_last = drop_last
        self.augment = augment
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.share = len(range(rank, batch_size, world_size))  # of a whole batch, for this rank
        numbers = max(1, self.share) * images.stored_NCHW[0].numel()
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
        """Ends what works for the loader beside this process; iterating starts it again."""

    def order(self, epoch: int) -> Tensor:
        """(images,) int64 rows in the order of that epoch, the same on every device."""
        if not self.shuffle:
            return torch.arange(len(self.y_N))
        if self.balanced:
            return balanced_order(self.y_N.cpu(), self.seed, epoch)
        generator = torch.Generator().manual_seed(derive(self.seed, "order", epoch))
        return torch.randperm(len(self.y_N), generator=generator)

    def __iter__(self) -> Iterator[Batch]:
        places = torch.arange(self.images)
        places = places[places % self.batch_size % self.world_size == self.rank]  # batch after batch, `share` in each
        rows = self.order(self.epoch)[places]
        # a block begins where it always does, so that a resumed epoch computes what an unbroken one did
        starts = range(self.position - self.position % self.batches_at_once, len(self), self.batches_at_once)
        blocks = [slice(start * self.share, (start + self.batches_at_once) * self.share) for start in starts]
        gathered = self._gathered(rows, blocks)
        places, rows = self.moved(places), self.moved(rows)
        for start, block, x_NCHW in zip(starts, blocks, gathered, strict=True):
            made = self._made(x_NCHW, rows[block], places[block], start)
            for position in range(max(start, self.position), min(start + self.batches_at_once, len(self))):
                # the position moves on before the batch is handed out: a checkpoint after its step counts it
                self.position = position + 1
                first = (position - start) * self.share
                yield made[first : first + self.share]

    def moved(self, numbers: Tensor) -> Tensor:
        """On the device; from pinned memory, so that nothing waits until a GPU has done all that it was told before."""
        return numbers.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else numbers

    @abstractmethod
    def _gathered(self, rows: Tensor, blocks: Sequence[slice]) -> Iterator[Tensor]:
        """The images of each block of rows, uint8 on the device, one block after the other."""

    def _made(self, x_NCHW: Tensor, rows: Tensor, places: Tensor, position: int) -> Batch:
        """Some batches in one: augmented, normalised, with their targets."""
        target, index_N = self.y_N[rows], self.index_N[rows]
        if self.augment:
            # balanced, an image comes several times in an epoch: it shall look different each time
            numbered_N = places if self.balanced else index_N
            x_NCHW, target = self.augment(x_NCHW.float(), target, numbered_N, self.epoch, position)
        return Batch(normalized(x_NCHW, self.shift_C11, self.scale_C11), target, index_N)


def balanced_order(y_N: Tensor, seed: int, epoch: int) -> Tensor:
    """(N,) int64 rows of an epoch in which each class that has an image comes as often as any other, ± 1.

    The epoch goes in rounds; in each, every class gives one image, in an order drawn anew: so any beginning of it
    is balanced, whatever `drop_last` cuts off. Each class goes through permutations of its own images without
    end and goes on in the next epoch where it stopped, so that no image comes again before all others of its class
    did. The images over at the end are given by other classes from epoch to epoch.
    """
    labels, class_N, sizes = y_N.unique(return_inverse=True, return_counts=True)
    count = len(labels)
    rounds, rest = divmod(len(y_N), count)
    generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
    whole = torch.rand(rounds, count, generator=generator).argsort(stable=True).flatten()
    last = ((torch.arange(rest) + epoch * rest) % count)[torch.randperm(rest, generator=generator)]
    giver_N = torch.cat([whole, last])
    order = torch.empty_like(giver_N)
    rows_by_class = class_N.argsort(stable=True).split(sizes.tolist())
    places_by_class = giver_N.argsort(stable=True).split(giver_N.bincount(minlength=count).tolist())
    for number, label in enumerate(labels.tolist()):
        # in the whole rounds of the epochs before, and ⌈(epoch · rest − number) / count⌉ at their ends
        given_before = epoch * rounds - (number - epoch * rest) // count
        places = places_by_class[number]
        order[places] = _stream(rows_by_class[number], given_before, len(places), seed, label)
    return order


def _stream(rows: Tensor, start: int, count: int, seed: int, label: int) -> Tensor:
    """`count` rows of a class from position `start` of its endless row of permutations."""
    first, last = start // len(rows), (start + count - 1) // len(rows)
    permutations = [
        rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(derive(seed, "class", label, number)))]
        for number in range(first, last + 1)
    ]
    skipped = start - first * len(rows)
    return torch.cat(permutations)[skipped : skipped + count]
