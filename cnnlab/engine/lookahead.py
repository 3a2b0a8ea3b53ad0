"""Lookahead: slow weights follow the trained ones, which return to them every few steps."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.runtime.checks import integer, number


@dataclass(frozen=True)
class LookaheadSettings:
    """The keys under `trainer.lookahead`. Raises `ArgumentError`.

    `every` and `alpha` are k and α of arXiv 1907.08610. With a `power`, α falls from 1 at the first step to `alpha` at
    the last: 1 − α is (1 − `alpha`) · (step / total steps)^`power`. {every: 5, alpha: 0.226, power: 3} is the variant
    of arXiv 2404.00498, whose slow weights keep 0.95⁵ · (step / total steps)³ of themselves.
    """

    every: int = 5  # steps of the trained weights to one of the slow ones
    alpha: float = 0.5  # how far the slow weights then move towards the trained ones
    power: float = 0.0  # 0: alpha throughout; more: from 1 down to alpha, late in the run

    def __post_init__(self) -> None:
        integer("every", self.every, 1)
        number("alpha", self.alpha, 0, 1, open_minimum=True)
        number("power", self.power, 0)


class Lookahead:
    """A copy of the network whose weights are slow: every few steps slow ← slow + α·(weight − slow), weight ← slow.

    The statistics of batch norm are part of it, so that they belong to the weights they stand beside. `total_steps` of
    the run are needed by settings with a `power`.
    """

    def __init__(self, network: nn.Module, settings: LookaheadSettings, total_steps: int | None) -> None:
        self.settings = settings
        self.total_steps = total_steps
        self.updates = 0
        self.network = copy.deepcopy(network).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Counts a step; where one of the slow weights is due, moves them, and the trained ones to them."""
        self.updates += 1
        if self.updates % self.settings.every:
            return
        slow, trained = _by_kind(self.network), _by_kind(network)
        torch._foreach_lerp_(slow[True], trained[True], self.alpha)
        torch._foreach_copy_(trained[True], slow[True])
        for mine, theirs in zip(slow[False], trained[False], strict=True):  # such as batch norm's number of batches
            mine.copy_(theirs)

    @property
    def alpha(self) -> float:
        """α of the present step."""
        if not self.settings.power:
            return self.settings.alpha
        assert self.total_steps is not None
        return 1 - (1 - self.settings.alpha) * (self.updates / self.total_steps) ** self.settings.power

    def state_dict(self) -> dict[str, Any]:
        """The counter alone: the weights are the network's, saved beside the trained ones."""
        return {"updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]


def _by_kind(network: nn.Module) -> dict[bool, list[Tensor]]:
    """Parameters and buffers: True → those that can be averaged, False → the others."""
    tensors: list[Tensor] = [*network.parameters(), *network.buffers()]
    return {kind: [one for one in tensors if one.is_floating_point() is kind] for kind in (True, False)}
