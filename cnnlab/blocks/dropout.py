"""Dropout, inverted as in PyTorch: survivors are scaled by 1/(1−p) in training, evaluation changes nothing."""

from torch import nn

from cnnlab.runtime.checks import number


class Dropout(nn.Dropout):
    """Zeroes each activation with probability `p` in training; keeps the shape. Raises `ArgumentError`."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(number("p", p, 0, 1, open_maximum=True))


class Dropout2d(nn.Dropout2d):
    """Zeroes each whole channel of (N, C, H, W) with probability `p` in training. Raises `ArgumentError`."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(number("p", p, 0, 1, open_maximum=True))
