from typing import Any

import pytest
import torch

from cnnlab.data.settings import SETTINGS, DataSettings
from cnnlab.data.source import DataSpec, Labels
from cnnlab.runtime.errors import ArgumentError

SPEC = DataSpec((1, 8, 8), {"train": 100, "test": 20}, ("a", "b"))


def settings(**changes: Any) -> DataSettings:
    legal: dict[str, Any] = {"batch_size": 8, "eval_batch_size": 16, "drop_last": True, "limit": None, "split_seed": 0}
    legal |= {"validation": {"count": 10, "from": "random"}, "normalize": "standardize"}
    return DataSettings(**{**legal, **changes})


ILLEGAL: dict[str, list[Any]] = {
    "batch_size": [0, 2.5],
    "eval_batch_size": [0, 10**21],
    "split_seed": [-1],
    "limit": [0],
    "validation.count": [{"count": 1.5}],
    "validation.from": [{"count": 10, "from": "start"}],
    "memory_fraction": [0, float("nan")],
    "workers": [-1, 10_000, True],
    "folds": [1, 2.0],
}


@pytest.mark.parametrize(("argument", "value"), [(name, value) for name in ILLEGAL for value in ILLEGAL[name]])
def test_an_illegal_value_is_refused_by_its_name(argument: str, value: Any) -> None:
    with pytest.raises(ArgumentError) as caught:
        settings(**{argument.split(".")[0]: value})
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("changes", "argument", "near"),
    [
        ({"normalize": "standardise"}, "normalize", "standardize"),
        ({"validation": {"counts": 10}}, "validation.counts", "count"),
        ({"sampling": "balance"}, "sampling", "balanced"),
    ],
)
def test_a_misspelling_is_refused_with_the_nearest_name(changes: dict[str, Any], argument: str, near: str) -> None:
    with pytest.raises(ArgumentError, match=f"did you mean '{near}'") as caught:
        settings(**changes)
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("changes", "argument", "fragment"),
    [
        ({"validation": {"count": 100}}, "validation.count", "received 100"),
        ({"limit": 91}, "limit", r"at most 90 \(100 training images − 10 for validation\), received 91"),
        ({"batch_size": 91}, "batch_size", "at most the 90 training images"),
        ({"batch_size": 21, "limit": 20}, "batch_size", r"at most the 20 training images, received 21.*drop_last"),
    ],
)
def test_what_the_data_cannot_give_is_refused_with_the_arithmetic(
    changes: dict[str, Any], argument: str, fragment: str
) -> None:
    with pytest.raises(ArgumentError, match=fragment) as caught:
        settings(**changes).train_count(SPEC)
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("changes", "count"),
    [({}, 90), ({"limit": 8}, 8), ({"validation": {"count": 0}}, 100), ({"validation": {"count": 0.25}}, 75)],
)
def test_the_images_that_train(changes: dict[str, Any], count: int) -> None:
    assert settings(**changes).train_count(SPEC) == count


@pytest.mark.parametrize(
    ("batch_size", "drop_last", "steps"),
    [(8, True, 11), (8, False, 12), (9, True, 10), (9, False, 10), (90, True, 1), (500, False, 1)],
)
def test_the_steps_of_an_epoch(batch_size: int, drop_last: bool, steps: int) -> None:
    assert settings(batch_size=batch_size, drop_last=drop_last).steps_per_epoch(SPEC) == steps


WITH_VALIDATION = DataSpec((1, 8, 8), {"train": 100, "val": 30, "test": 20}, ("a", "b"))


def test_more_workers_than_batches_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnlab.data.settings.cpu_count", lambda: 16)
    assert settings(workers=11).steps_per_epoch(SPEC) == 11
    with pytest.raises(ArgumentError, match="workers: expected at most the 11 batches of an epoch, received 12"):
        settings(workers=12).steps_per_epoch(SPEC)


