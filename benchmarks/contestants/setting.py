"""What the contestants have in common: the images, the networks, the optimizer's settings, how figures are reported."""

import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

TRAIN_COUNT = 55_000  # the other 5,000 are held out
BATCH = 128
MEAN, SD = 0.1307, 0.3081  # of MNIST's training pixels in 0…1
SGD = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
SGD_OF_A_FIRST_LESSON = {"lr": 15.0}  # of the mean over 10 outputs: 3.0 of half their sum
ROOT = os.environ.get("CNNLAB_DATA", "data")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # as device=auto has it


def wait() -> None:
    """Waits until the device has done its work: before a clock is read."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def mnist(split: str) -> tuple[np.ndarray, np.ndarray]:
    """(N, 28, 28) uint8 images and (N,) int64 labels of `train` (the first 55,000) or `t10k`."""
    folder = Path(ROOT) / "MNIST" / "raw"
    images = np.fromfile(folder / f"{split}-images-idx3-ubyte", np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.fromfile(folder / f"{split}-labels-idx1-ubyte", np.uint8, offset=8).astype(np.int64)
    return (images, labels) if split == "t10k" else (images[:TRAIN_COUNT], labels[:TRAIN_COUNT])


def build(network: str, width: int = 16, depth: int = 0) -> nn.Module:
    """`cnn` (first convolution `width` wide, `depth` more in its middle), `normed_mlp` or `sigmoid`."""
    if network == "cnn":
        return cnn(width, depth)
    if network == "normed_mlp":
        hidden = [
            layer
            for inputs, outputs in pairwise((784, 64, 128, 64))
            for layer in (nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU())
        ]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, 10))
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 30), nn.Sigmoid(), nn.Linear(30, 10), nn.Sigmoid())


def cnn(width: int, depth: int) -> nn.Module:
    """The network of `configs/model/cnn.yaml` as one writes it in torch.nn, with ReLU before the pooling.

    It computes the same numbers: cnnlab's order is one of the things that make it faster.
    """
    return nn.Sequential(
        *convolution(1, width),
        nn.MaxPool2d(2),
        *convolution(width, 2 * width),
        *[layer for _ in range(depth) for layer in convolution(2 * width, 2 * width)],
        nn.MaxPool2d(2),
        *convolution(2 * width, 4 * width),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(4 * width * 7 * 7, 10),
    )


def convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding="same", bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


def report(**figures: float) -> None:
    """The last line that a contestant prints."""
    print("\n" + json.dumps(figures), flush=True)
