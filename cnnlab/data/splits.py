"""The validation split, carved from the training data."""

import torch
from torch import Tensor

from cnnlab.runtime.checks import integer, one_of
from cnnlab.runtime.errors import ArgumentError
from cnnlab.runtime.randomness import derive


def check_validation(count: int, where: str, available: int) -> None:
    """Raises `ArgumentError` for a split that cannot be carved from `available` pictures."""
    integer("count", count, 0)
    one_of("from", where, ("random", "end"))
    if count >= available:
        raise ArgumentError(
            "count",
            f"expected fewer than the {available} training pictures, received {count}",
        )


def carve(y_N: Tensor, count: int, where: str, seed: int) -> tuple[Tensor, Tensor]:
    """(kept, carved) positions, each in ascending order.

    `random` carves by `seed`, stratified: each class gives its share of `count`, the remainders largest first.
    `end` carves the last `count`, as published splits of MNIST do.
    """
    total = len(y_N)
    if where == "end":
        return torch.arange(total - count), torch.arange(total - count, total)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(derive(seed, "split")))
    sizes = torch.bincount(y_N)
    shares = sizes.double() * count / total
    quota = shares.floor().long()
    largest_first = (shares - quota).argsort(descending=True, stable=True)
    quota[largest_first[: count - int(quota.sum())]] += 1
    carved = torch.zeros(total, dtype=torch.bool)
    for label, wanted in enumerate(quota.tolist()):
        carved[order[y_N[order] == label][:wanted]] = True
    return (~carved).nonzero().flatten(), carved.nonzero().flatten()
