"""Where a run keeps its images: on the device, or where they are stored."""

from dataclasses import dataclass, replace
from math import prod

import torch

from cnnlab.data.settings import FORKS, DataSettings
from cnnlab.data.source import DataSpec
from cnnlab.runtime.device import free_memory, size_text
from cnnlab.runtime.ranks import local_world_size

MOST_WORKERS = 4  # with `workers: auto`


@dataclass(frozen=True)
class Placement:
    """Decides if all images are kept on the device; the batches are bit-identical either way.

    `needed` are the bytes of all splits as uint8, `free` those of the device, of which `fraction` may be used.
    `workers` gather the images if they do not fit. With `sharing` above 1, that many ranks of a machine read one
    mapped file, which is in main memory once: nothing is copied, and each takes from it what it trains on.
    """

    device: torch.device
    needed: int
    free: int
    fraction: float
    workers: int
    sharing: int = 1

    @property
    def fits(self) -> bool:
        return self.needed <= self.fraction * self.free

    @property
    def resident(self) -> bool:
        return self.fits and self.sharing == 1

    def describe(self, stored: str) -> str:
        """One line; `stored` is where the images are otherwise."""
        size, free = size_text(self.needed), size_text(self.free)
        if self.fits:
            held = f"resident on {self.device.type} ({size}"
            if self.sharing > 1:
                held = f"one copy for the {self.sharing} ranks of this machine, from {stored} ({size}"
            return f"data: {held}, {self.needed / self.free:.1%} of {free} free)"
        workers = f"{self.workers} {'worker' if self.workers == 1 else 'workers'}" if self.workers else "no worker"
        return (
            f"data: streaming from {stored} with {workers} ({size}, more than {self.fraction:.3g} of the {free} free "
            f"on {self.device.type})"
        )


def place(settings: DataSettings, spec: DataSpec, device: torch.device, *, mapped: bool) -> Placement:
    """Looks at the device's memory as it is now; `mapped` images are in a file that processes of a machine share.

    Raises `ArgumentError` for settings that leave nothing to train on.
    """
    held_out = sum(count for split, count in spec.counts.items() if split != "train")
    count = settings.train_count(spec) + settings.carved_count(spec) + held_out
    ranks = local_world_size() if device.type == "cpu" else 1  # which have the machine's memory together
    sharing = ranks if mapped else 1
    free = free_memory(device) // (ranks // sharing)
    placement = Placement(device, count * prod(spec.input_shape), free, settings.memory_fraction, 0, sharing)
    in_memory = sharing > 1 and placement.fits  # so that gathering takes no worker
    auto = min(MOST_WORKERS, torch.get_num_threads()) if FORKS and not in_memory else 0
    return replace(placement, workers=auto if isinstance(settings.workers, str) else settings.workers)
