import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cnnlab.engine.tally import Tally


def batch(loss: float, correct: int, *images: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.tensor(loss), torch.tensor(correct), torch.tensor(images)


def test_means_are_over_images_not_over_batches() -> None:
    tally = Tally()
    tally.add(*batch(2.0, 1, 0, 1, 2))
    assert tally.read() == tally.read() == {"loss": 2.0, "accuracy": 1 / 3}
    tally.add(*batch(5.0, 1, 3))
    assert tally.read() == {"loss": (2.0 * 3 + 5.0 * 1) / 4, "accuracy": 2 / 4}


def test_a_reset_starts_from_nothing() -> None:
    tally = Tally()
    tally.add(*batch(2.0, 1, 0))
    tally.synchronize()
    tally.add(*batch(3.0, 1, 0))
    tally.reset()
    tally.add(*batch(7.0, 0, 1))
    assert tally.read() == {"loss": 7.0, "accuracy": 0.0}


@pytest.mark.parametrize("every", [1, 7, 100])
def test_the_sum_is_the_same_wherever_it_is_synchronized(every: int) -> None:
    losses = torch.rand(100, generator=torch.Generator().manual_seed(0)) * 3
    tally, expected = Tally(), 0.0
    for number, loss in enumerate(losses):
        size = number % 5 + 1
        tally.add(loss, torch.tensor(1), torch.arange(size))
        expected += float(loss) * size
        if number % every == every - 1:
            tally.synchronize()
    tally.synchronize()
    assert tally.loss_sum == expected


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_the_first_non_finite_batch_is_named_with_its_images(bad: float) -> None:
    tally = Tally()
    assert tally.synchronize() is None
    tally.add(*batch(1.0, 0, 1, 2))
    assert tally.synchronize() is None
    tally.add(*batch(bad, 0, 3, 4))
    tally.add(*batch(math.nan, 0, 5, 6))
    tally.add(*batch(1.0, 0, 7, 8))
    assert tally.synchronize() == (2, [3, 4])
    tally.add(*batch(bad, 0, 9))
    assert tally.synchronize() == (0, [9])


def test_counts_beyond_float_precision_stay_whole() -> None:
    tally = Tally()
    tally.load_state_dict({"loss_sum": 0.0, "correct": 2**60, "count": 2**60})
    tally.add(*batch(0.0, 1, 0))
    tally.synchronize()
    assert tally.correct == 2**60 + 1


def test_the_state_counts_what_is_pending_and_survives_a_round_trip() -> None:
    tally, other = Tally(), Tally()
    tally.add(*batch(2.0, 1, 0, 1, 2))
    state: dict[str, Any] = tally.state_dict()
    assert state == {"loss_sum": 6.0, "correct": 1, "count": 3}
    other.add(*batch(100.0, 0, 0))  # forgotten
    other.load_state_dict(state)
    for each in (tally, other):
        each.add(*batch(5.0, 1, 3))
    assert other.read() == tally.read() == {"loss": 11 / 4, "accuracy": 2 / 4}
