"""A watched update: every figure by hand, in float64, and not a bit of the training changed."""

import copy
import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnlab.engine.execution import Execution
from cnnlab.engine.probe import Probe
from cnnlab.engine.records import Descent
from cnnlab.engine.step import train_step
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.randomness import capture_generators, seed_generators

CPU = torch.device("cpu")


def network() -> nn.Sequential:
    """A smooth CNN in float64; 2×5×5 images, three classes."""
    torch.manual_seed(0)
    layers = {"conv": nn.Conv2d(2, 4, 3), "tanh": nn.Tanh(), "flatten": nn.Flatten(), "output": nn.Linear(36, 3)}
    return named(layers).double()


def noisy() -> nn.Sequential:
    """All that could make the second pass another function: dropout, batch norm, and a frozen one."""
    torch.manual_seed(0)
    layers = {
        "conv": nn.Conv2d(2, 4, 3),
        "norm": nn.BatchNorm2d(4),
        "relu": nn.ReLU(),
        "drop2d": nn.Dropout2d(0.3),
        "frozen": nn.BatchNorm2d(4),
        "flatten": nn.Flatten(),
        "drop": nn.Dropout(0.5),
        "output": nn.Linear(36, 3),
    }
    column = named(layers).double()
    column.frozen.eval().requires_grad_(False)
    return column


def named(layers: Mapping[str, nn.Module]) -> Any:
    column = nn.Sequential()
    for name, layer in layers.items():
        column.add_module(name, layer)
    return column


def batch(count: int = 7) -> Batch:
    generator = torch.Generator().manual_seed(1)
    x_NCHW = torch.randn(count, 2, 5, 5, generator=generator, dtype=torch.float64)
    return Batch(x_NCHW, torch.randint(0, 3, (count,), generator=generator), torch.arange(count))


def channels_last(images: Batch) -> Batch:
    """In the layout of the step, which then reads the batch's own memory."""
    return replace(images, x_NCHW=images.x_NCHW.contiguous(memory_format=torch.channels_last))


def watched(
    model: nn.Module,
    images: Batch | None = None,
    *,
    lr: float = 0.1,
    accumulate: int = 1,
    clip_norm: float | None = None,
    top: int = 10,
    precision: str = "fp32",
    **options: Any,
) -> Descent:
    """One step of SGD under the probe."""
    images = images or batch()
    execution = Execution(precision)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, **options)
    with Probe(
        model, F.cross_entropy, optimizer, execution, images, accumulate=accumulate, clip_norm=clip_norm
    ) as probe:
        result = train_step(
            model,
            F.cross_entropy,
            optimizer,
            images,
            execution=execution,
            scaler=execution.scaler(CPU),
            accumulate=accumulate,
            clip_norm=clip_norm,
        )
    descent = probe.read(result, 20, 1, top)
    assert descent
    return descent


def loss_of(model: nn.Module, images: Batch) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(model(images.x_NCHW), images.target)


def gradients(model: nn.Module, images: Batch) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    total = F.cross_entropy(model(images.x_NCHW), images.target)
    return dict(zip(names, torch.autograd.grad(total, parameters), strict=True))


def relative_error(descent: Descent) -> float:
    return abs(descent.predicted_change - descent.loss_change) / abs(descent.loss_change)


# what gradient descent promises


def test_the_cost_and_its_change_are_those_of_the_batch() -> None:
    model = network()
    before = float(loss_of(model, batch()))
    descent = watched(model)
    assert descent.loss == pytest.approx(before, rel=1e-12)
    assert descent.loss_change == pytest.approx(float(loss_of(model, batch())) - before, rel=1e-9)


def test_plain_sgd_is_promised_minus_lr_times_the_squared_gradient() -> None:
    model = network()
    squared = sum(float(gradient.square().sum()) for gradient in gradients(model, batch()).values())
    assert watched(model, lr=0.01).predicted_change == pytest.approx(-0.01 * squared, rel=1e-12)


def test_the_promise_is_twice_as_good_at_half_the_step() -> None:
    errors = [relative_error(watched(network(), lr=0.02 / 2**halvings)) for halvings in range(4)]
    assert errors[0] < 0.1
    for larger, smaller in itertools.pairwise(errors):
        assert larger / smaller == pytest.approx(2, rel=0.05)


def test_the_cost_falls_at_a_small_step_and_rises_at_a_huge_one() -> None:
    assert watched(network(), lr=1e-3).loss_change < 0
    huge = watched(network(), lr=1e3)
    assert huge.predicted_change < 0 < huge.loss_change


@pytest.mark.parametrize("accumulate", [1, 3])
def test_without_an_update_the_second_pass_has_the_same_loss(accumulate: int) -> None:
    """Dropout draws the same masks, in the same microbatches, and batch norm takes the same statistics."""
    seed_generators(5)
    descent = watched(noisy(), lr=0.0, accumulate=accumulate)
    assert descent.loss_change == pytest.approx(0, abs=1e-15)
    assert descent.correct_change == 0


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_promise_holds_through_dropout_and_batch_norm(accumulate: int) -> None:
    seed_generators(5)
    assert relative_error(watched(noisy(), lr=1e-5, accumulate=accumulate)) < 1e-3


