"""Quadratic cost, gradient descent, and the four steps of training."""

import pytest
import torch
from laboratory.descent import gradients_both_ways
from laboratory.neurons import (
    CROSS_ENTROPY,
    IMAGE,
    QUADRATIC,
    WANTED,
    digits,
    neuron,
    nudged,
    outputs,
    sigmoid_network,
)
from laboratory.updates import gradients, update

from cnnlab.network import build_network


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
    by_quadratic = gradients(neuron(weight, bias), QUADRATIC, IMAGE, WANTED)
    by_cross_entropy = gradients(neuron(weight, bias, sigmoid=False), CROSS_ENTROPY, IMAGE, WANTED)
    a = neuron(weight, bias)(IMAGE).item()
    for name in ("z.weight", "z.bias"):
        found = (by_cross_entropy[name] / by_quadratic[name]).item()
        assert found == pytest.approx(1 / (a * (1 - a)), rel=1e-4)
        assert found == pytest.approx(ratio, abs=0.05)


def test_a_nudge_moves_the_cost_and_not_the_number_of_correct_predictions() -> None:
    costs_moved, counts_moved = nudged(1e-6)
    assert costs_moved == 200
    assert counts_moved < 2  # under 1 %


def test_the_backward_pass_finds_what_finite_differences_find() -> None:
    for name, (by_autograd, by_differences) in gradients_both_ways().items():
        error = (by_differences - by_autograd).norm() / by_autograd.norm()
        assert error.item() < 1e-6, name


def test_an_update_subtracts_eta_times_the_gradient_exactly() -> None:
    network, (x_NCHW, y_N) = sigmoid_network(), digits(10)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    update(network, QUADRATIC, x_NCHW, y_N, lr=0.5)  # a power of two: no product is rounded
    for name, p in network.named_parameters():
        assert p.grad is not None
        assert torch.equal(p.detach(), before[name] - 0.5 * p.grad)


def test_regularization_shrinks_the_weights_and_none_of_the_biases() -> None:
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
