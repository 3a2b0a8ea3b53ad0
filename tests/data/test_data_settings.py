from typing import Any

import pytest

from cnnlab.data.settings import SETTINGS, DataSettings
from cnnlab.data.source import DataSpec
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
