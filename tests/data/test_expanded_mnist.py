"""MNIST with moved copies, against moving by hand."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import cnnlab.data.expanded_mnist as module
from cnnlab.data.expanded_mnist import MOVES, ExpandedMNIST, move
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


@pytest.mark.parametrize(("rows", "columns"), MOVES)
def test_a_move_takes_each_pixel_there_and_brings_black(rows: int, columns: int) -> None:
    x_NCHW = torch.arange(1, 17, dtype=torch.uint8).reshape(1, 1, 4, 4)
    assert torch.equal(move(x_NCHW, rows, columns)[0, 0], by_hand(x_NCHW[0, 0], rows, columns))


def test_every_training_image_comes_in_five_places_with_its_label(source: ExpandedMNIST) -> None:
    plain, images = source.mnist.read("train"), source.read("train")
    assert len(images) == 5 * SMALL
    for k, (rows, columns) in enumerate(MOVES):
        for i in range(SMALL):
            expected_HW = by_hand(plain.x_NCHW[i, 0], rows, columns)
            assert torch.equal(images.x_NCHW[SMALL * k + i, 0], expected_HW)
            assert images.y_N[SMALL * k + i] == plain.y_N[i]


def test_the_last_training_images_validate_unmoved(source: ExpandedMNIST) -> None:
    plain, val = source.mnist.read("train"), source.read("val")
    assert torch.equal(val.x_NCHW, plain.x_NCHW[SMALL:])
    assert torch.equal(val.y_N, plain.y_N[SMALL:])


def test_the_sizes_are_those_of_the_book(tmp_path: Path) -> None:
    assert ExpandedMNIST(str(tmp_path)).describe().counts == {"train": 250_000, "val": 10_000, "test": 10_000}
