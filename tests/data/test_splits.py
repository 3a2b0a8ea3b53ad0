from typing import Any

import pytest
import torch
from torch import Tensor

from cnnlab.data.splits import carve, check_validation, validation_count
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
