"""What is drawn, against areas and places that are known."""

import math

import pytest
import torch
from torch import Tensor

from cnnlab.data.drawing import arc, edge, stroke

SIZE = (40, 60)
ROUND_END = math.pi / 4  # of the thickness squared, for both ends together


def number(value: float) -> Tensor:
    return torch.tensor([float(value)])


def place(x: float, y: float) -> Tensor:
    return torch.tensor([[float(x), float(y)]])


def test_an_edge_within_a_column_covers_its_fraction() -> None:
    (image_HW,) = edge(place(10.25, 0), number(0), SIZE)
    assert image_HW[7, 9:12].tolist() == [0, 0.75, 1]
    assert image_HW[:, 11:].eq(1).all()


def test_a_quarter_turn_of_an_edge_is_bright_below() -> None:
    (image_HW,) = edge(place(0, 5), number(math.pi / 2), SIZE)
    torch.testing.assert_close(image_HW[:, 0], (torch.arange(40) >= 5).float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("angle", [0.0, 0.3, 2.0])
def test_a_stroke_covers_its_length_times_its_thickness(angle: float) -> None:
    reach = 12 * torch.tensor([[math.cos(angle), math.sin(angle)]])
    cover = stroke(place(30, 20) - reach, place(30, 20) + reach, number(3), SIZE).sum().item()
    assert cover == pytest.approx(24 * 3 + ROUND_END * 3**2, rel=0.02)


def test_a_stroke_is_full_within_and_empty_beyond() -> None:
    (image_HW,) = stroke(place(10, 20), place(50, 20), number(4), SIZE)
    assert image_HW[18:22, 12:48].eq(1).all()
    assert image_HW[:17].eq(0).all()
    assert image_HW[:, :7].eq(0).all()


@pytest.mark.parametrize("sweep", [1.0, math.pi, 5.0])
def test_an_arc_covers_its_length_times_its_thickness(sweep: float) -> None:
    cover = arc(place(30, 20), number(15), number(0.7), number(sweep), number(2), SIZE).sum().item()
    assert cover == pytest.approx(15 * sweep * 2 + ROUND_END * 2**2, rel=0.03)


def test_the_middle_of_an_arc_lies_at_its_angle() -> None:
    (image_HW,) = arc(place(30, 20), number(15), number(math.pi / 2), number(1), number(2), SIZE)
    rows, columns = image_HW.nonzero(as_tuple=True)
    weights = image_HW[rows, columns]
    middle_x = ((columns + 0.5) * weights).sum() / weights.sum()
    assert middle_x.item() == pytest.approx(30, abs=0.01)
    assert rows.min() >= 30  # below the centre, as y points down
