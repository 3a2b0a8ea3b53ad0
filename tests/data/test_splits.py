from typing import Any

import pytest
import torch
from torch import Tensor

from cnnlab.data.splits import carve, carve_groups, check_validation, fold_size, folds_of, validation_count
from cnnlab.runtime.errors import ArgumentError


def labels(*sizes: int) -> Tensor:
    """So many images of class 0, 1, …, mixed."""
    y_N = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    return y_N[torch.randperm(len(y_N), generator=torch.Generator().manual_seed(1))]


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ((50, 30, 20), 10, [5, 3, 2]),  # shares without a remainder
        ((50, 30, 20), 7, [4, 2, 1]),  # 3.5, 2.1, 1.4: one is left for the .5
        ((6, 3, 1), 3, [2, 1, 0]),  # 1.8, 0.9, 0.3: two are left for .9 and .8
        ((4, 0, 6), 5, [2, 0, 3]),  # a class without images
        ((10, 10), 0, [0, 0]),
    ],
)
def test_each_class_gives_its_fraction_by_largest_remainder(
    sizes: tuple[int, ...], count: int, expected: list[int]
) -> None:
    y_N = labels(*sizes)
    _, carved = carve(y_N, count, "random", seed=0)
    assert y_N[carved].bincount(minlength=len(sizes)).tolist() == expected


@pytest.mark.parametrize("where", ["random", "end"])
@pytest.mark.parametrize("count", [0, 1, 99])
def test_the_splits_are_disjoint_in_the_files_order_and_together_everything(where: str, count: int) -> None:
    kept, carved = (rows.tolist() for rows in carve(labels(50, 30, 20), count, where, seed=3))
    assert len(carved) == count
    assert sorted(kept + carved) == list(range(100))
    assert (kept, carved) == (sorted(kept), sorted(carved))


def test_end_carves_the_last_ones() -> None:
    kept, carved = carve(labels(5, 5), 3, "end", seed=0)
    assert kept.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert carved.tolist() == [7, 8, 9]


def test_a_random_split_is_a_pure_function_of_its_seed_and_draws_nothing() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    carved = [carve(labels(50, 30, 20), 20, "random", seed=seed)[1].tolist() for seed in (7, 8)]
    assert torch.equal(torch.get_rng_state(), before)
    assert carved[0] != carved[1]
    torch.manual_seed(2)
    assert carve(labels(50, 30, 20), 20, "random", seed=7)[1].tolist() == carved[0]


@pytest.mark.parametrize("count", [-1, 1.5, 1.0, float("nan"), None, True])
def test_what_names_no_size_or_place_is_refused(count: Any) -> None:
    with pytest.raises(ArgumentError, match=f"^count: expected a whole number ≥ 0 or a fraction .* received {count}"):
        check_validation(count, "random")
    with pytest.raises(ArgumentError, match=r"^from: "):
        check_validation(1, "top")


@pytest.mark.parametrize(
    ("count", "images"), [(0, 0), (7, 7), (9, 9), (0.5, 5), (0.24, 2), (0.26, 3), (0.001, 1), (0.94, 9)]
)
def test_a_count_or_a_fraction_of_ten_images(count: float, images: int) -> None:
    check_validation(count, "random")
    assert validation_count(count, 10) == images


@pytest.mark.parametrize("count", [10, 11, 0.99])
def test_what_leaves_nothing_to_train_on_is_refused(count: float) -> None:
    with pytest.raises(ArgumentError, match=f"expected fewer than the 10 training images, received {count}"):
        validation_count(count, 10)


def test_all_but_one_image_may_be_carved() -> None:
    kept, carved = carve(torch.tensor([0, 1] * 5), validation_count(9, 10), "random", 0)
    assert (len(kept), len(carved)) == (1, 9)


@pytest.mark.parametrize("folds", [2, 3, 7])
def test_each_fold_has_its_fraction_of_every_class(folds: int) -> None:
    """Of n images dealt to K folds each gets n / K, rounded up or down; so does the whole."""
    y_N = labels(50, 30, 7)
    fold_N = folds_of(y_N, folds, seed=0)
    for label, size in enumerate((50, 30, 7)):
        counts = fold_N[y_N == label].bincount(minlength=folds)
        assert {size // folds, -(-size // folds)} >= set(counts.tolist())
    assert fold_N.bincount().tolist() == [fold_size(87, folds, fold) for fold in range(folds)]


def test_folds_are_a_pure_function_of_their_seed_and_draw_nothing() -> None:
    before = torch.get_rng_state()
    group_N = torch.arange(100) % 20
    for groups in (None, group_N):
        first, again, other = (folds_of(labels(50, 50), 5, seed, groups) for seed in (7, 7, 8))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("groups", [5, 6, 40])
def test_a_group_is_in_one_fold_and_no_fold_is_empty(groups: int) -> None:
    y_N = labels(60, 40)
    group_N = torch.randint(groups, (100,), generator=torch.Generator().manual_seed(0))
    group_N[:groups] = torch.arange(groups)
    fold_N = folds_of(y_N, 5, 0, group_N)
    assert all(len(fold_N[group_N == group].unique()) == 1 for group in range(groups))
    assert fold_N.unique().tolist() == [0, 1, 2, 3, 4]


def test_groups_that_can_be_dealt_evenly_are() -> None:
    """Ten groups of 4 of the one class and ten of 2 of the other: each of 5 folds gets two of either kind."""
    y_N = torch.tensor([0] * 40 + [1] * 20)
    group_N = torch.cat([torch.arange(10).repeat_interleave(4), torch.arange(10, 20).repeat_interleave(2)])
    for seed in range(5):
        fold_N = folds_of(y_N, 5, seed, group_N)
        assert fold_N[y_N == 0].bincount().tolist() == [8] * 5
        assert fold_N[y_N == 1].bincount().tolist() == [4] * 5


@pytest.mark.parametrize(
    ("sizes", "count", "carved"), [([5] * 20, 20, 20), ([30, 30, 30, 10], 10, 10), ([50, 50], 10, 50)]
)
def test_whole_groups_are_carved_and_one_at_least(sizes: list[int], count: int, carved: int) -> None:
    group_N = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    kept, held_out = carve_groups(torch.zeros(100, dtype=torch.int64), group_N, count, seed=0)
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(100))
    assert not set(group_N[kept].tolist()) & set(group_N[held_out].tolist())
    assert len(held_out) == carved


def test_carved_groups_are_stratified() -> None:
    """20 groups of 3 + 2 images: a fifth are 4 groups, 12 + 8."""
    y_N = torch.tensor([0, 0, 0, 1, 1] * 20)
    _, carved = carve_groups(y_N, torch.arange(100) // 5, 20, seed=3)
    assert y_N[carved].bincount().tolist() == [12, 8]
