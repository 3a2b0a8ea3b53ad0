import math
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cnnlab.engine.execution import Execution
from cnnlab.engine.lr_range_test import FIRST, LAST, PER_DECADE, learning_rates, range_test, steepest, valley
from cnnlab.engine.schedule import Schedule, constant
from cnnlab.engine.trainer import TrainState
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.errors import TrainingError


def test_learning_rates_are_evenly_spaced_on_a_logarithmic_scale() -> None:
    lrs = learning_rates()
    assert (lrs[0], lrs[-1]) == (FIRST, pytest.approx(LAST))
    ratios = [high / low for low, high in pairwise(lrs)]
    assert ratios == pytest.approx([10 ** (1 / PER_DECADE)] * len(ratios))


def test_the_steepest_fall_of_a_logistic_curve_is_its_middle() -> None:
    lrs = [10 ** (power / 10) for power in range(-60, 11)]
    losses = [1 / (1 + (lr / 0.01) ** 2) for lr in lrs]
    assert lrs[steepest(lrs, losses)] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("losses", "index"),
    [
        ([4, 5, 4, 3, 2, 0.2, 0, 1, 2], 5),  # from 5 to 0: the first of at most 0.25
        ([1, 2, 3, 4], 0),  # no fall at all
        ([3, 3.5, 2, 3, 1.1, 1, 9], 4),  # from 3.5 to 1: the first of at most 1.125
    ],
)
def test_the_valley_is_where_most_of_the_fall_lies_behind(losses: list[float], index: int) -> None:
    assert valley(losses) == index


def train_state(network: nn.Module, **group: float) -> TrainState:
    groups = [{"params": [network.weight], "lr": FIRST}, {"params": [network.bias], "lr": FIRST, **group}]
    optimizer = torch.optim.SGD(groups)
    execution = Execution()
    scaler = execution.scaler(torch.device("cpu"))
    return TrainState(network, F.cross_entropy, optimizer, Schedule(optimizer, constant()), execution, scaler)


def batches(scale: float = 1.0) -> Iterator[Batch]:
    """Two classes that a line parts."""
    generator = torch.Generator().manual_seed(0)
    while True:
        x = torch.randn(32, 2, generator=generator)
        yield Batch(scale * x, (x[:, 0] > 0).long(), torch.arange(32))


def test_suggestions_lie_where_the_loss_falls() -> None:
    torch.manual_seed(0)
    found = range_test(train_state(nn.Linear(2, 2)), batches())
    assert len(found.lrs) == len(found.losses)
    lowest = found.lrs[found.losses.index(min(found.losses))]
    assert 1e-3 < found.valley <= lowest
    assert 1e-2 < found.steepest <= lowest


def test_a_group_with_a_learning_rate_of_its_own_keeps_it() -> None:
    state = train_state(nn.Linear(2, 2), lr=0.25)
    found = range_test(state, batches())
    assert state.optimizer.param_groups[0]["lr"] == pytest.approx(found.lrs[-1])
    assert state.optimizer.param_groups[1]["lr"] == 0.25


def test_a_group_with_a_scale_moves_by_its_multiple() -> None:
    state = train_state(nn.Linear(2, 2), lr=FIRST * 0.25, lr_scale=0.25)
    found = range_test(state, batches())
    assert [group["lr"] for group in state.optimizer.param_groups] == pytest.approx([found.lrs[-1], found.lrs[-1] / 4])


def test_a_network_that_diverges_from_the_start_is_answered_with_where() -> None:
    state, steps = train_state(nn.Linear(2, 2)), iter(range(1000))
    state.loss = lambda output, target: F.cross_entropy(output, target) * 2.0 ** next(steps)
    with pytest.raises(
        TrainingError, match=r"^optimizer\.lr: the loss diverges within \d+ steps from a learning rate of 1e-06 on"
    ):
        range_test(state, batches())


def test_a_loss_that_is_not_finite_ends_the_curve_before_it() -> None:
    state, steps = train_state(nn.Linear(2, 2)), iter(range(1000))
    state.loss = lambda output, target: F.cross_entropy(output, target) * (math.nan if next(steps) == 50 else 1)
    assert len(range_test(state, batches()).lrs) == 50
