"""Sums over the pictures seen: loss and right answers. Read at the record cadence, so nothing waits for the device."""

import math
from typing import Any

import torch
from torch import Tensor


class Tally:
    """Loss and accuracy as sums and counts, so that parts and ranks add.

    Losses are summed one by one in float64 when they are read: where reading falls moves no bit of the sum.
    """

    def __init__(self) -> None:
        self.loss_sum = 0.0
        self.correct = 0
        self.count = 0
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, loss: Tensor, correct: Tensor, index_N: Tensor) -> None:
        """One batch: `loss` () mean over its pictures, `correct` () int, and which pictures they are."""
        self._pending.append((loss, correct, index_N))

    def settle(self) -> tuple[int, list[int]] | None:
        """Adds up what is pending: this waits for the device.

        Returns how many batches ago the first non-finite loss was (0 is the last) and its pictures, if there is one.
        """
        if not self._pending:
            return None
        losses = torch.stack([loss for loss, _, _ in self._pending]).double().tolist()
        self.correct += int(torch.stack([correct for _, correct, _ in self._pending]).sum())
        bad = None
        for place, (loss, (_, _, index_N)) in enumerate(zip(losses, self._pending, strict=True)):
            self.loss_sum += loss * len(index_N)
            self.count += len(index_N)
            if bad is None and not math.isfinite(loss):
                bad = (len(losses) - 1 - place, index_N.tolist())
        self._pending.clear()
        return bad

    def read(self) -> dict[str, float]:
        """`{"loss", "accuracy"}`, means over the pictures."""
        self.settle()
        assert self.count > 0
        return {"loss": self.loss_sum / self.count, "accuracy": self.correct / self.count}

    def reset(self) -> None:
        self.loss_sum, self.correct, self.count = 0.0, 0, 0
        self._pending.clear()

    def state_dict(self) -> dict[str, Any]:
        self.settle()
        return {"loss_sum": self.loss_sum, "correct": self.correct, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reset()
        self.loss_sum, self.correct, self.count = state["loss_sum"], state["correct"], state["count"]
