import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from cnnlab.engine.schedule import SCHEDULES, Factor, Schedule, cosine, cycles, in_cycles, one_cycle, step, triangle
from cnnlab.runtime.errors import ArgumentError

LR = 0.3


def optimizer(*lrs: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in lrs or (LR,)])


def torch_factors(make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler], steps: int) -> list[float]:
    """The lr over LR of each of so many steps under one of torch's own schedulers."""
    own = optimizer()
    scheduler = make(own)
    factors = []
    for number in range(steps):
        factors.append(own.param_groups[0]["lr"] / LR)
        own.step()
        if number < steps - 1:
            scheduler.step()
    return factors


@pytest.mark.parametrize(
    ("total_steps", "pct_start"), [(1, 0.3), (3, 0.5), (10, 0.0), (10, 1.0), (97, 0.1), (100, 0.4)]
)
@pytest.mark.parametrize(("div", "final_div"), [(25.0, 1e4), (1.0, 1.0)])
@pytest.mark.parametrize("annealing", ["cos", "linear"])
def test_one_cycle_is_that_of_torch(
    total_steps: int, pct_start: float, div: float, final_div: float, annealing: str
) -> None:
    options: dict[str, Any] = {"pct_start": pct_start, "div_factor": div, "final_div_factor": final_div}
    options["anneal_strategy"] = annealing
    expected = torch_factors(
        lambda own: lr_scheduler.OneCycleLR(own, LR, total_steps, cycle_momentum=False, **options), total_steps
    )
    factor = one_cycle(**options, total_steps=total_steps)
    assert list(map(factor, range(total_steps))) == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert factor(10 * total_steps) == factor(total_steps)


def test_a_triangle_goes_through_its_three_corners() -> None:
    """From 0.2 to 1 at 23 % of 99 steps (rounded down) and to 0.07 after the last: arXiv 2404.00498, its code."""
    factor = triangle(0.2, 0.23, 0.07, total_steps=99)
    assert [factor(step) for step in (0, 11, 22, 98, 99, 500)] == pytest.approx(
        [0.2, 0.6, 1.0, 0.07 + 0.93 / 77, 0.07, 0.07]
    )
    assert factor(22) - factor(23) == pytest.approx(0.93 / 77)


@pytest.mark.parametrize(("peak", "expected"), [(0.0, [1.0, 0.75, 0.5, 0.25]), (1.0, [0.2, 0.4, 0.6, 0.8, 1.0])])
def test_a_triangle_may_only_fall_or_only_rise(peak: float, expected: list[float]) -> None:
    factor = triangle(peak=peak, total_steps=4)
    assert [factor(step) for step in range(len(expected))] == pytest.approx(expected)


def test_one_cycle_whose_rise_has_one_step_starts_at_the_top() -> None:
    factor = one_cycle(0.1, total_steps=10)
    assert factor(0) == 1  # torch divides by zero there
    assert factor(10) == factor(500) == pytest.approx(1 / 25 / 1e4)


@pytest.mark.parametrize(("total_steps", "min_factor"), [(1, 0.0), (10, 0.0), (97, 0.1)])
def test_cosine_without_warm_up_is_that_of_torch(total_steps: int, min_factor: float) -> None:
    expected = torch_factors(
        lambda own: lr_scheduler.CosineAnnealingLR(own, total_steps, eta_min=LR * min_factor), total_steps
    )
    factor = cosine(0.0, min_factor, total_steps=total_steps)
    assert list(map(factor, range(total_steps))) == pytest.approx(expected, rel=1e-9)


def test_cosine_warms_up_linearly_falls_by_its_formula_and_stays_at_its_minimum() -> None:
    factor = cosine(0.2, 0.1, total_steps=20)
    falling = [0.1 + 0.9 * (1 + math.cos(math.pi * number / 16)) / 2 for number in range(16)]
    assert list(map(factor, range(20))) == pytest.approx([1 / 4, 2 / 4, 3 / 4, 4 / 4, *falling])
    assert factor(20) == factor(500) == pytest.approx(0.1, abs=1e-12)


