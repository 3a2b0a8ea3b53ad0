from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnnlab.components import Component
from cnnlab.engine.backends import build_step, cuda_graph
from cnnlab.engine.backends.compiled import missing_compiler
from cnnlab.engine.backends.cuda_graph import Captured, LearningRates, reason_against_cuda_graph
from cnnlab.engine.execution import Execution
from cnnlab.engine.optimization import build_optimizer
from cnnlab.engine.schedule import constant
from cnnlab.engine.step import StepResult
from cnnlab.losses import CrossEntropy
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.errors import TrainingError

CUDA = torch.device("cuda")
IMAGES = 8
SGD = Component("optimizer", "sgd", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True})
ADAMW = Component("optimizer", "adamw", torch.optim.AdamW, {"lr": 0.01})
RMSPROP = Component("optimizer", "rmsprop", torch.optim.RMSprop, {"lr": 0.01})
CONSTANT = Component("schedule", "constant", constant)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(autouse=True)
def _same_bits_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 4, 3, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 3))


def batches(*sizes: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        Batch(
            torch.rand(size, 1, 6, 6, generator=generator).to(CUDA),
            torch.randint(0, 3, (size,), generator=generator).to(CUDA),
            torch.arange(size, device=CUDA),
        )
        for size in sizes
    ]


class Trained:
    """A small CNN with batch norm and dropout on CUDA after steps on batches of these sizes, the lr growing."""

    def __init__(self, execution: Execution, optimizer: Component, sizes: list[int], **options: Any) -> None:
        self.network = execution.place(small_network(), CUDA)
        self.optimizer = build_optimizer(optimizer, self.network, {})
        self.step = build_step(execution, IMAGES)
        torch.manual_seed(2)
        self.figures: list[list[float]] = []
        pending = []
        for number, batch in enumerate(batches(*sizes)):
            for group in self.optimizer.param_groups:
                group["lr"] = 0.01 * (1 + number)
            pending.append(self.take(batch, execution, measure_norm=True, **options))
        for result in pending:  # read at the end, as the trainer does
            assert result.gradient_norm is not None
            self.figures.append([float(result.loss), float(result.correct), float(result.gradient_norm)])

    def take(self, batch: Batch, execution: Execution, **options: Any) -> StepResult:
        scaler = execution.scaler(CUDA)
        return self.step(
            self.network, CrossEntropy(), self.optimizer, batch, execution=execution, scaler=scaler, **options
        )

    def everything(self) -> list[Any]:
        states = self.optimizer.state_dict()
        lrs = [group["lr"] for group in states["param_groups"]]
        kept = [value for state in states["state"].values() for value in state.values()]
        tensors = [*self.network.state_dict().values(), *(value for value in kept if isinstance(value, Tensor))]
        return [self.figures, lrs, [tensor.tolist() for tensor in tensors], torch.cuda.get_rng_state().tolist()]


@needs_cuda
@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=lambda component: component.type)
@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.1}, {"accumulate": 2}], ids=str)
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_captured_steps_have_the_bits_of_launched_ones(
    optimizer: Component, options: dict[str, Any], layout: str
) -> None:
    sizes = [8, 8, 8, 3, 8, 8, 5, 8]
    captured = Trained(Execution(layout=layout, cuda_graph=True), optimizer, sizes, **options)
    launched = Trained(Execution(layout=layout), optimizer, sizes, **options)
    assert isinstance(captured.step, Captured)
    assert len(captured.step.graphs._made) == 1
    assert captured.everything() == launched.everything()


@needs_cuda
def test_a_captured_step_in_bf16_is_the_launched_one() -> None:
    captured, launched = (Trained(Execution("bf16", cuda_graph=wanted), SGD, [8] * 5) for wanted in (True, False))
    assert captured.everything() == launched.everything()


@needs_cuda
@pytest.mark.slow
@pytest.mark.skipif(missing_compiler(CUDA) is not None, reason="there is no Triton")
def test_a_compiled_step_that_is_captured_trains_as_the_plain_one() -> None:
    compiled = Trained(Execution(compile=True, cuda_graph=True), SGD, [8] * 6)
    plain = Trained(Execution(), SGD, [8] * 6)
    for mine, theirs in zip(compiled.figures, plain.figures, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)


class Asking(nn.Module):
    """Asks the GPU for a value in the middle of the step."""

    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.abs().max())