def test_momentum_and_decay_are_part_of_the_step() -> None:
    model = network()
    optimizer_options = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradient = gradients(model, batch())
    descent = watched(model, lr=0.01, **optimizer_options)
    moved = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    expected = sum(float((gradient[name] * moved[name]).sum()) for name in moved)
    assert descent.predicted_change == pytest.approx(expected, rel=1e-10)


def test_the_gradient_is_the_one_before_clipping() -> None:
    free, clipped = watched(network()), watched(network(), clip_norm=0.01)
    assert clipped.gradient_norm == pytest.approx(free.gradient_norm, rel=1e-9)
    total = math.sqrt(sum(norm**2 for norm in free.gradient_norm.values()))
    # Δv = −η · 0.01 · ∇C/‖∇C‖, so that ∇C·Δv = −η · 0.01 · ‖∇C‖; torch divides by ‖∇C‖ + 1e-6
    assert clipped.predicted_change == pytest.approx(-0.1 * 0.01 * total, rel=1e-5)


def test_correct_predictions_are_counted_before_and_after() -> None:
    model = network()
    before = int((model(batch(50).x_NCHW).argmax(1) == batch(50).target).sum())
    descent = watched(model, batch(50), lr=0.5)
    after = int((model(batch(50).x_NCHW).argmax(1) == batch(50).target).sum())
    assert (descent.correct, descent.correct_change, descent.images) == (before, after - before, 50)
    assert descent.correct_change != 0


# what each layer and weight does


def test_the_norm_of_a_layer_is_that_of_its_weight_and_bias_together() -> None:
    model = network()
    by_hand = gradients(model, batch())
    descent = watched(model)
    assert list(descent.gradient_norm) == ["conv", "output"]
    for layer, norm in descent.gradient_norm.items():
        squares = by_hand[f"{layer}.weight"].square().sum() + by_hand[f"{layer}.bias"].square().sum()
        assert norm == pytest.approx(math.sqrt(squares), rel=1e-12)


def test_the_update_ratio_of_plain_sgd_is_lr_times_gradient_over_weights() -> None:
    model = network()
    sizes = {
        name: math.sqrt(sum(float(p.detach().square().sum()) for p in layer.parameters()))
        for name, layer in model.named_children()
    }
    descent = watched(model, lr=0.1)
    for layer, ratio in descent.update_ratio.items():
        assert ratio == pytest.approx(0.1 * descent.gradient_norm[layer] / sizes[layer], rel=1e-9)


def test_a_layer_that_starts_at_zero_has_no_ratio() -> None:
    model = network()
    nn.init.zeros_(model.output.weight)
    nn.init.zeros_(model.output.bias)
    assert list(watched(model).update_ratio) == ["conv"]


def test_what_is_frozen_is_left_out() -> None:
    assert "frozen" not in watched(noisy()).gradient_norm


def test_the_largest_contributions_are_those_of_a_sorted_list() -> None:
    model = network()
    values: dict[str, float] = {}
    for (name, p), gradient in zip(model.named_parameters(), gradients(model, batch()).values(), strict=True):
        for index in torch.cartesian_prod(*(torch.arange(size) for size in p.shape)).view(-1, p.dim()).tolist():
            place = tuple(index)
            values[f"{name}[{', '.join(map(str, place))}]"] = float(p.detach()[place] * gradient[place])
    expected = sorted(values, key=lambda name: -abs(values[name]))[:12]
    found = watched(model, top=12).contributions
    assert [contribution.name for contribution in found] == expected
    for contribution in found:
        assert contribution.value == pytest.approx(values[contribution.name], rel=1e-9)


def test_the_place_of_a_weight_does_not_depend_on_the_memory_layout() -> None:
    plain, other = network(), network().to(memory_format=torch.channels_last)
    names = [[contribution.name for contribution in watched(model).contributions] for model in (plain, other)]
    assert names[0] == names[1]


def test_no_more_weights_are_named_than_there_are() -> None:
    model = named({"flatten": nn.Flatten(), "output": nn.Linear(50, 3, bias=False)}).double()
    assert len(watched(model, top=1000).contributions) == 150


# activations


