"""Groups of images that are in a data set more than once."""

import torch
from torch import Tensor

from cnnlab.data.duplicates import find_duplicates
from cnnlab.data.source import Images


def random_images(count: int, side: int, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def test_equal_images_are_grouped_those_across_splits_first() -> None:
    x_NCHW = random_images(6, 8)
    train = Images.of(x_NCHW[[0, 1, 1, 1, 2, 3]], torch.tensor([0, 1, 1, 1, 0, 1]))
    test = Images.of(x_NCHW[[4, 2, 5]], torch.tensor([0, 1, 0]))
    found = find_duplicates({"train": train, "test": test})
    assert [[(one.split, one.row, one.label) for one in group.members] for group in found.groups] == [
        [("train", 4, 0), ("test", 1, 1)],
        [("train", 1, 1), ("train", 2, 1), ("train", 3, 1)],
    ]
    assert [group.is_exact for group in found.groups] == [True, True]
    assert (found.also_in("test", "train"), found.also_in("train", "test")) == (1, 1)
    assert not found.near_searched  # 8 pixels a side


def test_what_is_nearly_equal_to_one_of_a_group_is_in_it() -> None:
    waves = torch.cos(torch.arange(32) / 5)
    x_CHW = (
        (127 + 60 * waves * waves[:, None] + 40 * torch.cos(torch.arange(32) / 3))
        .clamp(0, 255)
        .byte()
        .expand(3, 32, 32)
    )
    other_NCHW = random_images(20, 32)
    train = Images.of(torch.cat([other_NCHW, x_CHW[None], x_CHW[None]]), torch.zeros(22, dtype=torch.int64))
    val = Images.of((x_CHW[None] * 0.9).byte(), torch.ones(1, dtype=torch.int64))
    (group,) = find_duplicates({"train": train, "val": val}).groups
    assert [(one.split, one.row, one.is_exact) for one in group.members] == [
        ("train", 20, True),
        ("train", 21, True),
        ("val", 0, False),
    ]
    assert not group.is_exact
    assert [(one.split, one.row) for one in group.shown(2)] == [("train", 20), ("val", 0)]


def test_different_images_have_no_group() -> None:
    images = Images.of(random_images(30, 16), torch.zeros(30, dtype=torch.int64))
    assert find_duplicates({"train": images}).groups == []
