"""Quadratic cost, gradient descent, and the four steps of training."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from updates import gradients, update

from cnnlab.data.digits import Digits
from cnnlab.engine.step import count_correct
from cnnlab.losses import LOSSES
from cnnlab.network import build_network

QUADRATIC, CROSS_ENTROPY = LOSSES["quadratic"](), LOSSES["bce"](sum_classes=True)
PICTURE, WANTED = torch.ones(1, 1, 1, 1), torch.zeros(1, 1)  # Nielsen, chapter 3: input 1, desired output 0


def neuron(weight: float, bias: float, *, sigmoid: bool = True) -> nn.Sequential:
    start = {"type": "given", "weight": weight, "bias": bias}
    blocks: dict[str, Any] = {"flatten": "flatten", "z": {"type": "linear", "out_features": 1, "init": start}}
    return build_network((1, 1, 1), blocks | ({"a": "sigmoid"} if sigmoid else {}))


def outputs(weight: float, bias: float) -> list[float]:
    """Of a sigmoid neuron under the quadratic cost, before each of 300 updates with η = 0.15 and after the last."""
    network = neuron(weight, bias)
    found = [network(PICTURE).item()]
    for _ in range(300):
        update(network, QUADRATIC, PICTURE, WANTED, lr=0.15)
        found.append(network(PICTURE).item())
    return found


def test_a_neuron_that_is_a_little_wrong_learns_at_once() -> None:
    found = outputs(0.6, 0.9)
    assert (round(found[0], 2), round(found[-1], 2)) == (0.82, 0.09)


def test_a_neuron_that_is_badly_wrong_learns_slowly_at_first() -> None:
    found = outputs(2.0, 2.0)
    assert (round(found[0], 2), round(found[-1], 2)) == (0.98, 0.20)
    assert next(step for step, output in enumerate(found) if output < 0.5) == 232


@pytest.mark.parametrize(("weight", "bias", "ratio"), [(0.6, 0.9, 6.7), (2.0, 2.0, 56.6)])
def test_cross_entropy_takes_the_slope_of_the_sigmoid_out_of_the_gradient(
    weight: float, bias: float, ratio: float
) -> None:
    by_quadratic = gradients(neuron(weight, bias), QUADRATIC, PICTURE, WANTED)
    by_cross_entropy = gradients(neuron(weight, bias, sigmoid=False), CROSS_ENTROPY, PICTURE, WANTED)
    a = neuron(weight, bias)(PICTURE).item()
    for name in ("z.weight", "z.bias"):
        found = (by_cross_entropy[name] / by_quadratic[name]).item()
        assert found == pytest.approx(1 / (a * (1 - a)), rel=1e-4)
        assert found == pytest.approx(ratio, abs=0.05)


def digits(count: int) -> tuple[Tensor, Tensor]:
    pictures = Digits().read("train")
    return pictures.x_NCHW[:count].double() / 255, pictures.y_N[:count]


def sigmoid_network() -> nn.Sequential:
    """64 inputs, 30 hidden sigmoid neurons, 10 outputs, in float64."""
    torch.manual_seed(0)
    blocks = {
        "flatten": "flatten",
        "hidden": {"type": "linear", "out_features": 30},
        "a1": "sigmoid",
        "output": {"type": "linear", "out_features": 10},
        "a2": "sigmoid",
    }
    return build_network((1, 8, 8), blocks, init="book_small").double()


@torch.no_grad()
def test_a_nudge_moves_the_cost_and_not_the_number_of_right_answers() -> None:
    network, (x_NCHW, y_N) = sigmoid_network(), digits(500)
    weights = [p for p in network.parameters() if p.dim() == 2]
    output_NK = network(x_NCHW)
    cost, correct = QUADRATIC(output_NK, y_N).item(), count_correct(output_NK, y_N).item()
    generator = torch.Generator().manual_seed(1)
    costs_moved = counts_moved = 0
    for trial in range(200):
        weight = weights[trial % 2].view(-1)
        place = int(torch.randint(len(weight), (), generator=generator))
        while trial % 2 == 0 and not x_NCHW.flatten(1)[:, place % 64].any():  # a pixel that is black in every picture
            place = int(torch.randint(len(weight), (), generator=generator))
        before = weight[place].item()
        weight[place] += 1e-6
        output_NK = network(x_NCHW)
        costs_moved += QUADRATIC(output_NK, y_N).item() != cost
        counts_moved += count_correct(output_NK, y_N).item() != correct
        weight[place] = before
    assert costs_moved == 200
    assert counts_moved < 2  # under 1 %


def descent(lr: float, updates_before: int = 0) -> tuple[float, float]:
    """The change of the cost that ∇C·Δv predicts for Δv = −η∇C, and the one that an update makes."""
    network, (x_NCHW, y_N) = sigmoid_network(), digits(200)
    for _ in range(updates_before):
        update(network, QUADRATIC, x_NCHW, y_N, lr=1.0)
    before = QUADRATIC(network(x_NCHW), y_N).item()
    update(network, QUADRATIC, x_NCHW, y_N, lr)
    squared = sum((p.grad**2).sum().item() for p in network.parameters() if p.grad is not None)
    return -lr * squared, QUADRATIC(network(x_NCHW), y_N).item() - before


def test_the_cost_falls_by_what_the_gradient_predicts() -> None:
    def relative_error(lr: float) -> float:
        predicted, actual = descent(lr)
        return abs(actual - predicted) / abs(predicted)

    errors = [relative_error(lr) for lr in (4e-3, 2e-3, 1e-3)]
    assert errors[-1] < 0.01
    assert [errors[0] / errors[1], errors[1] / errors[2]] == pytest.approx([2, 2], rel=0.05)


def test_a_small_step_goes_down_and_a_huge_one_up() -> None:
    assert descent(1e-3, updates_before=200)[1] < 0
    assert descent(1e3, updates_before=200)[1] > 0


def small_cnn() -> nn.Sequential:
    torch.manual_seed(0)
    blocks = {
        "conv": {"type": "conv", "out_channels": 3, "kernel_size": 3},
        "a1": "sigmoid",
        "pool": {"type": "max_pool", "kernel_size": 2},
        "flatten": "flatten",
        "output": {"type": "linear", "out_features": 4},
    }
    return build_network((1, 6, 6), blocks).double()


def test_the_backward_pass_finds_what_finite_differences_find() -> None:
    network, target = small_cnn(), torch.tensor([0, 3, 1])
    loss = LOSSES["cross_entropy"]()
    x_NCHW = torch.randn(3, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    by_autograd = gradients(network, loss, x_NCHW, target)
    for name, parameter in network.named_parameters():
        by_differences = torch.empty_like(parameter).view(-1)
        values = parameter.detach().view(-1)
        for place in range(len(values)):
            before, costs = values[place].item(), []
            for nudged in (before + 1e-5, before - 1e-5):
                values[place] = nudged
                costs.append(loss(network(x_NCHW), target).item())
            values[place] = before
            by_differences[place] = (costs[0] - costs[1]) / 2e-5
        error = (by_differences - by_autograd[name].flatten()).norm() / by_autograd[name].norm()
        assert error.item() < 1e-6, name


def test_an_update_subtracts_eta_times_the_gradient_exactly() -> None:
    network, (x_NCHW, y_N) = sigmoid_network(), digits(10)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    update(network, QUADRATIC, x_NCHW, y_N, lr=0.5)  # a power of two: no product is rounded
    for name, p in network.named_parameters():
        assert p.grad is not None
        assert torch.equal(p.detach(), before[name] - 0.5 * p.grad)


def test_regularization_takes_its_share_of_the_weights_and_none_of_the_biases() -> None:
    """w ← (1 − ηλ/n)·w − η·∂C/∂w, b ← b − η·∂C/∂b (Nielsen, chapter 3), with weight_decay λ/n."""
    network, (x_NCHW, y_N) = sigmoid_network(), digits(10)
    eta, lambda_, n = 0.5, 5.0, 50_000
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    grads = gradients(network, QUADRATIC, x_NCHW, y_N)
    update(network, QUADRATIC, x_NCHW, y_N, eta, weight_decay=lambda_ / n)
    for name, p in network.named_parameters():
        factor = 1 - eta * lambda_ / n if name.endswith("weight") else 1.0
        torch.testing.assert_close(p.detach(), factor * before[name] - eta * grads[name], rtol=1e-14, atol=1e-16)


def test_without_a_gradient_a_weight_shrinks_by_the_factor_alone() -> None:
    start = {"type": "given", "weight": [[-2.0, 4.0]], "bias": [3.0]}
    blocks = {"flatten": "flatten", "z": {"type": "linear", "out_features": 1, "init": start}, "a": "step"}
    network = build_network((1, 1, 2), blocks)
    update(network, QUADRATIC, torch.ones(1, 1, 1, 2), torch.zeros(1, 1), lr=0.5, weight_decay=0.25)
    assert network.z.weight.tolist() == [[-2.0 * 0.875, 4.0 * 0.875]]
    assert network.z.bias.tolist() == [3.0]
