"""The fully connected layer."""

from torch import nn

from cnnlab.blocks.facts import MOST_CHANNELS
from cnnlab.runtime.checks import integer


class Linear(nn.Linear):
    """Every output sees every input: (N, in_features) → (N, `out_features`). Raises `ArgumentError`.

    Of a sequence, each position by itself: (N, L, in_features) → (N, L, out_features).
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        integer("out_features", out_features, 1, MOST_CHANNELS)
        super().__init__(integer("in_features", in_features, 1), out_features, bias)
