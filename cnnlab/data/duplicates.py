"""Images that are in a data set more than once, within a split or across splits."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from cnnlab.data.near_duplicates import SMALLEST, near_duplicates, thumbnails
from cnnlab.data.source import Images, image_digests
from cnnlab.runtime.device import one_thread


@dataclass(frozen=True)
class Member:
    """An image of a group: its split, its row in it, its label, and whether it equals the group's first to the bit."""

    split: str
    row: int
    label: int
    is_exact: bool


@dataclass(frozen=True)
class Group:
    """Two images or more that show the same."""

    members: list[Member]

    @property
    def splits(self) -> set[str]:
        return {member.split for member in self.members}

    @property
    def labels(self) -> set[int]:
        return {member.label for member in self.members}

    def shown(self, most: int) -> list[Member]:
        """So many of the members: of each split and label one, before others."""
        seen: Counter[tuple[str, int]] = Counter()
        turns = []
        for member in self.members:
            turns.append(seen[member.split, member.label])
            seen[member.split, member.label] += 1
        order = sorted(range(len(turns)), key=turns.__getitem__)
        return [self.members[place] for place in order[:most]]

    @property
    def is_exact(self) -> bool:
        """True if all are equal to the bit."""
        return all(member.is_exact for member in self.members)


@dataclass(frozen=True)
class Duplicates:
    """The groups of a data set: those across splits first, then those of several labels, then the larger."""

    groups: list[Group]
    near_searched: bool  # images of fewer than SMALLEST pixels a side are compared exactly alone

    def also_in(self, split: str, other: str) -> int:
        """How many images of a split are in the other split, too."""
        shared = [group for group in self.groups if {split, other} <= group.splits]
        return sum(member.split == split for group in shared for member in group.members)


def find_duplicates(splits: Mapping[str, Images], seed: int = 0) -> Duplicates:
    """Compares all images of all splits, in a time that grows as N log N; of each, about 2 KB are in memory at once.

    Equal images are found by digests, nearly equal ones as `near_duplicates` describes. Whoever is nearly the same as
    one of a group is in that group.
    """
    digests, small = [], []
    searched = min(next(iter(splits.values())).shape[1:]) >= SMALLEST
    for images in splits.values():
        for x_NCHW in images.chunks():
            digests.append(image_digests(x_NCHW))
            if searched:
                small.append(thumbnails(x_NCHW))
    digest_N = torch.cat(digests)
    _, same_N, counts = digest_N.unique(return_inverse=True, return_counts=True)
    first_of = torch.empty(len(counts), dtype=torch.int64).scatter_reduce_(
        0, same_N, torch.arange(len(same_N)), "amin", include_self=False
    )
    exact_N2 = torch.stack([first_of[same_N], torch.arange(len(same_N))], 1)
    near_P2 = torch.empty(0, 2, dtype=torch.int64)
    if searched:
        with one_thread():  # thousands of operations on little: threads would wait for each other
            near_P2 = first_of[near_duplicates(torch.cat(small)[first_of], seed)]
    return Duplicates(_groups(torch.cat([exact_N2, near_P2]), same_N, splits), searched)


def _groups(pairs_P2: Tensor, same_N: Tensor, splits: Mapping[str, Images]) -> list[Group]:
    count = len(same_N)
    first, second = pairs_P2.T.numpy()
    graph = coo_array((np.ones(len(first), dtype=bool), (first, second)), (count, count))
    group_N = torch.from_numpy(connected_components(graph, directed=False)[1]).long()
    sizes = group_N.bincount()
    rows = (sizes[group_N] > 1).nonzero().flatten()
    rows = rows[group_N[rows].argsort(stable=True)]
    places = _places(splits)
    groups = [
        Group([_member(places, row, same_N[row] == same_N[part[0]]) for row in part.tolist()])
        for part in rows.split(sizes[sizes > 1].tolist())
    ]
    return sorted(groups, key=lambda group: (len(group.splits) == 1, len(group.labels) == 1, -len(group.members)))


def _places(splits: Mapping[str, Images]) -> Sequence[tuple[str, int, int]]:
    """Split, row and label of each image of all splits."""
    return [(name, row, label) for name, images in splits.items() for row, label in enumerate(images.y_N.tolist())]


def _member(places: Sequence[tuple[str, int, int]], row: int, is_exact: Tensor) -> Member:
    split, place, label = places[row]
    return Member(split, place, label, bool(is_exact))
