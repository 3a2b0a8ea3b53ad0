import random
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnnlab.blocks.activation import Step
from cnnlab.blocks.dropout import Dropout
from cnnlab.components import Component
from cnnlab.engine.backends import tracing
from cnnlab.engine.backends.compilation import build_step
from cnnlab.engine.backends.tracing import ROUNDS, WARM_UP, Trace, TracedPasses
from cnnlab.engine.execution import Execution
from cnnlab.engine.optimization import build_optimizer
from cnnlab.losses import CrossEntropy, Quadratic
from cnnlab.runtime.batch import Batch

CPU = torch.device("cpu")
IMAGES = 8
UNTIL_PROVEN = WARM_UP + 2  # it is written down, and compared
UNTIL_DECIDED = UNTIL_PROVEN + 2 * ROUNDS
SGD = Component("optimizer", "sgd", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True})
ADAMW = Component("optimizer", "adamw", torch.optim.AdamW, {"lr": 0.01})


@pytest.fixture(autouse=True)
def _repeating_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock of these tests, which tells how often it was asked."""
    clock(monkeypatch, as_ever=2.0, repeated=1.0)
    monkeypatch.setattr(tracing, "LONG", 10.0)


def clock(monkeypatch: pytest.MonkeyPatch, *, as_ever: float, repeated: float) -> None:
    seconds = {"forward_backward": as_ever, "_repeat": repeated}
    now = [0.0]
    for owner, name in ((tracing, "forward_backward"), (TracedPasses, "_repeat")):
        monkeypatch.setattr(owner, name, taking(getattr(owner, name), seconds[name], now))
    monkeypatch.setattr(tracing.time, "perf_counter", lambda: now[0])


def taking(function: Callable[..., Any], seconds: float, now: list[float]) -> Callable[..., Any]:
    def timed(*arguments: Any, **options: Any) -> Any:
        now[0] += seconds
        return function(*arguments, **options)

    return timed


def convolutional() -> nn.Module:
    conv = nn.Conv2d(1, 4, 3, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), Dropout(0.3), nn.Linear(64, 3))


def branched() -> nn.Module:
    """A weight used twice, biases of one gradient, branches that meet, changes in place, a gradient of our own."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flatten, self.shared = nn.Flatten(), nn.Linear(36, 36)
            self.relu, self.step, self.out = nn.ReLU(inplace=True), Step(straight_through=True), nn.Linear(72, 3)
            self.one, self.other = nn.Parameter(torch.zeros(72)), nn.Parameter(torch.zeros(72))

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(self.shared(self.flatten(x)))
            left, right = self.shared(x + x.mean()).chunk(2, 1)
            return self.out(torch.cat((x, left, self.step(right)), 1) + self.one + self.other).clamp_(-5, 5)

    return Branches()


class Training:
    """A small network and its steps; the lr grows. `sizes` are those of the batches."""

    def __init__(
        self,
        execution: Execution,
        sizes: list[int],
        network: Callable[[], nn.Module] = convolutional,
        optimizer: Component = SGD,
        loss: nn.Module | None = None,
        **options: Any,
    ) -> None:
        torch.manual_seed(0)
        self.said: list[str] = []
        self.network = execution.place(network(), CPU)
        self.optimizer = build_optimizer(optimizer, self.network, {})
        self.step = build_step(execution, IMAGES, options.get("accumulate", 1), self.said.append)
        self.loss = loss or CrossEntropy()
        self.execution, self.options = execution, options
        self.images = torch.Generator().manual_seed(1)
        self.figures: list[float] = []
        torch.manual_seed(2)
        for size in sizes:
            self.take(size)

    def take(self, size: int = IMAGES) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = 0.01 * (1 + len(self.figures) / 20)
        x_NCHW = torch.rand(size, 1, 6, 6, generator=self.images)
        batch = Batch(x_NCHW, torch.randint(0, 3, (size,), generator=self.images), torch.arange(size))
        scaler = self.execution.scaler(CPU)
        result = self.step(
            self.network, self.loss, self.optimizer, batch, execution=self.execution, scaler=scaler, **self.options
        )
        self.figures += [float(result.loss), float(result.correct)]

    @property
    def passes(self) -> TracedPasses:
        assert isinstance(self.step, partial)
        passes = self.step.keywords["passes"]
        assert isinstance(passes, TracedPasses)
        return passes

    def everything(self) -> list[Any]:
        states = self.optimizer.state_dict()["state"].values()
        kept = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        gradients = [parameter.grad for parameter in self.network.parameters()]
        tensors = [*self.network.state_dict().values(), *kept, *(g for g in gradients if g is not None)]
        strides = [None if gradient is None else gradient.stride() for gradient in gradients]
        return [self.figures, [t.tolist() for t in tensors], strides, torch.get_rng_state().tolist()]


