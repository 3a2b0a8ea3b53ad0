"""Quadratic cost, gradient descent, and the four steps of training."""

import torch
from laboratory.descent import gradients_both_ways
from laboratory.neurons import QUADRATIC, digits, sigmoid_network
from laboratory.updates import gradients, update


def test_the_backward_pass_finds_what_finite_differences_find() -> None:
    for name, (by_autograd, by_differences) in gradients_both_ways().items():
        error = (by_differences - by_autograd).norm() / by_autograd.norm()
        assert error.item() < 1e-6, name


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
