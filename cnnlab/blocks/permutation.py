"""A fixed permutation of pixels, which takes neighbourhoods away."""

import torch
from torch import Tensor, nn

from cnnlab.blocks.facts import Facts, Shape, expect_image, format_shape
from cnnlab.runtime.checks import integer
from cnnlab.runtime.errors import ArgumentError
from cnnlab.runtime.randomness import derive, uniforms


class PermutePixels(nn.Module):
    """Puts every image's pixels into one fixed random order, the same in each channel; keeps the shape.

    The order is a pure function of `seed` and the number of pixels, on every machine and device: it is not
    saved with the weights, and neither training, the run's own `seed` nor resuming changes it. Raises `ArgumentError`.
    """

    order_P: Tensor

    def __init__(self, input_shape: tuple[int, int, int], seed: int = 0) -> None:
        super().__init__()
        key = derive(integer("seed", seed, 0), "permute_pixels")
        expect_image(input_shape)
        _, height, width = input_shape
        places_P = torch.arange(height * width)
        self.register_buffer("order_P", uniforms(key, places_P, 1)[:, 0].argsort(stable=True), persistent=False)

    def facts(self, shape: Shape) -> Facts:
        """The receptive field is unknown: one pixel, but not by any rule of windows."""
        expect_image(shape)
        if len(self.order_P) != shape[1] * shape[2]:
            raise ArgumentError(
                "input_shape", f"expected {format_shape(shape)}, which is inferred where it is left out"
            )
        return Facts(shape)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW.flatten(2)[:, :, self.order_P].view(x_NCHW.shape)
