import random

import pytest
from rich.console import Console

from cnnlab.sweep.axes import Job
from cnnlab.sweep.results import Result
from cnnlab.sweep.seeds import configurations, describe_difference, paired_difference, render_seeds

METRIC = "accuracy/val"


def result(seed: int, lr: str, value: float | None, status: str = "completed") -> Result:
    metrics = {} if value is None else {METRIC: value}
    return Result(Job(0, (), {"seed": str(seed), "optimizer.lr": lr}), status, metrics=metrics)


def test_the_mean_and_deviation_are_over_the_seeds_of_a_configuration() -> None:
    results = [
        result(seed, lr, value) for lr, values in (("1", (1, 2, 6)), ("2", (4,))) for seed, value in enumerate(values)
    ]
    first, second = configurations([*results, result(9, "1", 0, "failed"), result(8, "1", None)], METRIC)
    assert (first.values, first.mean, first.deviation**2) == ({"optimizer.lr": "1"}, 3, pytest.approx(7))
    assert (second.by_run, second.mean) == ({("0",): 4}, 4)


def test_without_a_seed_among_the_axes_there_is_nothing_to_compare() -> None:
    assert configurations([Result(Job(0, (), {"optimizer.lr": "1"}), "completed", metrics={METRIC: 1})], METRIC) == []


def test_the_difference_is_paired_by_seed() -> None:
    """Differences 1, 2, 3: their mean is 2, their deviation 1; t(0.975, 2) = 4.30265 in the tables."""
    values = {"1": {0: 10, 1: 20, 2: 30, 5: 0}, "2": {2: 33, 1: 22, 0: 11, 7: 99}}
    first, second = configurations([result(s, lr, v) for lr, by in values.items() for s, v in by.items()], METRIC)
    difference = paired_difference(first, second)
    assert difference == (2, pytest.approx(4.30265 / 3**0.5, rel=1e-5))
    assert describe_difference(first, second) == "+2.0000 ± 2.4841"


def test_equal_runs_show_no_difference_and_single_ones_none_at_all() -> None:
    first, same, single = configurations(
        [*(result(s, lr, v) for lr in "12" for s, v in enumerate((0.1, 0.2))), result(0, "3", 0.5)], METRIC
    )
    assert describe_difference(first, same) == "no difference"
    assert describe_difference(first, single) == "too few pairs"


def test_the_interval_excludes_no_difference_as_seldom_as_it_says() -> None:
    """5 + 5 draws from one distribution, 1,000 times: 0 lies outside of the 95 % interval in 3 to 7 %."""
    draws = random.Random(0)
    excluded = 0
    for _ in range(1000):
        results = [result(seed, lr, draws.gauss(0.9, 0.01)) for lr in "12" for seed in range(5)]
        difference = paired_difference(*configurations(results, METRIC))
        assert difference
        excluded += abs(difference[0]) > difference[1]
    assert 30 <= excluded <= 70


def test_the_table_compares_each_configuration_with_the_first() -> None:
    results = [result(seed, lr, float(lr) + seed / 10) for lr in ("1", "2") for seed in range(2)]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(render_seeds(configurations(results, METRIC), METRIC, results[0].job.values))
    lines = [line.split() for line in capture.get().splitlines() if "±" in line]
    assert lines[1] == ["1", "2", "1.0500", "±", "0.0707"]
    assert lines[2][:6] == ["2", "2", "2.0500", "±", "0.0707", "+1.0000"]


def folds(seed: int, fold: int, lr: str, value: float) -> Result:
    values = {"optimizer.lr": lr, "seed": str(seed), "data.fold": str(fold)}
    return Result(Job(0, (), values), "completed", metrics={METRIC: value})


def test_folds_repeat_a_configuration_as_seeds_do_and_both_are_paired_together() -> None:
    """Differences 1, 2, 3 for the three pairs of seed and fold that both have."""
    values = {"1": {(0, 0): 10, (0, 1): 20, (1, 0): 30}, "2": {(1, 0): 33, (0, 1): 22, (0, 0): 11, (1, 1): 99}}
    results = [folds(*run, lr, value) for lr, by_run in values.items() for run, value in by_run.items()]
    first, second = configurations(results, METRIC)
    assert (first.values, first.mean, len(second.by_run)) == ({"optimizer.lr": "1"}, 20, 4)
    assert paired_difference(first, second) == (2, pytest.approx(4.30265 / 3**0.5, rel=1e-5))


@pytest.mark.parametrize(
    ("axes", "heading"),
    [(("seed",), "seeds"), (("data.fold",), "folds"), (("data.fold", "seed", "optimizer.lr"), "seeds × folds")],
)
def test_the_table_says_what_the_mean_is_over(axes: tuple[str, ...], heading: str) -> None:
    results = [Result(Job(0, (), dict.fromkeys(axes, text)), "completed", metrics={METRIC: 0.5}) for text in "12"]
    table = render_seeds(configurations(results, METRIC), METRIC, axes)
    assert heading in [column.header for column in table.columns]
