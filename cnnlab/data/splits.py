"""The validation split, carved from the training data."""

import torch
from torch import Tensor

from cnnlab.runtime.checks import one_of
from cnnlab.runtime.errors import ArgumentError
from cnnlab.runtime.randomness import derive


def check_validation(count: float, where: str) -> None:
    """Raises `ArgumentError` for an illegal size or place of the validation split."""
    is_number = isinstance(count, int | float) and not isinstance(count, bool)
    if not is_number or count < 0 or (isinstance(count, float) and not 0 < count < 1):
        raise ArgumentError(
            "count", f"expected a whole number ≥ 0 or a fraction of the images in (0, 1), received {count!r}"
        )
    one_of("from", where, ("random", "end"))


def validation_count(count: float, available: int) -> int:
    """The number of `available` images that a count or a fraction means; a fraction is at least one image.

    Raises `ArgumentError` where none would be left.
    """
    images = max(1, round(count * available)) if isinstance(count, float) else count
    if images >= available:
        raise ArgumentError("count", f"expected fewer than the {available} training images, received {count}")
    return images


def carve(y_N: Tensor, count: int, where: str, seed: int) -> tuple[Tensor, Tensor]:
    """(kept, carved) positions, each in ascending order.

    `random` carves by `seed`, stratified: each class gives its fraction of `count`, the largest remainders first.
    `end` carves the last `count`, as published splits of MNIST do.
    """
    total = len(y_N)
    if where == "end":
        return torch.arange(total - count), torch.arange(total - count, total)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(derive(seed, "split")))
    sizes = torch.bincount(y_N)
    exact = sizes.double() * count / total
    quota = exact.floor().long()
    largest_first = (exact - quota).argsort(descending=True, stable=True)
    quota[largest_first[: count - int(quota.sum())]] += 1
    carved = torch.zeros(total, dtype=torch.bool)
    for label, wanted in enumerate(quota.tolist()):
        carved[order[y_N[order] == label][:wanted]] = True
    return (~carved).nonzero().flatten(), carved.nonzero().flatten()
