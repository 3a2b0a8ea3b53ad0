"""The notes on gradient descent, the backward pass and ReLU, shown with a network and a step of the product's own."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from cnnlab.components import Component
from cnnlab.data.digits import Digits
from cnnlab.data.normalization import Normalization
from cnnlab.data.resident import ResidentLoader
from cnnlab.engine.execution import Execution
from cnnlab.engine.optimization import build_optimizer
from cnnlab.engine.probe import Probe
from cnnlab.engine.records import Descent
from cnnlab.engine.step import train_step
from cnnlab.losses import CrossEntropy, Quadratic
from cnnlab.network import build_network
from cnnlab.runtime.batch import Batch

CPU = torch.device("cpu")
BLOCKS = {
    "flatten": "flatten",
    "hidden": {"type": "linear", "out_features": 20},
    "relu": "relu",
    "output": {"type": "linear", "out_features": "classes"},
}


@pytest.fixture(scope="module")
def digits() -> Batch:
    """200 of the UCI digits in float64."""
    images = Digits().read("train")
    loader = ResidentLoader(images, Normalization.fit("standardize", images.x_NCHW), 200, device=CPU, shuffle=False)
    batch = next(iter(loader))
    return Batch(batch.x_NCHW.double(), batch.target, batch.index_N)


def network(activation: str | None = None, hidden: str = "relu") -> nn.Sequential:
    torch.manual_seed(0)
    last = {"activation": activation} if activation else {}
    return build_network((1, 8, 8), {**BLOCKS, "relu": hidden, **last}, classes=10, init="he").double()


def descents(
    model: nn.Module, loss: nn.Module, batch: Batch, lr: float, steps: int = 1, top: int = 10
) -> Iterator[Descent]:
    """Steps of Δv = −η∇C, each watched."""
    optimizer = build_optimizer(Component("optimizer", "sgd", torch.optim.SGD, {"lr": lr}), model, {})
    execution = Execution()
    for step in range(1, steps + 1):
        with Probe(model, loss, optimizer, execution, batch) as probe:
            result = train_step(model, loss, optimizer, batch, execution=execution, scaler=execution.scaler(CPU))
        descent = probe.read(result, step, 1, top)
        assert descent
        yield descent


def error_of_the_promise(descent: Descent) -> float:
    return abs(descent.loss_change - descent.predicted_change) / abs(descent.loss_change)


@pytest.mark.parametrize(("loss", "activation"), [(Quadratic(), "sigmoid"), (CrossEntropy(), None)])
def test_the_change_of_the_cost_is_about_gradient_times_change_of_the_weights(
    digits: Batch, loss: nn.Module, activation: str | None
) -> None:
    """ΔC ≈ ∇C·Δv: the error of a smooth network is of second order, so that half the η halves its fraction."""
    errors = [
        error_of_the_promise(next(descents(network(activation, "sigmoid"), loss, digits, lr)))
        for lr in (8e-3, 4e-3, 2e-3, 1e-3)
    ]
    assert errors[-1] < 0.01
    for larger, smaller in itertools.pairwise(errors):
        assert larger / smaller == pytest.approx(2, rel=0.02)


def test_a_small_step_against_the_gradient_always_lowers_the_cost(digits: Batch) -> None:
    """Δv = −η∇C makes ∇C·Δv = −η‖∇C‖², which is never above zero."""
    for descent in descents(network("sigmoid"), Quadratic(), digits, lr=0.05, steps=30):
        squared = sum(norm**2 for norm in descent.gradient_norm.values())
        assert descent.predicted_change == pytest.approx(-0.05 * squared, rel=1e-9)
        assert descent.loss_change < 0


def test_a_huge_step_raises_the_cost_in_spite_of_the_promise(digits: Batch) -> None:
    descent = next(descents(network(), CrossEntropy(), digits, lr=30))
    assert descent.predicted_change < 0 < descent.loss_change


def test_the_backward_pass_finds_the_weights_that_contribute_most(digits: Batch) -> None:
    """Without its largest contributor the cost changes by about −w·∂C/∂w, and by more than without a median weight."""
    model, loss = network(), CrossEntropy()
    parameters = dict(model.named_parameters())
    count = sum(parameter.numel() for parameter in parameters.values())
    found = next(descents(model, loss, digits, lr=0.0, top=count)).contributions
    assert len(found) == count

    def cost_without(name: str) -> float:
        layer, _, index = name.rstrip("]").partition("[")
        place = tuple(int(position) for position in index.split(","))
        with torch.no_grad():
            kept = parameters[layer][place].clone()
            parameters[layer][place] = 0
            cost = loss(model(digits.x_NCHW), digits.target).item()
            parameters[layer][place] = kept
        return cost

    whole = loss(model(digits.x_NCHW), digits.target).item()
    changes = [abs(cost_without(contribution.name) - whole) for contribution in (found[0], found[count // 2])]
    assert changes[0] > 20 * changes[1]
    for contribution in found[50:60]:  # small enough for the first order to be most of it
        assert cost_without(contribution.name) - whole == pytest.approx(-contribution.value, rel=0.5)


def test_the_fraction_of_dead_relus_is_that_of_z_not_above_zero(digits: Batch) -> None:
    model = network()
    z_NF = model.hidden(digits.x_NCHW.flatten(1)).detach()
    descent = next(descents(model, CrossEntropy(), digits, lr=0.1))
    assert descent.zero["relu"] == pytest.approx(float((z_NF <= 0).double().mean()), rel=1e-12)
    assert descent.dead["relu"] == pytest.approx(float((z_NF <= 0).all(0).double().mean()), rel=1e-12)


def test_a_step_too_large_kills_relus_for_good(digits: Batch) -> None:
    """A unit that is zero for every image has no gradient: no later step brings it back."""
    model = network()
    *_, last = descents(model, CrossEntropy(), digits, lr=30, steps=3)
    dead = last.dead["relu"]
    assert dead > 0
    *_, later = descents(model, CrossEntropy(), digits, lr=0.01, steps=5)
    assert later.dead["relu"] >= dead
