import copy
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnnlab.blocks.graph import INPUT, Graph
from cnnlab.blocks.join import Branches, Concat
from cnnlab.components import Component
from cnnlab.engine.backends import build_step
from cnnlab.engine.backends.compiled import Compiled, missing_compiler
from cnnlab.engine.execution import Execution
from cnnlab.engine.optimization import build_optimizer
from cnnlab.engine.step import StepResult, forward_backward, train_step
from cnnlab.losses import CrossEntropy
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.errors import TrainingError

CPU = torch.device("cpu")
IMAGES = 8
needs_compiler = pytest.mark.skipif(missing_compiler(CPU) is not None, reason="there is no C++ compiler")


class Stateful(nn.Module):
    """Changes its parameter and a buffer in place, replaces another buffer, and keeps values of Python's."""

    calls = 0
    last: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("count", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.scale.mul_(0.9)
            self.mean += x.mean()
        self.count = self.count * 0.5 + 1
        self.calls, self.last = self.calls + 1, x.detach()
        return x * self.scale


def cnn() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.LeakyReLU(0.1, inplace=True), nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), Stateful()]
    return nn.Sequential(*layers, nn.Dropout(0.3, inplace=True), nn.Flatten(), nn.Linear(64, 3))


def graph_of_blocks() -> nn.Module:
    torch.manual_seed(0)
    branches = {"x": nn.Identity(), "conv": nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())}
    blocks = {"stem": nn.Conv2d(1, 4, 3), "fire": Branches(nn.ModuleDict(branches)), "sum": Concat()}
    sources = {"stem": [INPUT], "fire": ["stem"], "sum": ["fire", "stem"], "flatten": ["sum"], "output": ["flatten"]}
    return Graph({**blocks, "flatten": nn.Flatten(), "output": nn.Linear(12 * 16, 3)}, sources)


def batch(size: int = IMAGES, seed: int = 1, *, soft: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x_NCHW = torch.randn(size, 1, 6, 6, generator=generator)
    target = torch.rand(size, 3, generator=generator) if soft else torch.randint(0, 3, (size,), generator=generator)
    return Batch(x_NCHW, target.softmax(1) if soft else target, torch.arange(size))


def values(module: nn.Module) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in module.state_dict().values()]


def sgd(network: nn.Module) -> torch.optim.Optimizer:
    options = {"lr": 0.1, "momentum": 0.9, "nesterov": True}
    return build_optimizer(Component("optimizer", "sgd", torch.optim.SGD, options), network, {})


def train(
    execution: Execution,
    loss: nn.Module,
    batches: list[Batch],
    make: Callable[[], nn.Module] = cnn,
    **options: Any,
) -> list[Tensor]:
    """Every figure, weight, buffer, image and draw of training a CNN by steps on these batches."""
    network = execution.place(make(), CPU)
    optimizer, scaler = sgd(network), execution.scaler(CPU)
    step = build_step(execution, IMAGES, options.get("accumulate", 1))
    torch.manual_seed(2)
    figures: list[Tensor] = []
    for number, given in enumerate(batches):
        for group in optimizer.param_groups:  # as schedules do
            group["lr"], group["momentum"] = 0.01 * (1 + number), 0.9 - 0.1 * number
        given = copy.deepcopy(given)
        result: StepResult = step(
            network, loss, optimizer, given, execution=execution, scaler=scaler, measure_norm=True, **options
        )
        assert result.gradient_norm is not None
        figures += [result.loss, result.correct, result.gradient_norm, given.x_NCHW, *values(network)]
    return [*figures, torch.rand(3)]


