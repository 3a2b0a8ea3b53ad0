"""A watched update: every figure by hand, in float64, and not a bit of the training changed."""

import copy
import itertools
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnlab.engine.execution import Execution
from cnnlab.engine.probe import Probe
from cnnlab.engine.records import Descent
from cnnlab.engine.step import LossFunction, train_step
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.randomness import capture_generators, seed_generators

CPU = torch.device("cpu")


def network() -> Any:
    """A smooth CNN in float64; 2×5×5 images, three classes."""
    torch.manual_seed(0)
    layers = {"conv": nn.Conv2d(2, 4, 3), "tanh": nn.Tanh(), "flatten": nn.Flatten(), "output": nn.Linear(36, 3)}
    return named(layers).double()


def noisy() -> Any:
    """All that could make the second pass another function: dropout, batch norm, and a frozen one."""
    torch.manual_seed(0)
    column = named({"conv": nn.Conv2d(2, 4, 3), "norm": nn.BatchNorm2d(4), "relu": nn.ReLU()})
    column.drop2d, column.frozen = nn.Dropout2d(0.3), nn.BatchNorm2d(4).eval().requires_grad_(False)
    column.flatten, column.drop, column.output = nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 3)
    return column.double()


def named(layers: Mapping[str, nn.Module]) -> Any:
    return nn.Sequential(OrderedDict(layers))


def batch(count: int = 7) -> Batch:
    generator = torch.Generator().manual_seed(1)
    x_NCHW = torch.randn(count, 2, 5, 5, generator=generator, dtype=torch.float64)
    return Batch(x_NCHW, torch.randint(0, 3, (count,), generator=generator), torch.arange(count))


def channels_last(images: Batch) -> Batch:
    """In the layout of the step, which then reads the batch's own memory."""
    return replace(images, x_NCHW=images.x_NCHW.contiguous(memory_format=torch.channels_last))


def take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Batch,
    execution: Execution,
    scaler: torch.amp.GradScaler,
    top: int = 10,
    watch: bool = True,
    loss: LossFunction = F.cross_entropy,
    **options: Any,
) -> Descent | None:
    """One step, under the probe if it is to be watched."""
    probe = Probe(model, loss, optimizer, execution, images, **options)
    with probe if watch else nullcontext():
        result = train_step(model, loss, optimizer, images, execution=execution, scaler=scaler, **options)
    assert result.loss.isfinite()
    return probe.read(result, 20, 1, top) if watch else None


def watched(
    model: nn.Module, images: Batch | None = None, *, lr: float = 0.1, precision: str = "fp32", **options: Any
) -> Descent:
    """One step of SGD under the probe."""
    execution = Execution(precision)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    descent = take_step(model, optimizer, images or batch(), execution, execution.scaler(CPU), **options)
    assert descent
    return descent


def loss_of(model: nn.Module, images: Batch) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(model(images.x_NCHW), images.target)


def gradients(model: nn.Module, images: Batch) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    total = F.cross_entropy(model(images.x_NCHW), images.target)
    return dict(zip(names, torch.autograd.grad(total, parameters), strict=True))


def norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.detach().square().sum()) for tensor in tensors))


def relative_error(descent: Descent) -> float:
    return abs(descent.predicted_change - descent.loss_change) / abs(descent.loss_change)


# what gradient descent promises


def test_loss_and_correct_predictions_and_their_changes_are_those_of_the_batch() -> None:
    model, images = network(), batch(50)
    before, right = float(loss_of(model, images)), int((model(images.x_NCHW).argmax(1) == images.target).sum())
    descent = watched(model, images, lr=0.5)
    change = int((model(images.x_NCHW).argmax(1) == images.target).sum()) - right
    assert descent.loss == pytest.approx(before, rel=1e-12)
    assert descent.loss_change == pytest.approx(float(loss_of(model, images)) - before, rel=1e-9)
    assert (descent.correct, descent.correct_change, descent.images) == (right, change, 50)
    assert change != 0


def test_the_promise_is_twice_as_good_at_half_the_step() -> None:
    errors = [relative_error(watched(network(), lr=0.02 / 2**halvings)) for halvings in range(4)]
    assert errors[0] < 0.1
    for larger, smaller in itertools.pairwise(errors):
        assert larger / smaller == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize(("accumulate", "precision"), [(1, "fp32"), (3, "fp32"), (3, "bf16")])
def test_without_an_update_the_second_pass_has_the_same_loss(accumulate: int, precision: str) -> None:
    """Dropout draws the same masks, in the same microbatches, and batch norm takes the same statistics."""
    seed_generators(5)
    images = replace(batch(), x_NCHW=batch().x_NCHW.float())
    descent = watched(noisy().float(), images, lr=0.0, accumulate=accumulate, precision=precision)
    assert (descent.loss_change, descent.correct_change) == (0, 0)


