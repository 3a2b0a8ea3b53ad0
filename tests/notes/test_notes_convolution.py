"""Filters, stride, padding, and how far a unit sees."""

import pytest
import torch
from laboratory.convolution import CONV, LAPLACE, VERTICAL, cp20_cp40, filtering, planted, rows_of

from cnnlab.data.shapes import SHAPES, Shapes
from cnnlab.network import build_network


@pytest.mark.parametrize("column", [3, 14, 24])
def test_a_planted_edge_filter_peaks_on_the_planted_edge(column: int) -> None:
    """The edge runs through the middle of that column; the map lacks one column on each side."""
    response_HW = filtering(VERTICAL, (1, 28, 28))(planted(column + 0.5))[0, 0]
    assert response_HW.argmax(1).unique().tolist() == [column - 1]
    assert response_HW.max().item() == 3
    assert response_HW[:, : column - 2].eq(0).all()
    assert response_HW[:, column + 1 :].eq(0).all()


def test_an_edge_filter_does_not_answer_to_an_edge_across() -> None:
    response_NCHW = filtering(VERTICAL, (1, 28, 28))(planted(14.5, angle=torch.pi / 2))
    assert response_NCHW.abs().max().item() < 1e-5


def test_an_edge_filter_tells_drawn_vertical_edges_from_horizontal_ones() -> None:
    images = Shapes(28, 160, 8, (1, 3), 0.0, 0).read("train")
    strongest_N = filtering(VERTICAL, (1, 28, 28))(images.x_NCHW / 255).abs().amax((1, 2, 3))
    classes = list(SHAPES)
    vertical, horizontal = (
        strongest_N[images.y_N == classes.index(name)] for name in ("vertical_edge", "horizontal_edge")
    )
    assert vertical.min() > 2 * horizontal.max()


def test_fractiond_weights_are_520_where_a_dense_layer_has_9_million() -> None:
    (row,) = rows_of((1, 28, 28), conv=CONV)
    assert (row.parameters, row.output_shape) == (520, (20, 24, 24))
    dense = rows_of((1, 28, 28), flatten="flatten", dense={"type": "linear", "out_features": 20 * 24 * 24})[-1]
    assert dense.parameters == 9_043_200


@pytest.mark.parametrize(
    ("stride", "size", "remark"),
    [(1, 5, ""), (2, 3, ""), (3, 2, "drops 1 row, 1 column")],  # (7 − 3)/3 + 1 = 2.33
)
def test_the_output_of_a_stride_and_what_it_drops(stride: int, size: int, remark: str) -> None:
    (row,) = rows_of((1, 7, 7), conv={"type": "conv", "out_channels": 1, "kernel_size": 3, "stride": stride})
    assert (row.output_shape, row.remark) == ((1, size, size), remark)


@pytest.mark.parametrize(("padding_value", "border_is_zero"), [(0.75, True), (0.0, False)])
def test_a_constant_image_shows_its_border_unless_it_is_padded_with_itself(
    padding_value: float, border_is_zero: bool
) -> None:
    border = {"padding": 1, "padding_mode": "constant", "padding_value": padding_value}
    response_HW = filtering(LAPLACE, (1, 6, 6), **border)(torch.full((1, 1, 6, 6), 0.75))[0, 0]
    assert response_HW[1:-1, 1:-1].eq(0).all()
    rim = torch.cat((response_HW[0], response_HW[-1], response_HW[:, 0], response_HW[:, -1]))
    assert rim.eq(0).all() if border_is_zero else rim.ne(0).all()


def test_the_receptive_fields_of_two_convolutions_and_poolings() -> None:
    rows = rows_of((1, 28, 28), **cp20_cp40("max_pool"))
    assert [row.receptive_field for row in rows] == ["5×5", "6×6", "14×14", "16×16"]


@pytest.mark.parametrize(("layers", "reach"), [(1, 5), (2, 6), (3, 14), (4, 16)])
def test_the_gradient_of_a_unit_reaches_as_far_as_its_field(layers: int, reach: int) -> None:
    """With weights of 1 and mean pooling, no path is cut off."""
    blocks = dict(list(cp20_cp40("avg_pool").items())[:layers])
    network = build_network((1, 28, 28), blocks, init={"type": "given", "weight": 1}).double()
    x_NCHW = torch.zeros(1, 1, 28, 28, dtype=torch.float64, requires_grad=True)
    network(x_NCHW)[0, 0, 1, 1].backward()
    assert x_NCHW.grad is not None
    rows, columns = x_NCHW.grad[0, 0].nonzero(as_tuple=True)
    assert len(rows) == reach**2
    assert rows.max() - rows.min() + 1 == columns.max() - columns.min() + 1 == reach
