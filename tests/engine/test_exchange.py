"""What ranks exchange, with threads in their place: each has its part of a batch, and waits for the others."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnlab.engine import sync_batch_norm
from cnnlab.engine.exchange import AmongRanks
from cnnlab.engine.execution import Execution
from cnnlab.engine.step import StepResult, train_step
from cnnlab.engine.sync_batch_norm import synchronized
from cnnlab.runtime.batch import Batch

CPU = torch.device("cpu")


class Meeting:
    """Adds up what as many threads bring as there are ranks."""

    def __init__(self, ranks: int) -> None:
        self.barrier = Barrier(ranks, timeout=20)
        self.brought: list[Tensor] = []

    def summed(self, tensor: Tensor) -> Tensor:
        self.brought.append(tensor.clone())
        self.barrier.wait()
        tensor.copy_(torch.stack(self.brought).sum(0))
        self.barrier.wait()
        self.brought.clear()
        self.barrier.wait()
        return tensor


@pytest.fixture
def among(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    def among(ranks: int, call: Callable[[int], Any]) -> list[Any]:
        """What `call` returns for each rank."""
        meeting = Meeting(ranks)

        class Sum(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, tensor: Tensor) -> Tensor:
                return meeting.summed(tensor.clone())

            @staticmethod
            def backward(ctx: Any, gradient: Tensor) -> Tensor:
                return meeting.summed(gradient.clone())

        monkeypatch.setattr("cnnlab.engine.exchange.summed", meeting.summed)
        monkeypatch.setattr(sync_batch_norm.differentiable, "all_reduce", lambda tensor, group: Sum.apply(tensor))
        with ThreadPoolExecutor(ranks) as threads:
            return list(threads.map(call, range(ranks)))

    return among


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3))
    return layers.double().to(memory_format=torch.channels_last)


def batch(count: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    x_NCHW = torch.randn(count, 2, 5, 5, generator=generator, dtype=torch.float64)
    return Batch(x_NCHW, torch.randint(0, 3, (count,), generator=generator), torch.arange(count))


def share(images: Batch, rank: int, ranks: int) -> Batch:
    return replace(images[slice(rank, None, ranks)], global_count=len(images))


def step(model: nn.Module, images: Batch, **options: Any) -> StepResult:
    execution, optimizer = Execution(), torch.optim.SGD(model.parameters(), lr=0.1)
    return train_step(
        model, F.cross_entropy, optimizer, images, execution=execution, scaler=execution.scaler(CPU), **options
    )


@pytest.mark.parametrize(("ranks", "accumulate"), [(2, 1), (3, 2), (9, 1)], ids=["two", "three", "two without images"])
def test_ranks_take_the_step_of_the_whole_batch(among: Callable[..., list[Any]], ranks: int, accumulate: int) -> None:
    images, alone = batch(7), network()
    models = [copy.deepcopy(alone) for _ in range(ranks)]
    expected = step(alone, images, clip_norm=0.1)

    def rank_step(rank: int) -> tuple[nn.Module, StepResult]:
        model, mine = models[rank], share(images, rank, ranks)
        return model, step(model, mine, exchange=AmongRanks(model), accumulate=accumulate, clip_norm=0.1)

    for model, result in among(ranks, rank_step):
        for mine, theirs in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(result.loss.double(), expected.loss, rtol=1e-7, atol=0)
        assert result.correct == expected.correct
        assert expected.gradient_norm is not None
        torch.testing.assert_close(result.gradient_norm, expected.gradient_norm)


class Sometimes(nn.Module):
    """One parameter that takes part where it is told, one that never does."""

    def __init__(self, used: bool) -> None:
        super().__init__()
        self.used = used
        self.always, self.sometimes, self.never = (nn.Parameter(torch.ones(2)) for _ in range(3))

    def forward(self, x_NC: Tensor) -> Tensor:
        return x_NC * self.always + (self.sometimes if self.used else 0)


def test_a_parameter_that_no_rank_used_has_no_gradient(among: Callable[..., list[Any]]) -> None:
    images = Batch(torch.ones(2, 2), torch.tensor([0, 1]), torch.arange(2))

    def gradients(rank: int) -> list[Tensor | None]:
        model = Sometimes(used=rank == 0)
        step(model, share(images, rank, 2), exchange=AmongRanks(model))
        return [model.sometimes.grad, model.never.grad]

    for sometimes, never in among(2, gradients):
        # of the first image alone, half of the batch: softmax of equal outputs, less the target
        torch.testing.assert_close(sometimes, torch.tensor([-0.25, 0.25]))
        assert never is None


def test_running_averages_are_the_mean_over_the_images(among: Callable[..., list[Any]]) -> None:
    images = Batch(torch.tensor([[0.0], [6.0], [3.0]]), torch.zeros(3, dtype=torch.int64), torch.arange(3))

    def averages(rank: int) -> list[float]:
        model = nn.Sequential(nn.BatchNorm1d(1, momentum=1.0), nn.Linear(1, 2))
        model[0].running_mean.fill_([1.0, 4.0][rank])
        mine = share(images, rank, 2)
        AmongRanks(model)([(torch.tensor(0.0), torch.tensor(0))], mine.weight)
        return model[0].running_mean.tolist()

    # two images of the first rank, one of the second
    assert among(2, averages) == [pytest.approx([2.0]), pytest.approx([2.0])]


def test_what_one_rank_wishes_all_know(among: Callable[..., list[Any]]) -> None:
    images = batch(2)

    def agreed(rank: int) -> list[list[bool]]:
        model = network()
        exchange = AmongRanks(model)
        exchange.wishes = lambda: [False, rank == 1]
        step(model, share(images, rank, 2), exchange=exchange)
        return [exchange.agreed(), exchange.agree()]

    assert among(2, agreed) == [[[False, True], [False, True]]] * 2


def test_a_loss_that_is_not_finite_is_so_for_every_rank(among: Callable[..., list[Any]]) -> None:
    images = batch(4)
    images.x_NCHW[1] = torch.nan  # which the second rank has

    def loss(rank: int) -> Tensor:
        model = network()
        return step(model, share(images, rank, 2), exchange=AmongRanks(model)).loss

    assert [bool(one.isnan()) for one in among(2, loss)] == [True, True]


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_synchronized_batch_norm_is_one_over_all_images(
    among: Callable[..., list[Any]], momentum: float | None
) -> None:
    x_NCHW = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0)) + 10
    whole, x_whole = nn.BatchNorm2d(3, momentum=momentum), x_NCHW.clone().requires_grad_()
    whole.weight.data = torch.tensor([1.0, 2.0, 3.0])
    expected = whole(x_whole)
    (expected**3).sum().backward()

    def rank_pass(rank: int) -> tuple[nn.Module, Tensor, Tensor]:
        norm: Any = synchronized(nn.Sequential(copy.deepcopy(fresh)))
        mine = x_NCHW[rank::2].clone().requires_grad_()
        output = norm(mine)
        (output**3).sum().backward()
        assert mine.grad is not None
        return norm[0], output, mine.grad

    fresh = nn.BatchNorm2d(3, momentum=momentum)
    fresh.weight.data = whole.weight.data.clone()
    found = among(2, rank_pass)
    for rank, (norm, output, gradient) in enumerate(found):
        torch.testing.assert_close(output, expected[rank::2], rtol=1e-4, atol=1e-5)
        assert x_whole.grad is not None
        torch.testing.assert_close(gradient, x_whole.grad[rank::2], rtol=1e-3, atol=1e-4)
        assert list(norm.state_dict()) == list(whole.state_dict())
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(norm.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    weights = [norm.weight.grad for norm, _, _ in found]
    torch.testing.assert_close(weights[0] + weights[1], whole.weight.grad, rtol=1e-3, atol=1e-3)