MIXED = [IMAGES] * UNTIL_DECIDED + [3, IMAGES, IMAGES, 5, IMAGES]


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=lambda component: component.type)
@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.1, "measure_norm": True}, {"accumulate": 2}], ids=str)
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_traced_steps_have_the_bits_of_others(
    optimizer: Component, options: dict[str, Any], layout: str, precision: str
) -> None:
    traced, plain = (
        Training(Execution(precision, layout, trace=wanted), MIXED, optimizer=optimizer, **options)
        for wanted in (True, False)
    )
    assert traced.passes.repeats
    assert traced.said == []
    assert traced.everything() == plain.everything()


@pytest.mark.parametrize("loss", [CrossEntropy(label_smoothing=0.1), Quadratic()], ids=lambda loss: type(loss).__name__)
def test_branches_steps_in_place_and_own_gradients_are_traced(loss: nn.Module) -> None:
    traced, plain = (
        Training(Execution(trace=wanted), MIXED, branched, loss=loss, clip_norm=0.01) for wanted in (True, False)
    )
    assert traced.passes.repeats
    assert traced.everything() == plain.everything()


@pytest.mark.parametrize("taken", range(UNTIL_PROVEN + 3))
def test_whatever_is_found_out_on_the_way_leaves_the_training_alone(taken: int) -> None:
    traced, plain = (Training(Execution(trace=wanted), [IMAGES] * taken) for wanted in (True, False))
    assert traced.passes.proven == (taken >= UNTIL_PROVEN)
    assert traced.everything() == plain.everything()


def test_only_whole_parts_are_written_down() -> None:
    training = Training(Execution(trace=True), [3] * UNTIL_DECIDED)
    assert training.passes.replay is None
    assert training.passes.repeats is None
    for _ in range(UNTIL_DECIDED):
        training.take()
    assert training.passes.repeats


def test_a_repeated_pass_runs_neither_modules_nor_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(Execution(trace=True), [IMAGES] * UNTIL_DECIDED)
    monkeypatch.setattr(training.network, "forward", lambda x: pytest.fail("the network was called"))
    training.take()
    assert len(training.figures) == 2 * (UNTIL_DECIDED + 1)


def test_long_passes_are_not_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "LONG", 1.5)  # and each takes two
    training = Training(Execution(trace=True), [IMAGES] * UNTIL_DECIDED)
    assert training.passes.repeats is False
    assert training.passes.replay is None


def test_what_takes_no_less_time_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, as_ever=1.0, repeated=3.0)
    training = Training(Execution(trace=True), [IMAGES] * UNTIL_DECIDED)
    assert training.passes.proven
    assert training.passes.repeats is False
    assert training.said == ["trainer.execution.trace: steps go on untraced: they take no longer so"]


class Asking(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.detach().abs().max())


class Growing(nn.Module):
    """Counts in Python."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class Remembering(nn.Module):
    """Keeps a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.held = torch.ones(36)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.held


class Replacing(nn.Module):
    """Has another buffer after each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(36))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


class Choosing(nn.Module):
    """Picks the rows where something holds: another number of them each time."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x[x.detach().sum(1) > 18].sum()


class Drawing(nn.Module):
    """Draws from Python's generator, to no effect."""

    def forward(self, x: Tensor) -> Tensor:
        random.random()
        return x


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Asking, "asks for a value"),
        (Growing, "does not compute the same bits"),
        (Remembering, "neither computed nor a parameter or buffer"),
        (Replacing, "does not compute the same bits"),
        (Choosing, "asks for a value"),
        (Drawing, "does not compute the same bits"),
    ],
)
def test_what_cannot_be_repeated_goes_on_as_ever_and_says_why(module: type[nn.Module], reason: str) -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Flatten(), module(), nn.Dropout(0.5), nn.Linear(36, 3))

    random.seed(0)
    training = Training(Execution(trace=True), [IMAGES] * (UNTIL_DECIDED + 1), network)
    assert training.passes.repeats is False
    assert len(training.said) == 1
    assert training.said[0].startswith("trainer.execution.trace: steps go on untraced: ")
    assert reason in training.said[0]
    if module is not Growing:  # what it counts is nothing that could be put back
        random.seed(0)
        assert training.everything() == Training(Execution(), [IMAGES] * (UNTIL_DECIDED + 1), network).everything()


def test_without_anyone_to_tell_nothing_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    passes = TracedPasses(IMAGES)
    training = Training(Execution(trace=True), [], lambda: nn.Sequential(nn.Flatten(), Asking(), nn.Linear(36, 3)))
    training.step.keywords["passes"] = passes  # type: ignore[attr-defined]
    for _ in range(UNTIL_PROVEN):
        training.take()
    assert passes.repeats is False
    assert capsys.readouterr().out == ""


