"""Sums over the images seen: loss and correct predictions, read at the record cadence without waiting before."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Sent:
    """Losses and correct predictions of some batches, in transfer to main memory until the event `arrived`."""

    losses_B: Tensor
    correct_B: Tensor
    indices: Sequence[Tensor]
    arrived: torch.cuda.Event | None


class Tally:
    """Loss and accuracy as sums and counts, so that microbatches and ranks add.

    Losses are summed one by one in float64 when they are read: where reading falls moves no bit of the sum.
    """

    def __init__(self) -> None:
        self.loss_sum = 0.0
        self.correct = 0
        self.count = 0
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self._sent: list[_Sent] = []

    def add(self, loss: Tensor, correct: Tensor, index_N: Tensor) -> None:
        """One batch: `loss` () mean over its images, `correct` () int, and which images they are."""
        self._pending.append((loss, correct, index_N))

    def send(self) -> None:
        """Starts the transfer of what is pending; `synchronize` then waits for no later work of the device."""
        if not self._pending:
            return
        losses, correct, indices = zip(*self._pending, strict=True)
        self._pending = []
        losses_B, correct_B = (_to_main_memory(torch.stack(values)) for values in (losses, correct))
        self._sent.append(_Sent(losses_B, correct_B, indices, _arrival(losses[0].device)))

    def synchronize(self) -> tuple[int, list[int]] | None:
        """Adds up what is pending: this waits for the device.

        Returns how many batches ago the first non-finite loss was (0 is the last) and its images, if there is one.
        """
        self.send()
        bad: list[Tensor] = []  # the images of the first bad batch and of those after it
        for sent in self._sent:
            if sent.arrived:
                sent.arrived.synchronize()
            self.correct += int(sent.correct_B.sum())
            for loss, index_N in zip(sent.losses_B.double().tolist(), sent.indices, strict=True):
                self.loss_sum += loss * len(index_N)
                self.count += len(index_N)
                if bad or not math.isfinite(loss):
                    bad.append(index_N)
        self._sent.clear()
        return (len(bad) - 1, bad[0].tolist()) if bad else None

    def read(self) -> dict[str, float]:
        """`{"loss", "accuracy"}`, means over the images."""
        self.synchronize()
        assert self.count > 0
        return {"loss": self.loss_sum / self.count, "accuracy": self.correct / self.count}

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


def _to_main_memory(values: Tensor) -> Tensor:
    """Without waiting on CUDA, whose event reports the arrival; other GPUs are waited for."""
    return values.to("cpu", non_blocking=values.is_cuda)


def _arrival(device: torch.device) -> torch.cuda.Event | None:
    """An event after all work that a GPU was given so far; None on CPU, where it is done already."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event