@pytest.mark.parametrize(("step_size", "steps_per_epoch"), [(1.1, 50), (0.1, 30), (0.7, 10), (3, 7)])
def test_step_decays_at_the_update_that_the_arithmetic_names(step_size: float, steps_per_epoch: int) -> None:
    factor = step(step_size, 0.5, steps_per_epoch=steps_per_epoch)
    width = round(step_size * steps_per_epoch)
    assert [factor(number) for number in range(4 * width)] == [0.5 ** (number // width) for number in range(4 * width)]


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: step(0, steps_per_epoch=5), "step_size"),
        (lambda: step(1, 0.0, steps_per_epoch=5), "gamma"),
        (lambda: cosine(1.0, total_steps=5), "warmup"),
        (lambda: cosine(-0.1, total_steps=5), "warmup"),
        (lambda: cosine(0.0, 1.1, total_steps=5), "min_factor"),
        (lambda: one_cycle(1.1, total_steps=5), "pct_start"),
        (lambda: one_cycle(0.3, 0.5, total_steps=5), "div_factor"),
        (lambda: one_cycle(0.3, 25.0, 0.5, total_steps=5), "final_div_factor"),
        (lambda: one_cycle(anneal_strategy="cosine", total_steps=5), "anneal_strategy"),
        (lambda: triangle(start=1.5, total_steps=5), "start"),
        (lambda: triangle(peak=-0.1, total_steps=5), "peak"),
        (lambda: triangle(end=2.0, total_steps=5), "end"),
    ],
)
def test_an_illegal_value_is_refused_by_its_name(make: Callable[[], Factor], argument: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        make()
    assert caught.value.argument == argument


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_schedule_is_a_pure_function_of_the_step(name: str) -> None:
    needed = {"step": {"step_size": 1, "steps_per_epoch": 4}, "constant": {}}.get(name, {"total_steps": 20})
    factor = SCHEDULES[name](**needed)
    forward = [factor(number) for number in range(20)]
    assert [factor(number) for number in reversed(range(20))] == forward[::-1]


def test_a_cycle_lasts_until_the_next_restart() -> None:
    assert cycles(100, 40, []) == [(0, 40)]
    assert cycles(100, None, [30, 90]) == [(0, 30), (30, 60), (90, 10)]
    assert cycles(100, 40, [50]) == [(0, 40), (50, 40)]
    assert cycles(None, None, [30]) == [(0, 30), (30, None)]


def test_each_cycle_is_the_schedule_from_its_first_step() -> None:
    whole = in_cycles([0, 4, 10], [cosine(total_steps=length) for length in (4, 6, 10)])
    by_hand = [(1 + math.cos(math.pi * n / length)) / 2 for length in (4, 6, 10) for n in range(length)]
    assert [whole(number) for number in range(20)] == pytest.approx(by_hand)
    assert whole(25) == pytest.approx(0, abs=1e-12)


def test_the_first_step_has_the_schedules_first_factor() -> None:
    own = optimizer()
    Schedule(own, lambda number: 0.5)
    assert own.param_groups[0]["lr"] == LR * 0.5


def test_groups_keep_the_ratio_of_their_lrs() -> None:
    own = optimizer(1.0, 0.01)
    schedule = Schedule(own, lambda number: 1 / (1 + number))
    for number in range(1, 4):
        schedule.step()
        assert [group["lr"] for group in own.param_groups] == pytest.approx([1 / (1 + number), 0.01 / (1 + number)])


def test_a_restored_schedule_continues_at_its_step() -> None:
    first, second = optimizer(), optimizer()
    schedule, restored = (Schedule(own, cosine(0.2, total_steps=20)) for own in (first, second))
    for _ in range(7):
        schedule.step()
    restored.load_state_dict(schedule.state_dict())
    assert second.param_groups[0]["lr"] == first.param_groups[0]["lr"]
    schedule.step()
    restored.step()
    assert second.param_groups[0]["lr"] == first.param_groups[0]["lr"] == LR * cosine(0.2, total_steps=20)(8)
