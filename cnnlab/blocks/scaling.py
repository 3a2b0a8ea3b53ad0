"""Blocks that multiply: by a constant, by a learned factor per channel, by gates computed from the channels."""

import torch
from torch import Tensor, nn

from cnnlab.blocks.facts import MOST_CHANNELS, Facts, Shape, expect_channels, expect_image, format_shape, unchanged
from cnnlab.blocks.receptive_field import local, whole
from cnnlab.runtime.checks import integer, number, one_of
from cnnlab.runtime.errors import ArgumentError

MOST = 1e6  # of a factor
ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}
GATES = {"sigmoid": nn.Sigmoid, "hardsigmoid": nn.Hardsigmoid}


class Scale(nn.Module):
    """x · `factor`, a constant; keeps the shape. Raises `ArgumentError`."""

    facts = unchanged

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = number("factor", factor, -MOST, MOST)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


class LayerScale(nn.Module):
    """Multiplies each channel by a learned factor that starts at `init_value` (arXiv 2103.17239); keeps the shape.

    Channels are the C of images (N, C, H, W), and the D of sequences (N, L, D) or features (N, D). As the last block
    of a residual's `blocks` it makes a deep network begin near the identity. Raises `ArgumentError`.
    """

    def __init__(self, input_shape: tuple[int, ...], init_value: float = 1e-6) -> None:
        super().__init__()
        number("init_value", init_value, -MOST, MOST)
        channels = input_shape[0] if len(input_shape) == 3 else input_shape[-1]
        self.weight = nn.Parameter(torch.full((channels,), float(init_value)))

    def facts(self, shape: Shape) -> Facts:
        if len(self.weight) != (shape[0] if len(shape) == 3 else shape[-1]):
            raise ArgumentError(
                "input_shape", f"expected {format_shape(shape)}, which is inferred where it is left out"
            )
        return Facts(shape, field=local)

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.weight[:, None, None] if x.dim() == 4 else self.weight)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from all channels' means (arXiv 1709.01507); keeps (N, C, H, W).

    gate = scale_activation(fc2(activation(fc1(means)))), with `squeeze_channels` between the two 1×1 convolutions;
    `activation` is relu or silu, `scale_activation` sigmoid or hardsigmoid. The weights of
    `torchvision.ops.SqueezeExcitation`. Raises `ArgumentError`.
    """

    def __init__(
        self, in_channels: int, squeeze_channels: int, activation: str = "relu", scale_activation: str = "sigmoid"
    ) -> None:
        super().__init__()
        integer("in_channels", in_channels, 1)
        integer("squeeze_channels", squeeze_channels, 1, MOST_CHANNELS)
        self.fc1 = nn.Conv2d(in_channels, squeeze_channels, 1)
        self.fc2 = nn.Conv2d(squeeze_channels, in_channels, 1)
        self.activation = ACTIVATIONS[one_of("activation", activation, tuple(ACTIVATIONS))]()
        self.scale_activation = GATES[one_of("scale_activation", scale_activation, tuple(GATES))]()

    def facts(self, shape: Shape) -> Facts:
        expect_image(shape)
        expect_channels("in_channels", self.fc1.in_channels, shape)
        return Facts(shape, 2 * self.fc1.weight.numel(), whole)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        squeezed_NS11 = self.activation(self.fc1(x_NCHW.mean((2, 3), keepdim=True)))
        return x_NCHW * self.scale_activation(self.fc2(squeezed_NS11))