def written(function: Callable[..., Tensor], *inputs: Tensor, constants: tuple[Tensor, ...] = ()) -> Any:
    trace = Trace(inputs, constants)
    with trace, torch.no_grad():
        result = function(*inputs)
    replay = trace.function([result])
    assert replay is not None, trace.obstacle
    return replay


def test_a_trace_is_a_function_of_its_inputs() -> None:
    replay = written(lambda x, y: (x + y).relu() * 3, torch.tensor([1.0, -4.0]), torch.tensor([1.0, 1.0]))
    [result] = replay(torch.tensor([0.5, 2.0]), torch.tensor([-1.0, 1.0]))
    assert result.tolist() == [0.0, 9.0]


def test_a_constant_is_read_where_it_lies() -> None:
    weight = torch.tensor([2.0])
    replay = written(lambda x: x * weight, torch.tensor([1.0]), constants=(weight,))
    weight.fill_(5.0)
    assert replay(torch.tensor([3.0]))[0].item() == 15.0


def test_a_constant_that_is_written_to_goes_on_changing() -> None:
    count = torch.zeros(1)
    replay = written(lambda x: x + count.add_(1), torch.tensor([0.0]), constants=(count,))
    assert [replay(torch.tensor([0.0]))[0].item() for _ in range(3)] == [2.0, 3.0, 4.0]


def test_random_numbers_are_drawn_anew_even_where_nobody_uses_them() -> None:
    def function(x: Tensor) -> Tensor:
        torch.rand(5)
        return x + torch.rand(1)

    replay = written(function, torch.tensor([0.0]))
    torch.manual_seed(3)
    torch.rand(5)
    expected = torch.rand(1).item()
    torch.manual_seed(3)
    assert replay(torch.tensor([0.0]))[0].item() == expected


def test_views_of_the_same_memory_are_one_value(monkeypatch: pytest.MonkeyPatch) -> None:
    weight_TS = torch.arange(6.0).reshape(2, 3)
    monkeypatch.setitem(
        tracing._DIRECT, torch.ops.aten.t.default, lambda x: pytest.fail("a transpose is taken for nothing")
    )
    replay = written(lambda x: x @ weight_TS.t().t().detach(), torch.ones(1, 2), constants=(weight_TS,))
    assert replay(torch.tensor([[1.0, 2.0]]))[0].tolist() == [[6.0, 9.0, 12.0]]


def test_a_change_through_a_view_is_seen_in_what_it_looks_at() -> None:
    def function(x: Tensor) -> Tensor:
        y = x * 1
        y.t()[0].add_(10)
        return y

    replay = written(function, torch.zeros(2, 2))
    assert replay(torch.ones(2, 2))[0].tolist() == [[11.0, 1.0], [11.0, 1.0]]


def test_a_tensor_that_is_turned_in_place_is_followed() -> None:
    def function(x: Tensor) -> Tensor:
        y = x * 1
        y.t_()
        return y + torch.tensor_split(y, 2)[0]

    replay = written(function, torch.zeros(2, 2))
    assert replay(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))[0].tolist() == [[2.0, 6.0], [3.0, 7.0]]


def test_a_tensor_that_is_turned_while_another_looks_at_it_is_an_obstacle() -> None:
    trace = Trace([x := torch.zeros(2, 2)], [])
    with trace, torch.no_grad():
        y = x * 1
        held = y.detach()
        y.t_()
    assert trace.function([held + y]) is None
    assert trace.obstacle == "a tensor changes its shape"


def test_results_come_in_rows_of_any_length() -> None:
    replay = written(lambda x: torch.split(x, 4)[0] + torch.split(x, 2)[1].sum(), torch.zeros(4))
    assert replay(torch.tensor([1.0, 2.0, 3.0, 4.0]))[0].tolist() == [8.0, 9.0, 10.0, 11.0]


def test_numbers_that_have_no_literal_are_kept() -> None:
    replay = written(lambda x: x.clamp(min=float("-inf"), max=1.5).to(torch.float64), torch.zeros(1))
    [result] = replay(torch.tensor([7.0]))
    assert (result.item(), result.dtype) == (1.5, torch.float64)


def test_each_value_is_let_go_when_nothing_needs_it_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def tanh(x: Tensor) -> Tensor:
        alive.append(sum(one() is not None for one in made))
        result = torch.tanh(x)
        made.append(weakref.ref(result))
        return result

    monkeypatch.setitem(tracing._DIRECT, torch.ops.aten.tanh.default, tanh)
    written(lambda x: x.tanh().tanh().tanh().tanh(), torch.zeros(1))(torch.ones(1))
    assert alive == [0, 1, 1, 1]


def test_writing_keeps_no_tensor() -> None:
    trace = Trace([x := torch.ones(3)], [])
    with trace, torch.no_grad():
        y = x * 2
        gone = weakref.ref(y)
        z = y + 1
        del y
    assert gone() is None
    assert trace.function([z]) is not None
