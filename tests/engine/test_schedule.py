import math
from collections.abc import Callable

import pytest
import torch
from torch.optim import lr_scheduler

from cnnlab.engine.schedule import SCHEDULES, Factor, Schedule, constant, cosine, cycles, in_cycles, one_cycle, step
from cnnlab.runtime.errors import ArgumentError

LR = 0.3


def optimizer(*lrs: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in lrs or (LR,)])


def torch_lrs(make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler], steps: int) -> list[float]:
    """The lr of each of so many steps under one of torch's own schedulers."""
    own = optimizer()
    scheduler = make(own)
    lrs = []
    for number in range(steps):
        lrs.append(own.param_groups[0]["lr"])
        own.step()
        if number < steps - 1:
            scheduler.step()
    return lrs


def lrs(factor: Factor, steps: int) -> list[float]:
    return [LR * factor(number) for number in range(steps)]


def test_constant_is_the_lr_throughout() -> None:
    assert [constant()(number) for number in (0, 1, 1000)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("total_steps", "pct_start"),
    [(1, 0.3), (2, 0.3), (3, 0.5), (10, 0.25), (10, 0.0), (10, 1.0), (97, 0.1), (100, 0.4), (1000, 0.3)],
)
@pytest.mark.parametrize(("div_factor", "final_div_factor"), [(25.0, 1e4), (3.0, 10.0), (1.0, 1.0)])
def test_one_cycle_is_that_of_torch(
    total_steps: int, pct_start: float, div_factor: float, final_div_factor: float
) -> None:
    expected = torch_lrs(
        lambda own: lr_scheduler.OneCycleLR(
            own,
            LR,
            total_steps=total_steps,
            pct_start=pct_start,
            anneal_strategy="cos",
            cycle_momentum=False,
            div_factor=div_factor,
            final_div_factor=final_div_factor,
        ),
        total_steps,
    )
    factor = one_cycle(pct_start, div_factor, final_div_factor, total_steps=total_steps)
    assert lrs(factor, total_steps) == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_one_cycle_stays_at_its_end() -> None:
    factor = one_cycle(total_steps=10)
    assert factor(10) == factor(500) == pytest.approx(1 / 25 / 1e4)


def test_one_cycle_whose_rise_has_one_step_starts_at_the_top() -> None:
    assert one_cycle(0.1, total_steps=10)(0) == 1  # torch divides by zero there


@pytest.mark.parametrize(("total_steps", "min_factor"), [(1, 0.0), (10, 0.0), (97, 0.1), (200, 1.0)])
def test_cosine_without_warm_up_is_that_of_torch(total_steps: int, min_factor: float) -> None:
    expected = torch_lrs(
        lambda own: lr_scheduler.CosineAnnealingLR(own, total_steps, eta_min=LR * min_factor), total_steps
    )
    assert lrs(cosine(0.0, min_factor, total_steps=total_steps), total_steps) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("number", range(4))
def test_cosine_warms_up_linearly_to_the_whole_lr(number: int) -> None:
    assert cosine(0.2, total_steps=20)(number) == pytest.approx([1 / 4, 2 / 4, 3 / 4, 4 / 4][number])


@pytest.mark.parametrize("number", [4, 5, 12, 19])
def test_cosine_falls_by_its_formula_after_the_warm_up(number: int) -> None:
    by_hand = 0.1 + 0.9 * (1 + math.cos(math.pi * (number - 4) / 16)) / 2
    assert cosine(0.2, 0.1, total_steps=20)(number) == pytest.approx(by_hand)


@pytest.mark.parametrize("min_factor", [0.0, 0.25])
def test_cosine_ends_at_its_minimum_and_stays_there(min_factor: float) -> None:
    factor = cosine(0.1, min_factor, total_steps=50)
    assert factor(50) == factor(500) == pytest.approx(min_factor, abs=1e-12)


@pytest.mark.parametrize(("step_size", "steps_per_epoch", "gamma"), [(1, 1, 0.1), (2, 3, 0.5), (1, 7, 2.0)])
def test_step_is_that_of_torch_to_the_update(step_size: int, steps_per_epoch: int, gamma: float) -> None:
    expected = torch_lrs(lambda own: lr_scheduler.StepLR(own, step_size * steps_per_epoch, gamma), 40)
    assert lrs(step(step_size, gamma, steps_per_epoch=steps_per_epoch), 40) == pytest.approx(expected, rel=1e-9)


def test_step_takes_half_an_epoch() -> None:
    factor = step(0.5, 0.1, steps_per_epoch=10)
    assert [factor(number) for number in (4, 5, 9, 10)] == pytest.approx([1, 0.1, 0.1, 0.01])


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


@pytest.mark.parametrize(
    ("total", "own", "restarts", "expected"),
    [
        (100, None, [], [(0, 100)]),
        (100, 40, [], [(0, 40)]),
        (100, None, [30, 90], [(0, 30), (30, 60), (90, 10)]),
        (100, 40, [50], [(0, 40), (50, 40)]),
        (None, None, [30], [(0, 30), (30, None)]),
    ],
)
def test_a_cycle_lasts_until_the_next_restart(
    total: int | None, own: int | None, restarts: list[int], expected: list[tuple[int, int | None]]
) -> None:
    assert cycles(total, own, restarts) == expected


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


@pytest.mark.parametrize(("step_size", "steps_per_epoch"), [(1.1, 50), (0.1, 30), (0.7, 10), (3, 7)])
def test_step_decays_at_the_update_that_the_arithmetic_names(step_size: float, steps_per_epoch: int) -> None:
    factor = SCHEDULES["step"](step_size, 0.5, steps_per_epoch=steps_per_epoch)
    width = round(step_size * steps_per_epoch)
    assert [factor(step) for step in range(4 * width)] == [0.5 ** (step // width) for step in range(4 * width)]
