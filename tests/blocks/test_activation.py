"""The activations by their names in the config, against their formulas."""

import math
from collections.abc import Callable

import pytest
import torch

from cnnlab.blocks import BLOCKS
from cnnlab.blocks.activation import GLU, LeakyReLU, Softmax, Step, TwoClasses
from cnnlab.runtime.errors import ArgumentError

FORMULAS: dict[str, Callable[[float], float]] = {
    "relu": lambda x: max(0.0, x),
    "leaky_relu": lambda x: x if x > 0 else 0.01 * x,
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "step": lambda x: 1.0 if x > 0 else 0.0,
    "tanh": lambda x: (math.exp(2 * x) - 1) / (math.exp(2 * x) + 1),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_an_activation_follows_its_formula(name: str) -> None:
    points = [-3.0, -0.5, 0.0, 0.25, 2.0]
    expected = torch.tensor([FORMULAS[name](x) for x in points])
    torch.testing.assert_close(BLOCKS[name]()(torch.tensor(points)), expected)


def test_leaky_relu_takes_its_slope_and_refuses_one_that_is_no_number() -> None:
    assert LeakyReLU(0.5)(torch.tensor([-4.0, 4.0])).tolist() == [-2.0, 4.0]
    with pytest.raises(ArgumentError, match="negative_slope"):
        LeakyReLU(math.nan)


def test_softmax_is_over_the_classes_or_channels() -> None:
    # exp(0) : exp(log 3) = 1 : 3
    torch.testing.assert_close(Softmax()(torch.tensor([[0.0, math.log(3)]])), torch.tensor([[0.25, 0.75]]))
    torch.testing.assert_close(Softmax()(torch.randn(2, 3, 4, 5)).sum(1), torch.ones(2, 4, 5))


@pytest.mark.parametrize(("straight_through", "slope"), [(False, 0.0), (True, 1.0)])
def test_the_slope_of_a_step_is_0_or_straight_through_1(straight_through: bool, slope: float) -> None:
    x = torch.tensor([-3.0, 0.0, 1e-30, 2.0], dtype=torch.float64, requires_grad=True)
    step = Step(straight_through)(x)
    (step * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert (step.tolist(), step.dtype) == ([0, 0, 1, 1], torch.float64)
    assert x.grad is not None
    assert x.grad.tolist() == [1 * slope, 2 * slope, 3 * slope, 4 * slope]


def test_one_neuron_classifies_two_classes() -> None:
    assert TwoClasses()(torch.tensor([[0.25], [1.0]])).tolist() == [[0.75, 0.25], [0.0, 1.0]]


def test_glu_gates_the_first_half_of_the_channels_by_the_second() -> None:
    x_NCHW = torch.randn(2, 6, 3, 4)
    torch.testing.assert_close(GLU()(x_NCHW), x_NCHW[:, :3] * x_NCHW[:, 3:].sigmoid())
    with pytest.raises(ArgumentError, match="dim"):
        GLU(0)