def with_activation(activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    model = named({"conv": nn.Conv2d(2, 6, 3), "act": activation, "flatten": nn.Flatten(), "output": nn.Linear(54, 3)})
    with torch.no_grad():
        model.conv.bias[1] -= 100  # never above zero
        model.conv.bias[2] += 100  # always
    return model.double()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_zero_fraction_is_that_of_z_not_above_zero(inplace: bool, accumulate: int) -> None:
    model = with_activation(nn.ReLU(inplace))
    z_NCHW = model.conv(batch().x_NCHW).detach()
    descent = watched(model, accumulate=accumulate)
    assert descent.zero == {"act": pytest.approx(float((z_NCHW <= 0).double().mean()), rel=1e-12)}
    assert descent.saturated == {}


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_unit_is_dead_that_is_zero_for_every_image_and_place(accumulate: int) -> None:
    descent = watched(with_activation(nn.ReLU()), accumulate=accumulate)
    assert descent.dead == {"act": pytest.approx(1 / 6)}


def test_a_unit_that_is_active_in_one_microbatch_is_not_dead() -> None:
    model = named({"flatten": nn.Flatten(), "relu": nn.ReLU(), "output": nn.Linear(50, 3)}).double()
    x_NCHW = torch.zeros(4, 2, 5, 5, dtype=torch.float64)
    x_NCHW[3, 0, 0, 0] = 1.0  # one unit, in the second half
    images = Batch(x_NCHW, torch.tensor([0, 1, 2, 0]), torch.arange(4))
    assert watched(model, images, accumulate=2).dead == {"relu": pytest.approx(49 / 50)}


def test_a_module_that_is_called_twice_counts_both_times() -> None:
    relu = nn.ReLU()

    class Twice(nn.Module):
        """The same activation on z and on −z: together every output but one of each pair is zero."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(50, 3)
            self.relu = relu

        def forward(self, x: Tensor) -> Tensor:
            z = self.linear(x.flatten(1))
            return self.relu(z) - self.relu(-z)

    descent = watched(Twice().double(), accumulate=3)
    assert descent.zero == {"relu": 0.5}


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
    execution = Execution()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for step in range(1, 7):
        probe = Probe(model, F.cross_entropy, optimizer, execution, batch(), accumulate=accumulate, clip_norm=0.5)
        if probed and step % 2 == 0:
            with probe:
                result = train_step_of(model, optimizer, execution, accumulate)
            assert probe.read(result, step, 1, 5)
        else:
            train_step_of(model, optimizer, execution, accumulate)
    return copy.deepcopy(model.state_dict()), optimizer.state_dict(), capture_generators()


def train_step_of(model: nn.Module, optimizer: torch.optim.Optimizer, execution: Execution, accumulate: int) -> Any:
    return train_step(
        model,
        F.cross_entropy,
        optimizer,
        batch(),
        execution=execution,
        scaler=execution.scaler(CPU),
        accumulate=accumulate,
        clip_norm=0.5,
    )


@pytest.mark.parametrize("accumulate", [1, 3])
def test_not_a_bit_of_the_training_is_changed(accumulate: int) -> None:
    plain, probed = trained(noisy(), False, accumulate), trained(noisy(), True, accumulate)
    assert all(torch.equal(value, probed[0][name]) for name, value in plain[0].items())
    for index, state in plain[1]["state"].items():
        assert torch.equal(state["momentum_buffer"], probed[1]["state"][index]["momentum_buffer"])
    assert torch.equal(plain[2]["torch"], probed[2]["torch"])
    assert plain[2]["python"] == probed[2]["python"]


def test_every_module_keeps_its_mode_and_loses_the_hooks() -> None:
    model = noisy()
    modes = [module.training for module in model.modules()]
    watched(model)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())


def test_the_hooks_go_where_the_step_fails() -> None:
    model = noisy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = optimizer.step
    with pytest.raises(RuntimeError), Probe(model, F.cross_entropy, optimizer, Execution(), batch()):
        model(torch.zeros(1))
    assert not any(module._forward_hooks for module in model.modules())
    assert optimizer.step == step


def test_an_update_that_the_scaler_skipped_is_not_recorded() -> None:
    model = network().float()
    images = Batch(torch.full((7, 2, 5, 5), math.inf), batch().target, batch().index_N)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    execution, scaler = Execution(), torch.amp.GradScaler("cpu")
    with Probe(model, F.cross_entropy, optimizer, execution, images) as probe:
        result = train_step(model, F.cross_entropy, optimizer, images, execution=execution, scaler=scaler)
    assert probe.read(result, 1, 1, 5) is None


class Counting(nn.Module):
    """Scales its input by the number of its calls, which is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


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
    assert watched(model, lr=0.0).loss_change == 0
    assert model.count.calls == 1


def test_a_fused_update_that_the_scaler_skipped_is_not_recorded() -> None:
    model = named({"flatten": nn.Flatten(), "output": nn.Linear(50, 3)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    images = Batch(100 * batch().x_NCHW.float(), batch().target, batch().index_N)
    scaler = torch.amp.GradScaler("cpu", init_scale=3e38)  # a finite loss, and gradients that overflow
    with Probe(model, F.cross_entropy, optimizer, Execution(), images) as probe:
        result = train_step(model, F.cross_entropy, optimizer, images, execution=Execution(), scaler=scaler)
    assert result.loss.isfinite()
    assert probe.read(result, 1, 1, 5) is None


def test_bf16_keeps_its_word_too() -> None:
    model = network().float()
    images = Batch(batch().x_NCHW.float(), batch().target, batch().index_N)
    descent = watched(model, images, precision="bf16", lr=0.1)
    assert descent.predicted_change < 0
    assert descent.loss_change == pytest.approx(descent.predicted_change, rel=0.5)
