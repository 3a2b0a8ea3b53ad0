import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnnlab.components import Component
from cnnlab.engine.backends.compilation import build_step, forget_compiled, missing_compiler, reason_against_step
from cnnlab.engine.execution import Execution
from cnnlab.engine.optimization import build_optimizer
from cnnlab.engine.schedule import constant
from cnnlab.engine.step import train_step
from cnnlab.losses import CrossEntropy
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.errors import TrainingError

CPU = torch.device("cpu")
IMAGES = 8
BATCHES = 5
SGD = Component("optimizer", "sgd", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True})
CONSTANT = Component("schedule", "constant", constant)
needs_compiler = pytest.mark.skipif(missing_compiler(CPU) is not None, reason="there is no C++ compiler")


class Trained:
    """A small CNN with batch norm and dropout after a few steps, the last of them on a smaller batch."""

    def __init__(self, compiled: str, optimizer: Component = SGD, **options: Any) -> None:
        torch.manual_seed(0)
        conv = nn.Conv2d(1, 4, 3, bias=False)
        self.network = nn.Sequential(
            conv, nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 3)
        )
        execution = Execution(compile=compiled)
        execution.place(self.network, CPU)
        self.optimizer = build_optimizer(optimizer, self.network, {})
        step = build_step(execution, IMAGES, options.get("accumulate", 1))
        generator = torch.Generator().manual_seed(1)
        self.figures: list[float] = []
        self.right: list[int] = []
        for number in range(BATCHES):
            count = IMAGES if number < BATCHES - 1 else 3
            for group in self.optimizer.param_groups:
                group["lr"] = 0.01 * (1 + number)  # as a schedule does
            batch = Batch(
                torch.rand(count, 1, 6, 6, generator=generator),
                torch.randint(0, 3, (count,), generator=generator),
                torch.arange(count),
            )
            result = step(
                self.network,
                CrossEntropy(),
                self.optimizer,
                batch,
                execution=execution,
                scaler=execution.scaler(CPU),
                measure_norm=True,
                **options,
            )
            assert result.gradient_norm is not None
            self.figures += [float(result.loss), float(result.gradient_norm)]
            self.right.append(int(result.correct))


def assert_same_training(ours: Trained, theirs: Trained) -> None:
    assert ours.figures == pytest.approx(theirs.figures, rel=1e-4)
    assert ours.right == theirs.right
    assert ours.network.state_dict().keys() == theirs.network.state_dict().keys()
    for name, expected in theirs.network.state_dict().items():
        torch.testing.assert_close(ours.network.state_dict()[name], expected, rtol=1e-3, atol=1e-5, msg=name)
    states = [list(trained.optimizer.state_dict()["state"].values()) for trained in (ours, theirs)]
    for mine, other in zip(*states, strict=True):
        assert mine.keys() == other.keys()
        assert all(not isinstance(value, Tensor) or value.isfinite().all() for value in mine.values())


def test_what_is_not_compiled_is_the_plain_step() -> None:
    assert build_step(Execution(), IMAGES) is train_step


def test_a_missing_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert missing_compiler(CPU) == "a C++ compiler (no-such-compiler, or another that CXX names)"
    monkeypatch.setattr(shutil, "which", lambda command: f"/usr/bin/{command}")
    assert missing_compiler(CPU) is None


@pytest.mark.parametrize("factory", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_the_update_of_three_optimizers_can_be_compiled(factory: type[torch.optim.Optimizer]) -> None:
    optimizer = Component("optimizer", "one", factory)
    assert reason_against_step(optimizer, CONSTANT) is None
    cycling = Component("schedule", "cycling", torch.optim.lr_scheduler.OneCycleLR, {"max_lr": 0.1})
    assert "changes the momentum" in str(reason_against_step(optimizer, cycling))
    resting = Component("schedule", "resting", torch.optim.lr_scheduler.OneCycleLR, {"cycle_momentum": False})
    assert reason_against_step(optimizer, resting) is None


@pytest.mark.parametrize("factory", [torch.optim.RMSprop, torch.optim.LBFGS])
def test_another_optimizers_update_cannot(factory: type[torch.optim.Optimizer]) -> None:
    assert "sgd, adam and adamw alone" in str(reason_against_step(Component("optimizer", "x", factory), CONSTANT))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (SGD, {}),
        (Component("optimizer", "sgd", torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.01}), {}),
        (
            Component("optimizer", "adamw", torch.optim.AdamW, {"amsgrad": True}),
            {"accumulate": 3, "clip_norm": 0.5},
        ),
    ],
    ids=["nesterov", "without state", "amsgrad, clipped, in parts"],
)
def test_a_compiled_step_trains_as_the_plain_one(optimizer: Component, options: dict[str, Any]) -> None:
    plain = Trained("none", optimizer, **options)
    forget_compiled()
    with torch._dynamo.config.patch(error_on_recompile=True):  # a new learning rate and a smaller batch compile nothing
        assert_same_training(Trained("step", optimizer, **options), plain)


@needs_compiler
@pytest.mark.slow
def test_a_compiled_network_trains_as_the_plain_one() -> None:
    plain = Trained("none")
    forget_compiled()
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert_same_training(Trained("network"), plain)


@needs_compiler
@pytest.mark.slow
def test_what_cannot_be_one_graph_is_told_in_a_sentence() -> None:
    class Printing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            torch._dynamo.graph_break()
            return super().forward(x)

    network, execution = nn.Sequential(nn.Flatten(), Printing(4, 2)), Execution(compile="step")
    optimizer = build_optimizer(Component("optimizer", "sgd", torch.optim.SGD, {"lr": 0.1}), network, {})
    batch = Batch(torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), torch.arange(2))
    forget_compiled()
    with pytest.raises(TrainingError, match=r"could not compile .* Try trainer.execution.compile=none"):
        build_step(execution, 2)(
            network, CrossEntropy(), optimizer, batch, execution=execution, scaler=execution.scaler(CPU)
        )