@pytest.mark.parametrize("count", [0, 10, 5000])
def test_nothing_is_carved_where_the_data_bring_a_validation_split(count: float) -> None:
    own = settings(validation={"count": count})
    assert (own.carved_count(WITH_VALIDATION), own.train_count(WITH_VALIDATION)) == (0, 100)
    assert own.has_validation(WITH_VALIDATION)
    assert own.has_validation(SPEC) is (count > 0)


def test_validation_is_carved_at_random_by_default() -> None:
    assert settings(validation={"count": 5}).validation_from == "random"
    assert settings(validation={"count": 5, "from": "end"}).validation_from == "end"


def test_the_settings_name_the_keys_that_are_not_the_sources_own() -> None:
    assert set(SETTINGS) == set(vars(settings()))


Y_N = torch.arange(100) % 2


@pytest.mark.parametrize(
    ("changes", "argument", "fragment"),
    [
        ({"fold": 1}, "folds", "expected a number of folds beside data.fold=1, received none"),
        ({"folds": 5}, "fold", "from 0 to 4, received None"),
        ({"folds": 5, "fold": 5}, "fold", "from 0 to 4, received 5"),
    ],
)
def test_folds_and_fold_belong_together(changes: dict[str, Any], argument: str, fragment: str) -> None:
    with pytest.raises(ArgumentError, match=fragment) as caught:
        settings(**changes)
    assert caught.value.argument == argument


@pytest.mark.parametrize("group_N", [None, torch.arange(100) // 4])
def test_the_folds_together_are_every_training_image_once(group_N: torch.Tensor | None) -> None:
    validated: list[int] = []
    for fold in range(5):
        chosen = settings(folds=5, fold=fold)
        labels = Labels(Y_N, group_N)
        spec = chosen.with_held_out(SPEC, labels)
        kept, carved = chosen.carve(SPEC, labels)
        assert sorted([*kept.tolist(), *carved.tolist()]) == list(range(100))
        assert chosen.carved_count(spec) == len(carved)
        assert chosen.train_count(spec) == len(kept)
        assert chosen.carved_count(SPEC) == 20  # known without labels where there are no groups
        assert chosen.has_validation(spec)
        validated += carved.tolist()
    assert sorted(validated) == list(range(100))


def test_a_group_is_never_on_both_sides_of_the_validation_split() -> None:
    group_N = torch.arange(100) % 12
    kept, carved = settings().carve(SPEC, Labels(Y_N, group_N))
    assert not set(group_N[kept].tolist()) & set(group_N[carved].tolist())


RARE = torch.cat([torch.zeros(97, dtype=torch.int64), torch.ones(3, dtype=torch.int64)])


@pytest.mark.parametrize(
    ("changes", "labels", "message"),
    [
        ({"folds": 4, "fold": 0}, Labels(RARE), "folds: expected at most 3, the images of class 'b', received 4"),
        (
            {"folds": 5, "fold": 0},
            Labels(Y_N, torch.arange(100) % 4),
            "folds: expected at most 4, the groups of the training images, received 5",
        ),
        ({"folds": 101, "fold": 0}, Labels(Y_N), "folds: expected at most the 100 training images, received 101"),
        ({"validation": {"count": 9, "from": "end"}}, Labels(Y_N, Y_N), "validation.from: expected random, since"),
        ({}, Labels(Y_N, 0 * Y_N), "validation.count: expected 0: the training images are all of one group"),
    ],
)
def test_what_cannot_be_divided_so_is_refused(changes: dict[str, Any], labels: Labels, message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        settings(**changes).carve(SPEC, labels)
    assert str(caught.value).startswith(message)


def test_data_with_a_validation_split_of_their_own_take_no_folds() -> None:
    with pytest.raises(ArgumentError, match=r"^folds: the data have a validation split of their own: expected none"):
        settings(folds=2, fold=0).carved_count(DataSpec((1, 8, 8), {"train": 9, "val": 1}, ("a", "b")))
