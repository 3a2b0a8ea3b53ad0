"""What validates: a split carved from the training data, or one of several folds; images of a group stay together."""

from collections.abc import Sequence

import numpy as np
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
    order = torch.randperm(total, generator=_generator(seed))
    sizes = torch.bincount(y_N)
    exact = sizes.double() * count / total
    quota = exact.floor().long()
    largest_first = (exact - quota).argsort(descending=True, stable=True)
    quota[largest_first[: count - int(quota.sum())]] += 1
    carved = torch.zeros(total, dtype=torch.bool)
    for label, wanted in enumerate(quota.tolist()):
        carved[order[y_N[order] == label][:wanted]] = True
    return (~carved).nonzero().flatten(), carved.nonzero().flatten()


def carve_groups(y_N: Tensor, group_N: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(kept, carved) positions as `carve` gives them, of whole groups: about `count` images, and about as many of
    each class as their fraction. There have to be two groups or more.
    """
    fraction = count / len(y_N)
    part_N = _deal_groups(y_N, group_N, (fraction, 1 - fraction), seed)
    return part_N.nonzero().flatten(), (part_N == 0).nonzero().flatten()


def folds_of(y_N: Tensor, folds: int, seed: int, group_N: Tensor | None = None) -> Tensor:
    """(N,) the fold of each image, 0 … folds − 1, drawn by `seed` and stratified.

    Without groups the images of one class after the other are dealt like cards: of all images and of each class, no
    two folds differ by more than one. With groups, as many as folds or more, whole groups are dealt, and the folds
    are as alike as the groups allow.
    """
    if group_N is not None:
        return _deal_groups(y_N, group_N, [1 / folds] * folds, seed)
    order = torch.randperm(len(y_N), generator=_generator(seed))
    fold_N = torch.empty(len(y_N), dtype=torch.int64)
    fold_N[order[y_N[order].argsort(stable=True)]] = torch.arange(len(y_N)) % folds
    return fold_N


def fold_size(total: int, folds: int, fold: int) -> int:
    """The images of a fold of `total` images without groups."""
    return len(range(fold, total, folds))


def _deal_groups(y_N: Tensor, group_N: Tensor, fractions: Sequence[float], seed: int) -> Tensor:
    """(N,) the part of each image: whole groups, the largest first and equal ones in drawn order.

    A group goes where Σ (n − p N)² / (p N²) over parts and classes becomes smallest, for a part's n images of a class
    that has N, and its fraction p. No part stays empty.
    """
    _, of_image_N = group_N.unique(return_inverse=True)
    sizes = of_image_N.bincount()
    contents = _contents(y_N, of_image_N)
    drawn = torch.randperm(len(sizes), generator=_generator(seed))
    order = drawn[sizes[drawn].argsort(descending=True, stable=True)].tolist()
    dealt_PK = np.zeros((len(fractions), int(y_N.max()) + 1))  # each part's fraction of a class's images
    size_P = np.zeros(len(fractions), dtype=np.int64)
    part_G = torch.empty(len(sizes), dtype=torch.int64)
    for left, group in zip(range(len(order), 0, -1), order, strict=True):
        labels, dealt = contents[group]
        added_P = ((2 * dealt_PK[:, labels] + dealt) * dealt).sum(1).round(12) / np.asarray(fractions)
        if left <= (size_P == 0).sum():
            added_P[size_P > 0] = np.inf
        part = int(np.lexsort((size_P, added_P))[0])  # of equal ones the smallest
        dealt_PK[part, labels] += dealt
        size_P[part] += int(sizes[group])
        part_G[group] = part
    return part_G[of_image_N]


def _contents(y_N: Tensor, group_N: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each group 0, 1, …: its classes, and the fraction of each class's images that it has."""
    classes = int(y_N.max()) + 1
    pairs, counts = (group_N * classes + y_N).unique(return_counts=True)  # sorted by group
    ends = (pairs // classes).bincount().cumsum(0)[:-1].numpy()
    labels = pairs % classes
    fractions = counts.double() / y_N.bincount()[labels]
    return list(zip(np.split(labels.numpy(), ends), np.split(fractions.numpy(), ends), strict=True))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive(seed, "split"))
