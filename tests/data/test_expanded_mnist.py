"""MNIST with moved copies, against moving by hand."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import cnnlab.data.expanded_mnist as module
from cnnlab.data.expanded_mnist import MOVES, ExpandedMNIST
from cnnlab.data.source import Images
from cnnlab.data.torchvision_sets import MNIST

SMALL = 5  # of the seven images that stand for MNIST


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ExpandedMNIST:
    x_NCHW = torch.randint(1, 256, (7, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    monkeypatch.setattr(MNIST, "read", lambda self, split: Images.of(x_NCHW, torch.arange(7)))
    monkeypatch.setattr(module, "TRAINING", SMALL)
    return ExpandedMNIST(str(tmp_path))


def by_hand(image_HW: Tensor, rows: int, columns: int) -> Tensor:
    moved_HW = torch.zeros_like(image_HW)
    for row in range(4):
        for column in range(4):
            if 0 <= row - rows < 4 and 0 <= column - columns < 4:
                moved_HW[row, column] = image_HW[row - rows, column - columns]
    return moved_HW


def test_every_training_image_comes_in_five_places_with_its_label(source: ExpandedMNIST) -> None:
    plain, images = source.mnist.read("train"), source.read("train")
    assert torch.equal(images.y_N, plain.y_N[:SMALL].repeat(5))
    moved = [by_hand(x_1HW[0], *move) for move in MOVES for x_1HW in plain.x_NCHW[:SMALL]]
    assert torch.equal(images.x_NCHW[:, 0], torch.stack(moved))


def test_the_last_training_images_validate_unmoved(source: ExpandedMNIST) -> None:
    plain, val = source.mnist.read("train"), source.read("val")
    assert torch.equal(val.x_NCHW, plain.x_NCHW[SMALL:])
    assert torch.equal(val.y_N, plain.y_N[SMALL:])


def test_the_sizes_are_those_of_the_book(tmp_path: Path) -> None:
    assert ExpandedMNIST(str(tmp_path)).describe().counts == {"train": 250_000, "val": 10_000, "test": 10_000}
