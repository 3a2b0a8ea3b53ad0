"""Activations whose torch constructors need a check or a default; the others are torch's own classes."""

from torch import nn

from cnnlab.runtime.checks import integer, number
from cnnlab.runtime.errors import ArgumentError


class LeakyReLU(nn.LeakyReLU):
    """max(0, x) + `negative_slope`·min(0, x); keeps the shape. Raises `ArgumentError`."""

    def __init__(self, negative_slope: float = 0.01) -> None:
        super().__init__(number("negative_slope", negative_slope))


class Softmax(nn.Softmax):
    """exp(x_k) / Σ_j exp(x_j) over `dim`, by default the classes of (N, K) or the channels of (N, C, H, W).

    Raises `ArgumentError`.
    """

    def __init__(self, dim: int = 1) -> None:
        if integer("dim", dim, -8) == 0:
            raise ArgumentError("dim", "expected a dimension of the picture (1 is the classes), received 0, the batch")
        super().__init__(dim)
