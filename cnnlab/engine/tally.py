"""Sums over the images seen: loss and correct predictions, read at the record cadence without waiting before."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cnnlab.runtime.device import Transfer
from cnnlab.runtime.distributed import summed
from cnnlab.runtime.ranks import world_size


@dataclass(frozen=True)
class _Sent:
    """Losses and correct predictions of some batches, on their way to main memory."""

    losses_B: Transfer
    correct_B: Transfer
    indices: Sequence[Tensor]
    counts: Sequence[int]


class Tally:
    """Loss and accuracy as sums and counts, so that microbatches and ranks add.

    Losses are summed one by one in float64 when they are read: where reading falls moves no bit of the sum.
    """

    def __init__(self) -> None:
        self.loss_sum = 0.0
        self.correct = 0
        self.count = 0
        self._pending: list[tuple[Tensor, Tensor, Tensor, int]] = []
        self._sent: list[_Sent] = []

    def add(self, loss: Tensor, correct: Tensor, index_N: Tensor, count: int | None = None) -> None:
        """One batch: `loss` () mean over its images, `correct` () int, and which images they are.

        `count` is their number where other ranks have some of them.
        """
        self._pending.append((loss, correct, index_N, len(index_N) if count is None else count))

    def send(self) -> None:
        """Starts the transfer of what is pending; `synchronize` then waits for no later work of the device."""
        if not self._pending:
            return
        losses, correct, indices, counts = zip(*self._pending, strict=True)
        self._pending = []
        losses_B, correct_B = (Transfer(torch.stack(values)) for values in (losses, correct))
        self._sent.append(_Sent(losses_B, correct_B, indices, counts))

    def synchronize(self) -> tuple[int, list[int]] | None:
        """Adds up what is pending: this waits for the device.

        Returns how many batches ago the first non-finite loss was (0 is the last) and its images, if there is one.
        """
        self.send()
        bad: list[Tensor] = []  # the images of the first bad batch and of those after it
        for sent in self._sent:
            self.correct += int(sent.correct_B.read().sum())
            losses = sent.losses_B.read().double().tolist()
            for loss, index_N, count in zip(losses, sent.indices, sent.counts, strict=True):
                self.loss_sum += loss * count
                self.count += count
                if bad or not math.isfinite(loss):
                    bad.append(index_N)
        self._sent.clear()
        return (len(bad) - 1, bad[0].tolist()) if bad else None

    def read(self) -> dict[str, float]:
        """`{"loss", "accuracy"}`, means over the images."""
        self.synchronize()
        assert self.count > 0
        return {"loss": self.loss_sum / self.count, "accuracy": self.correct / self.count}

    def merge(self, device: torch.device) -> None:
        """Adds the sums of all ranks, each of which has seen images of its own."""
        if world_size() == 1:
            return
        self.synchronize()
        sums = torch.tensor([self.loss_sum, self.correct, self.count], dtype=torch.float64, device=device)
        self.loss_sum, correct, count = summed(sums).tolist()
        self.correct, self.count = round(correct), round(count)

    def reset(self) -> None:
        self.loss_sum, self.correct, self.count = 0.0, 0, 0
        self._pending.clear()
        self._sent.clear()

    def state_dict(self) -> dict[str, Any]:
        self.synchronize()
        return {"loss_sum": self.loss_sum, "correct": self.correct, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reset()
        self.loss_sum, self.correct, self.count = state["loss_sum"], state["correct"], state["count"]
