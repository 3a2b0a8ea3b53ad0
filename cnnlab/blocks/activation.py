"""Activations that torch lacks, or whose constructors need a check or a default; the others are torch's own classes."""

from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.blocks.facts import Facts, Shape, format_shape, unchanged
from cnnlab.blocks.receptive_field import local
from cnnlab.runtime.checks import integer, number
from cnnlab.runtime.errors import ArgumentError, ConfigError

MOST_SLOPE = 1e6


class LeakyReLU(nn.LeakyReLU):
    """max(0, x) + `negative_slope`·min(0, x); keeps the shape. Raises `ArgumentError`."""

    def __init__(self, negative_slope: float = 0.01) -> None:
        super().__init__(number("negative_slope", negative_slope, -MOST_SLOPE, MOST_SLOPE))


class Step(nn.Module):
    """1 where x > 0 and 0 elsewhere, as a perceptron's output; keeps the shape.

    Its gradient is 0 everywhere, so that nothing before it learns. With `straight_through` the backward pass treats it
    as the identity (arXiv 1308.3432): after a weighted sum and under the quadratic loss, an update of plain SGD is the
    perceptron rule Δw = η·(y − a)·x.
    """

    facts = unchanged

    def __init__(self, straight_through: bool = False) -> None:
        super().__init__()
        self.straight_through = straight_through

    def forward(self, x: Tensor) -> Tensor:
        step: Tensor = _Step.apply(x, self.straight_through)
        return step


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, straight_through: bool) -> Tensor:
        ctx.slope = float(straight_through)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.slope, None


class TwoClasses(nn.Module):
    """One neuron's activation a as those of two classes, 1 − a and a: (N, 1) → (N, 2).

    So a single neuron, whose 1 means the second class, classifies. The quadratic loss ½·‖…‖² sums the same error over
    both outputs: it is (a − y)².
    """

    def facts(self, shape: Shape) -> Facts:
        if shape != (1,):
            raise ConfigError(f"expected the activation of one neuron, received {format_shape(shape)}")
        return Facts((2,), field=local)

    def forward(self, activation_N1: Tensor) -> Tensor:
        return torch.cat((1 - activation_N1, activation_N1), 1)


class Softmax(nn.Softmax):
    """exp(x_k) / Σ_j exp(x_j) over `dim`, by default the classes of (N, K) or the channels of (N, C, H, W).

    Raises `ArgumentError`.
    """

    def __init__(self, dim: int = 1) -> None:
        if integer("dim", dim, -8) == 0:
            raise ArgumentError("dim", "expected a dimension of the image (1 is the classes), received 0, the batch")
        super().__init__(dim)


class GLU(nn.GLU):
    """a · sigmoid(b) of the two halves a and b along `dim`, by default the channels (arXiv 1612.08083).

    (N, C, H, W) → (N, C / 2, H, W). Raises `ArgumentError`.
    """

    def __init__(self, dim: int = 1) -> None:
        if integer("dim", dim, -8) == 0:
            raise ArgumentError("dim", "expected a dimension of the image (1 is the channels), received 0, the batch")
        super().__init__(dim)
