"""How many pixels of the image one unit sees, by rules for the leaf layers.

r grows by (k − 1)·d·j at a window with kernel k and dilation d, and the jump j by its stride s; see Araujo,
Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019.
"""

from dataclasses import dataclass

from torch import nn

from cnnlab.blocks.activation import Step, TwoClasses
from cnnlab.blocks.pooling import GlobalAvgPool, GlobalMaxPool
from cnnlab.blocks.recurrent import Recurrent
from cnnlab.blocks.sequential import Residual, Sequential
from cnnlab.network.shape_inference import WINDOWED, window

LOCAL = (
    nn.Identity,
    nn.Flatten,
    nn.Softmax,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.dropout._DropoutNd,
    nn.ReLU,
    nn.LeakyReLU,
    nn.GELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Tanh,
    nn.ELU,
    nn.SELU,
    nn.ReLU6,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Hardtanh,
    nn.Softplus,
    nn.Mish,
    nn.PReLU,
    nn.LogSoftmax,
    Step,
    TwoClasses,
)
WHOLE = (
    nn.Linear,
    GlobalAvgPool,
    GlobalMaxPool,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.RNNBase,
    Recurrent,
    nn.GroupNorm,  # one image's statistics: every pixel reaches every unit
    nn.LayerNorm,
)


@dataclass(frozen=True)
class ReceptiveField:
    """`size` and `jump` (distance between neighbouring units) in input pixels, (height, width)."""

    size: tuple[int, int]
    jump: tuple[int, int]
    whole: bool = False

    def __str__(self) -> str:
        return "whole" if self.whole else f"{self.size[0]}×{self.size[1]}"


START = ReceptiveField((1, 1), (1, 1))


def receptive_field(module: nn.Module, field: ReceptiveField | None) -> ReceptiveField | None:
    """The field of a unit behind `module`, given that of the units before it; None is unknown."""
    if isinstance(module, WHOLE):
        return ReceptiveField((0, 0), (0, 0), whole=True)
    if isinstance(module, Sequential | nn.Sequential):
        for child in module.children():
            field = receptive_field(child, field)
        return field
    if isinstance(module, Residual):
        column = receptive_field(module.blocks, field)
        skip = receptive_field(module.projection, field)
        return None if column is None or skip is None else max(column, skip, key=lambda f: (f.whole, f.size))
    if field is None or field.whole or isinstance(module, LOCAL):
        return field
    if isinstance(module, WINDOWED):
        kernel, stride, _, dilation = window(module)
        size = tuple(r + (k - 1) * d * j for r, k, d, j in zip(field.size, kernel, dilation, field.jump, strict=True))
        jump = tuple(j * s for j, s in zip(field.jump, stride, strict=True))
        return ReceptiveField((size[0], size[1]), (jump[0], jump[1]))
    return None