@needs_cuda
def test_a_step_that_asks_for_a_value_is_not_captured_and_can_be_launched() -> None:
    network = nn.Sequential(nn.Flatten(), Asking(), nn.Dropout(0.5), nn.Linear(36, 3)).to(CUDA)
    optimizer = build_optimizer(SGD, network, {})
    execution = Execution(cuda_graph=True)
    captured, launched = build_step(execution, IMAGES), build_step(Execution(), IMAGES)
    options: dict[str, Any] = {"execution": execution, "scaler": execution.scaler(CUDA)}
    first, second = batches(8, 8)
    captured(network, CrossEntropy(), optimizer, first, **options)
    before = [tensor.tolist() for tensor in network.state_dict().values()], torch.cuda.get_rng_state().tolist()
    with pytest.raises(TrainingError, match=r"cannot be captured as a CUDA graph: .*execution\.cuda_graph=false"):
        captured(network, CrossEntropy(), optimizer, second, **options)
    after = [tensor.tolist() for tensor in network.state_dict().values()], torch.cuda.get_rng_state().tolist()
    assert after == before
    assert launched(network, CrossEntropy(), optimizer, second, **options).loss.isfinite()


def test_what_is_captured_is_a_whole_step_with_its_norm_and_tensors_for_learning_rates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a GPU: what would be captured is run each time."""
    lrs: list[list[float]] = []

    def capture(step: Any, batch: Batch, modules: list[nn.Module], optimizer: torch.optim.Optimizer) -> Any:
        assert all(isinstance(group["lr"], Tensor) for group in optimizer.param_groups)
        lrs.append([float(group["lr"]) for group in optimizer.param_groups])
        return step

    monkeypatch.setattr(cuda_graph, "capture", capture)
    monkeypatch.setitem(globals(), "CUDA", torch.device("cpu"))
    sizes = [8, 8, 3, 8]
    ours, theirs = (Trained(Execution(cuda_graph=wanted), SGD, sizes, clip_norm=0.1) for wanted in (True, False))
    assert lrs == [pytest.approx([0.02, 0.02])]  # once, at the second step, when there is a state
    assert ours.figures == theirs.figures
    assert all(map(torch.equal, ours.network.state_dict().values(), theirs.network.state_dict().values()))


def test_a_step_that_is_captured_without_a_norm_can_be_replayed_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "capture", lambda step, *arguments: step)
    monkeypatch.setitem(globals(), "CUDA", torch.device("cpu"))
    trained = Trained(Execution(cuda_graph=True), SGD, [8])
    for batch in batches(8, 8):
        assert trained.take(batch, Execution(cuda_graph=True), measure_norm=False).gradient_norm is not None


@pytest.mark.parametrize(
    ("optimizer", "schedule", "expected"),
    [
        (SGD, CONSTANT, None),
        (ADAMW, CONSTANT, None),
        (RMSPROP, CONSTANT, "not that of rmsprop"),
        (Component("optimizer", "sgd", torch.optim.SGD, {"lr": 0.1, "foreach": True}), CONSTANT, "not that of sgd"),
        (SGD, Component("schedule", "cyclic", torch.optim.lr_scheduler.CyclicLR), "cyclic changes the momentum"),
    ],
)
def test_the_reason_why_a_step_cannot_be_captured(
    optimizer: Component, schedule: Component, expected: str | None
) -> None:
    reason = reason_against_cuda_graph([SGD, optimizer], schedule)
    assert reason is None if expected is None else expected in (reason or "")


def test_learning_rates_are_tensors_only_while_something_is_captured() -> None:
    optimizer = build_optimizer(ADAMW, small_network(), {})
    rates = LearningRates()
    rates.update(optimizer, torch.device("cpu"))
    before = rates.lr_G
    with rates.in_place_of_numbers(optimizer):
        assert all(isinstance(group["lr"], Tensor) and group["capturable"] is True for group in optimizer.param_groups)
        group, lr = optimizer.param_groups[0], optimizer.param_groups[0]["lr"]
    assert (group["lr"], group["capturable"]) == (0.01, False)
    group["lr"] = 0.5
    rates.update(optimizer, torch.device("cpu"))
    assert rates.lr_G is before  # the same memory, which a graph reads
    assert float(lr) == 0.5
