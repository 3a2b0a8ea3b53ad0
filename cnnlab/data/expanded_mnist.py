"""MNIST whose training images also come moved by a pixel, as chapter 6 of Nielsen's book expands it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from cnnlab.data.source import DataSpec, Images, Source
from cnnlab.data.torchvision_sets import DIGIT_NAMES, MNIST

TRAINING = 50_000  # the first of MNIST's training images; the last 10,000 validate
MOVES = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))  # rows down, columns to the right


class ExpandedMNIST(Source):
    """Each of MNIST's first 50,000 training images five times: as it is, and moved by a pixel down, up, right, left.

    250,000 images train, the last 10,000 of MNIST's training images validate, unmoved; what comes in is black.
    Image i, moved in the k-th way, has the index 50,000·k + i.
    """

    def __init__(self, root: str) -> None:
        self.mnist = MNIST(root)

    def describe(self) -> DataSpec:
        counts = {"train": TRAINING * len(MOVES), "val": 10_000, "test": 10_000}
        return DataSpec(self.mnist.spec.input_shape, counts, DIGIT_NAMES)

    def check(self) -> None:
        self.mnist.check()

    def read(self, split: str) -> Images:
        if split == "test":
            return self.mnist.read("test")
        images = self.mnist.read("train")
        x_NCHW, y_N = images.x_NCHW, images.y_N
        if split == "val":
            return Images.of(x_NCHW[TRAINING:], y_N[TRAINING:])
        moved = [move(x_NCHW[:TRAINING], rows, columns) for rows, columns in MOVES]
        return Images.of(torch.cat(moved), y_N[:TRAINING].repeat(len(MOVES)))


def move(x_NCHW: Tensor, rows: int, columns: int) -> Tensor:
    """The images moved down by `rows` and to the right by `columns`; zeros come in. Same shape and dtype."""
    return F.pad(x_NCHW, (columns, -columns, rows, -rows))
