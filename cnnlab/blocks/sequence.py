"""Sequences (N, L, D): L positions of D features each, and attention between them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnlab.blocks.facts import Facts, Shape, expect_image, format_shape
from cnnlab.blocks.receptive_field import local, whole
from cnnlab.runtime.checks import integer, number
from cnnlab.runtime.errors import ArgumentError, ConfigError


def expect_sequence(shape: Shape) -> None:
    """Raises `ConfigError` where an image or features reach a block for sequences."""
    if len(shape) != 2:
        raise ConfigError(
            f"expected a sequence (positions × features), received {format_shape(shape)}; 'image_to_sequence' makes "
            f"one of an image"
        )


def _expect_features(features: int, shape: Shape) -> None:
    expect_sequence(shape)
    if shape[1] != features:
        raise ConfigError(
            f"in_features={features}, but {shape[1]} features reach it; leave in_features out and it is inferred"
        )


class ImageToSequence(nn.Module):
    """Makes each pixel a position, row by row: (N, C, H, W) → (N, H·W, C).

    After a `conv` with `kernel_size` and `stride` of 16, the positions are patches of 16×16 pixels (arXiv 2010.11929).
    """

    def facts(self, shape: Shape) -> Facts:
        expect_image(shape)
        return Facts((shape[1] * shape[2], shape[0]), field=local)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW.flatten(2).transpose(1, 2)


class ClassToken(nn.Module):
    """Puts a position of learned features before the others: (N, L, in_features) → (N, L + 1, in_features).

    They start at 0; `first_token` selects what became of them (arXiv 2010.11929).
    """

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(integer("in_features", in_features, 1)))

    def facts(self, shape: Shape) -> Facts:
        """The receptive field is that of the other positions; this one sees nothing of the image yet."""
        _expect_features(len(self.weight), shape)
        return Facts((shape[0] + 1, shape[1]), field=local)

    def forward(self, x_NLD: Tensor) -> Tensor:
        token_N1D = self.weight.expand(len(x_NLD), 1, -1)
        return torch.cat((token_N1D.to(x_NLD.dtype), x_NLD), 1)


class FirstToken(nn.Module):
    """The features of the first position, such as those of `class_token`: (N, L, D) → (N, D)."""

    def facts(self, shape: Shape) -> Facts:
        expect_sequence(shape)
        return Facts(shape[1:], field=local)

    def forward(self, x_NLD: Tensor) -> Tensor:
        return x_NLD[:, 0]


class PositionalEmbedding(nn.Module):
    """Adds learned numbers to each position, so that its place matters; keeps (N, L, D).

    They start from N(0, `std`²), whatever the network's `init` (arXiv 2010.11929). Raises `ArgumentError`.
    """

    def __init__(self, input_shape: tuple[int, int], std: float = 0.02) -> None:
        super().__init__()
        number("std", std, 0)
        expect_sequence(input_shape)
        self.weight = nn.Parameter(torch.empty(input_shape))
        if not self.weight.is_meta:  # drawing there imports seconds' worth of torch
            nn.init.normal_(self.weight, std=std)

    def facts(self, shape: Shape) -> Facts:
        expect_sequence(shape)
        if tuple(self.weight.shape) != shape:
            raise ArgumentError(
                "input_shape", f"expected {format_shape(shape)}, which is inferred where it is left out"
            )
        return Facts(shape, field=local)

    def forward(self, x_NLD: Tensor) -> Tensor:
        return x_NLD + self.weight


class Attention(nn.Module):
    """Multi-head self-attention between the positions of (N, L, in_features); keeps the shape (arXiv 1706.03762).

    Each of `num_heads` heads has in_features / num_heads of the features: softmax(Q·Kᵀ / √their number)·V, by
    `torch.nn.functional.scaled_dot_product_attention`. In training, `dropout` is the probability with which a weight
    of that softmax is zeroed. `bias` is that of both projections. Weights are shaped, ordered and drawn as in
    `torch.nn.MultiheadAttention`. Raises `ArgumentError`.
    """

    def __init__(self, in_features: int, num_heads: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        if integer("in_features", in_features, 1) % integer("num_heads", num_heads, 1):
            raise ArgumentError("num_heads", f"expected a divisor of the {in_features} features, received {num_heads}")
        self.num_heads = num_heads
        self.dropout = number("dropout", dropout, 0, 1, open_maximum=True)
        self.in_proj = nn.Linear(in_features, 3 * in_features, bias)
        self.out_proj = nn.Linear(in_features, in_features, bias)
        nn.init.xavier_uniform_(self.in_proj.weight)
        for projection in (self.in_proj, self.out_proj):
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)

    def facts(self, shape: Shape) -> Facts:
        """MACs of the projections, of Q·Kᵀ and of the weighted sums of V, which are L²·D each."""
        _expect_features(self.out_proj.in_features, shape)
        length, features = shape
        return Facts(shape, 4 * length * features**2 + 2 * length**2 * features, whole)

    def forward(self, x_NLD: Tensor) -> Tensor:
        q_NHLE, k_NHLE, v_NHLE = (
            part_NLD.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part_NLD in self.in_proj(x_NLD).chunk(3, 2)
        )
        dropout = self.dropout if self.training else 0.0
        attended_NHLE = F.scaled_dot_product_attention(q_NHLE, k_NHLE, v_NHLE, dropout_p=dropout)
        attended_NLD: Tensor = self.out_proj(attended_NHLE.transpose(1, 2).flatten(2))
        return attended_NLD