def assert_close(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("execution", "loss", "options"),
    [
        ({}, CrossEntropy(weight=[1.0, 2.0, 0.5], label_smoothing=0.1), {"clip_norm": 0.5}),
        pytest.param({"layout": "contiguous"}, CrossEntropy(), {}, marks=pytest.mark.slow),
        pytest.param({"precision": "bf16"}, CrossEntropy(), {"accumulate": 3}, marks=pytest.mark.slow),
        pytest.param({"precision": "fp16"}, CrossEntropy(), {"accumulate": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
@needs_compiler
def test_compiled_steps_train_as_eager_ones(
    execution: dict[str, Any], loss: nn.Module, options: dict[str, Any]
) -> None:
    """Whole batches, a smaller one, in long tests one with mixed targets: each leaves the state of an eager step."""
    batches = [batch(seed=1), batch(3, seed=2), batch(seed=3), *([batch(seed=4, soft=True)] if execution else [])]
    eager = train(Execution(**execution), loss, batches, **options)
    compiled = train(Execution(**execution, compile=True), loss, batches, **options)
    assert_close(compiled, eager, 1e-5 if "precision" not in execution else 0.02)


@pytest.mark.slow
@needs_compiler
def test_compiled_steps_of_a_graph_of_blocks_train_as_eager_ones() -> None:
    eager, compiled = (
        train(Execution(compile=compile), CrossEntropy(), [batch(), batch(3)], graph_of_blocks)
        for compile in (False, True)
    )
    assert_close(compiled, eager, 1e-5)


@needs_compiler
def test_capturing_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither weights, buffers, gradients, images, generators nor what modules keep in Python."""
    network, execution, given = cnn(), Execution(compile=True), batch()
    before = [*values(network), given.x_NCHW.clone(), torch.get_rng_state()]
    monkeypatch.setattr("torch._inductor.standalone_compile", failing)
    with pytest.raises(TrainingError, match="cannot compile"):
        Compiled(IMAGES)(network, CrossEntropy(), given, execution=execution, scaler=execution.scaler(CPU))
    assert all(parameter.grad is None for parameter in network.parameters())
    assert (network[3].calls, network[3].last) == (0, None)
    assert all(map(torch.equal, before, [*values(network), given.x_NCHW, torch.get_rng_state()]))


class Noisy(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(3)


@needs_compiler
def test_numbers_are_drawn_from_torchs_own_generator() -> None:
    execution = Execution(compile=True)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), Noisy(36, 3))
    losses = []
    for backend in (forward_backward, Compiled(IMAGES)):
        torch.manual_seed(2)
        loss, _ = backend(network, CrossEntropy(), batch(), execution=execution, scaler=execution.scaler(CPU))
        losses.append([loss, torch.rand(3)])
    assert_close(losses[1], losses[0], 1e-6)


def failing(*arguments: Any, **options: Any) -> Callable[..., Any]:
    raise RuntimeError("no more")


class Asking(nn.Linear):
    """What it computes depends on a number in a tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


class LastRow(nn.LSTM):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x[:, 0])[0][:, -1]


@pytest.mark.parametrize("layers", [(nn.Flatten(), Asking(36, 3)), (LastRow(6, 3, batch_first=True),)], ids=str)
def test_what_cannot_be_a_graph_is_refused_in_a_sentence(layers: tuple[nn.Module, ...]) -> None:
    execution, network = Execution(compile=True), nn.Sequential(*layers)
    with pytest.raises(TrainingError, match=r"cannot compile this network .* Try trainer.execution.compile=false"):
        Compiled(IMAGES)(network, CrossEntropy(), batch(), execution=execution, scaler=execution.scaler(CPU))


def test_another_batch_size_is_computed_eagerly() -> None:
    ours, theirs, execution = cnn(), cnn(), Execution(compile=True)
    for network, backend in ((ours, Compiled(IMAGES)), (theirs, forward_backward)):
        torch.manual_seed(0)
        backend(network, CrossEntropy(), batch(5), execution=execution, scaler=execution.scaler(CPU))
    gradients = [[parameter.grad for parameter in network.parameters()] for network in (ours, theirs)]
    assert all(mine is not None and torch.equal(mine, other) for mine, other in zip(*gradients, strict=True))


def test_a_missing_compiler_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert missing_compiler(CPU) == "a C++ compiler (no-such-compiler, or another that CXX names)"
    monkeypatch.setattr(shutil, "which", lambda command: f"/usr/bin/{command}")
    assert missing_compiler(CPU) is None


@pytest.mark.parametrize(
    "first", [nn.Dropout(0.2, inplace=True), nn.LeakyReLU(0.1, inplace=True), nn.CELU(inplace=True)], ids=str
)
def test_the_default_step_is_a_loop_written_by_hand(first: nn.Module) -> None:
    """Bit for bit, with a first layer that works in place and a module that changes its parameter and buffers."""
    ours = nn.Sequential(copy.deepcopy(first), *cnn()[1:])
    theirs, execution = copy.deepcopy(ours), Execution(layout="contiguous")
    options: dict[str, Any] = {"execution": execution, "scaler": execution.scaler(CPU)}
    optimizer, by_hand = sgd(ours), torch.optim.SGD(theirs.parameters(), 0.1, 0.9, nesterov=True, fused=True)
    step = build_step(execution, IMAGES)
    assert step is train_step
    torch.manual_seed(2)
    for seed in range(20):
        step(ours, CrossEntropy(), optimizer, batch(seed=seed), **options)
    torch.manual_seed(2)
    for seed in range(20):
        by_hand.zero_grad()
        nn.functional.cross_entropy(theirs(batch(seed=seed).x_NCHW), batch(seed=seed).target).backward()
        by_hand.step()
    assert all(map(torch.equal, values(ours), values(theirs)))
