"""What the ranks exchange in a step: gradients and all else that they have to agree on, in one message."""

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from cnnlab.runtime.device import Transfer
from cnnlab.runtime.distributed import summed

Passes = Sequence[tuple[Tensor, Tensor]]  # of each microbatch: its weighted loss, and its correct predictions
Wishes = Callable[[], Sequence[bool]]  # what this rank wants of all: a step's message carries it


class Exchange(Protocol):
    """Between the last backward pass and the update: returns the whole batch's loss and correct predictions.

    Where several ranks have parts of the batch, this one a `fraction` of its images, it adds up their gradients, too.
    """

    def __call__(self, passes: Passes, fraction: float) -> tuple[Tensor, Tensor]: ...


def added_up(passes: Passes, fraction: float = 1.0) -> tuple[Tensor, Tensor]:
    """The loss and the correct predictions of all microbatches: the exchange of one rank alone."""
    losses, correct = zip(*passes, strict=True)
    return reduce(add, losses), reduce(add, correct)


class Alone:
    """One rank: it adds up its microbatches, and what it wishes is agreed."""

    def __init__(self) -> None:
        self.wishes: Wishes = lambda: ()

    def __call__(self, passes: Passes, fraction: float) -> tuple[Tensor, Tensor]:
        return added_up(passes)

    def agreed(self) -> list[bool]:
        """What any rank wished in the last step."""
        return list(self.wishes())

    def agree(self) -> list[bool]:
        """What any rank wishes now."""
        return list(self.wishes())


class AmongRanks(Alone):
    """Adds up the gradients of all ranks, whose losses are weighted by their fractions of the batch's images.

    The same message carries the loss, the correct predictions, the running averages of batch norm, which become the
    mean over the ranks, and what each rank wishes. A rank without images sends zeros. So every rank has the same
    weights after an update and the same figures, and a loss that is not finite is so for all. Without `gradients`
    something else adds those up.

    Nothing waits for a GPU: what was wished in a step is then known in the next one.
    """

    def __init__(self, network: nn.Module, *, gradients: bool = True) -> None:
        super().__init__()
        self.parameters = list(network.parameters())
        self.device = self.parameters[0].device
        self.gradients = gradients
        norms = [norm for norm in network.modules() if isinstance(norm, _NormBase) and norm.running_mean is not None]
        self.averages = [one for norm in norms for one in (norm.running_mean, norm.running_var) if one is not None]
        self._mask: list[bool] | None = None
        self._layout: tuple[Tensor, list[Tensor], Tensor, Tensor]
        self._wished: list[Transfer] = []

    @torch.no_grad()
    def __call__(self, passes: Passes, fraction: float) -> tuple[Tensor, Tensor]:
        mask = [parameter.requires_grad and self.gradients for parameter in self.parameters]
        trained = [parameter for parameter, wanted in zip(self.parameters, mask, strict=True) if wanted]
        computed = [parameter.grad is not None for parameter in trained]
        flags = torch.tensor([*computed, *self.wishes()], dtype=torch.float32)
        if mask != self._mask:  # the first step, or something was frozen
            self._mask = mask
            self._lay_out([*trained, *self.averages], len(flags))
        message, tensors, (loss, correct), flags_sum = self._layout
        own = [torch.zeros_like(one) if one.grad is None else one.grad for one in trained]
        averages = [one * fraction for one in self.averages]
        if tensors:
            torch._foreach_copy_(tensors, own + averages)
        for total, part in zip((loss, correct), added_up(passes) if passes else (0, 0), strict=True):
            total.fill_(part)
        flags_sum.copy_(flags)
        summed(message)
        # a parameter that no rank has used stays without a gradient, as the optimizer expects
        used = computed if all(computed) else (flags_sum[: len(computed)] > 0).tolist()
        for parameter, gradient, has_one in zip(trained, tensors, used, strict=False):
            parameter.grad = gradient.to(parameter) if has_one else None
        if averages:
            torch._foreach_copy_(self.averages, tensors[len(trained) :])
        self._wished.append(Transfer(flags_sum[len(computed) :].clone()))
        return loss.clone(), correct.round().to(torch.int64)

    def _lay_out(self, tensors: Sequence[Tensor], flags: int) -> None:
        """Makes the message, with views of it that are laid out as the tensors, for the two sums and for the flags."""
        dtype = torch.float64 if any(one.dtype == torch.float64 for one in tensors) else torch.float32
        sizes = [*(one.numel() for one in tensors), 2, flags]
        message = torch.empty(sum(sizes), dtype=dtype, device=self.device)
        *pieces, sums, flags_sum = message.split(sizes)
        views = [
            piece.as_strided(one.shape, torch.empty_like(one, device="meta").stride())  # without gaps
            for piece, one in zip(pieces, tensors, strict=True)
        ]
        self._layout = message, views, sums, flags_sum

    def agreed(self) -> list[bool]:
        behind = self.device.type == "cuda"
        self._wished = self._wished[-2:] if behind else self._wished[-1:]
        if len(self._wished) <= behind:
            return [False] * len(self.wishes())
        return [count > 0 for count in self._wished[0].read().tolist()]

    def agree(self) -> list[bool]:
        wished = torch.tensor(self.wishes(), dtype=torch.float32, device=self.device)
        return [count > 0 for count in summed(wished).tolist()]
