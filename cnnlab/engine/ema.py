"""An exponential moving average of the weights."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


class EMA:
    """A copy of the network whose parameters follow: average ← d·average + (1 − d)·weight.

    d = min(decay, (1 + n) / (10 + n)) after n updates, as in TensorFlow's ExponentialMovingAverage: a short run is not
    tied to its first weights. Buffers (batch norm's statistics) are copied, not averaged.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self._averages: list[Tensor] = [*self.network.parameters()]
        self._buffers = [*self.network.buffers()]

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights: list[Tensor] = [*network.parameters()]
        torch._foreach_lerp_(self._averages, weights, 1 - decay)
        if self._buffers:
            torch._foreach_copy_(self._buffers, [*network.buffers()])
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """The counter alone: the weights are the network's, saved beside the trained ones."""
        return {"updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