def test_momentum_and_decay_are_part_of_the_step() -> None:
    model = network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradient, execution = gradients(model, batch()), Execution()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1)
    descent = take_step(model, optimizer, batch(), execution, execution.scaler(CPU), accumulate=3)
    expected = sum(float((gradient[name] * (p.detach() - before[name])).sum()) for name, p in model.named_parameters())
    assert descent
    assert descent.predicted_change == pytest.approx(expected, rel=1e-10)


def test_the_gradient_is_the_one_before_clipping() -> None:
    free, clipped = watched(network()), watched(network(), clip_norm=0.01)
    assert clipped.gradient_norm == pytest.approx(free.gradient_norm, rel=1e-9)
    total = math.sqrt(sum(norm**2 for norm in free.gradient_norm.values()))
    # Δv = −η · 0.01 · ∇C/‖∇C‖, so that ∇C·Δv = −η · 0.01 · ‖∇C‖; torch divides by ‖∇C‖ + 1e-6
    assert clipped.predicted_change == pytest.approx(-0.1 * 0.01 * total, rel=1e-5)


# what each layer and weight does


def test_the_norms_of_a_layer_are_those_of_its_weight_and_bias_together() -> None:
    model = network()
    by_hand = gradients(model, batch())
    sizes = {name: norm(layer.parameters()) for name, layer in model.named_children()}
    descent = watched(model, lr=0.1)
    assert list(descent.gradient_norm) == ["conv", "output"]
    for layer, length in descent.gradient_norm.items():
        assert length == pytest.approx(norm(by_hand[f"{layer}.{each}"] for each in ("weight", "bias")), rel=1e-12)
        assert descent.update_ratio[layer] == pytest.approx(0.1 * length / sizes[layer], rel=1e-9)


def test_what_is_frozen_is_left_out_and_a_layer_that_starts_at_zero_has_no_ratio() -> None:
    model = noisy()
    nn.init.zeros_(model.output.weight)
    nn.init.zeros_(model.output.bias)
    descent = watched(model)
    assert list(descent.gradient_norm) == ["conv", "norm", "output"]
    assert list(descent.update_ratio) == ["conv", "norm"]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_largest_contributions_are_those_of_a_sorted_list(layout: torch.memory_format) -> None:
    model = network().to(memory_format=layout)
    values: dict[str, float] = {}
    for (name, p), gradient in zip(model.named_parameters(), gradients(model, batch()).values(), strict=True):
        for index in torch.cartesian_prod(*(torch.arange(size) for size in p.shape)).view(-1, p.dim()).tolist():
            place = tuple(index)
            values[f"{name}[{', '.join(map(str, place))}]"] = float(p.detach()[place] * gradient[place])
    expected = sorted(values, key=lambda name: -abs(values[name]))[:12]
    assert len(watched(copy.deepcopy(model), top=1000).contributions) == len(values)
    found = watched(model, top=12).contributions
    assert [contribution.name for contribution in found] == expected
    for contribution in found:
        assert contribution.value == pytest.approx(values[contribution.name], rel=1e-9)


# activations


def with_activation(activation: nn.Module) -> Any:
    torch.manual_seed(0)
    model = named({"conv": nn.Conv2d(2, 6, 3), "act": activation, "flatten": nn.Flatten(), "output": nn.Linear(54, 3)})
    with torch.no_grad():
        model.conv.bias[1] -= 100  # never above zero
        model.conv.bias[2] += 100  # always
    return model.double()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_fractions_of_zeros_and_of_dead_units(inplace: bool, accumulate: int) -> None:
    model = with_activation(nn.ReLU(inplace))
    z_NCHW = model.conv(batch().x_NCHW).detach()
    descent = watched(model, accumulate=accumulate)
    assert descent.zero == {"act": pytest.approx(float((z_NCHW <= 0).double().mean()), rel=1e-12)}
    assert descent.dead == {"act": pytest.approx(1 / 6)}  # zero for every image and place
    assert descent.saturated == {}


def test_a_unit_that_is_active_in_one_microbatch_is_not_dead() -> None:
    model = named({"flatten": nn.Flatten(), "relu": nn.ReLU(), "output": nn.Linear(50, 3)}).double()
    x_NCHW = torch.zeros(4, 2, 5, 5, dtype=torch.float64)
    x_NCHW[3, 0, 0, 0] = 1.0  # one unit, in the second half
    images = Batch(x_NCHW, torch.tensor([0, 1, 2, 0]), torch.arange(4))
    assert watched(model, images, accumulate=2).dead == {"relu": pytest.approx(49 / 50)}


class Twice(nn.Linear):
    """The same activation on z and on −z: together every output but one of each pair is zero."""

    def __init__(self) -> None:
        super().__init__(50, 3)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x.flatten(1))
        return self.relu(z) - self.relu(-z)


def test_a_module_that_is_called_twice_counts_both_times() -> None:
    assert watched(Twice().double(), accumulate=3).zero == {"relu": 0.5}


@pytest.mark.parametrize(
    ("activation", "limit"),
    # σ′ = ¼ · 0.1 where a(1 − a) = 0.025; tanh′ = 0.1 where a² = 0.9
    [(nn.Sigmoid(), math.log((1 + math.sqrt(0.9)) / (1 - math.sqrt(0.9)))), (nn.Tanh(), math.atanh(math.sqrt(0.9)))],
    ids=["sigmoid", "tanh"],
)
def test_saturated_is_a_slope_below_a_tenth_of_the_steepest(activation: nn.Module, limit: float) -> None:
    model = with_activation(activation)
    with torch.no_grad():
        model.conv.weight.mul_(4)
    z_NCHW = model.conv(batch().x_NCHW).detach()
    expected = float((z_NCHW.abs() > limit).double().mean())
    assert 0.35 < expected < 0.9  # two of the six channels are far out
    assert watched(model).saturated == {"act": pytest.approx(expected, rel=1e-12)}


# it only looks on


def trained(model: nn.Module, probed: bool, accumulate: int = 1) -> tuple[dict[str, Tensor], Any, Any]:
    """Weights and buffers, the optimizer's state and the generators after six steps with momentum and decay."""
    seed_generators(7)
    execution, options = Execution(), {"accumulate": accumulate, "clip_norm": 0.5}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    modes = [module.training for module in model.modules()]
    for number in range(1, 7):
        watch = probed and number % 2 == 0
        take_step(model, optimizer, batch(), execution, execution.scaler(CPU), watch=watch, **options)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    return copy.deepcopy(model.state_dict()), optimizer.state_dict(), capture_generators()


@pytest.mark.parametrize("accumulate", [1, 3])
def test_not_a_bit_of_the_training_is_changed(accumulate: int) -> None:
    plain, probed = trained(noisy(), False, accumulate), trained(noisy(), True, accumulate)
    assert all(torch.equal(value, probed[0][name]) for name, value in plain[0].items())
    for index, state in plain[1]["state"].items():
        assert torch.equal(state["momentum_buffer"], probed[1]["state"][index]["momentum_buffer"])
    assert torch.equal(plain[2]["torch"], probed[2]["torch"])
    assert plain[2]["python"] == probed[2]["python"]


def test_the_hooks_go_where_the_step_fails() -> None:
    model = noisy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = optimizer.step
    with pytest.raises(RuntimeError), Probe(model, F.cross_entropy, optimizer, Execution(), batch()):
        model(torch.zeros(1))
    assert not any(module._forward_hooks for module in model.modules())
    assert optimizer.step == step


class Counting(nn.Module):
    """Scales its input by the number of its calls, which is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class CountingLoss(nn.CrossEntropyLoss):
    """Grows with the number of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Counting()

    def forward(self, output_NK: Tensor, target: Tensor) -> Tensor:
        return self.count(super().forward(output_NK, target))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_first_layer_that_works_in_place_changes_no_measured_loss(accumulate: int) -> None:
    first = named({"leaky": nn.LeakyReLU(0.5, inplace=True), "flatten": nn.Flatten(), "output": nn.Linear(50, 3)})
    plain = copy.deepcopy(first)
    plain.leaky.inplace = False
    changes = [
        watched(model.double(), channels_last(batch()), accumulate=accumulate).loss_change for model in (first, plain)
    ]
    assert changes[0] == pytest.approx(changes[1], rel=1e-9)


def test_what_a_module_and_a_loss_keep_in_python_is_as_the_step_left_it() -> None:
    model = named({"count": Counting(), "flatten": nn.Flatten(), "output": nn.Linear(50, 3)}).double()
    loss = CountingLoss()
    assert watched(model, lr=0.0, loss=loss).loss_change == 0
    assert model.count.calls == loss.count.calls == 1


@pytest.mark.parametrize("fused", [False, True])
def test_an_update_that_the_scaler_skipped_is_not_recorded(fused: bool) -> None:
    model = named({"flatten": nn.Flatten(), "output": nn.Linear(50, 3)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    images = replace(batch(), x_NCHW=100 * batch().x_NCHW.float())
    scaler = torch.amp.GradScaler("cpu", init_scale=3e38)  # a finite loss, and gradients that overflow
    assert take_step(model, optimizer, images, Execution(), scaler) is None
