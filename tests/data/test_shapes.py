"""Drawn shapes: how many, the same each time, and recognisably what they are called."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cnnlab.data.shapes import SHAPES, Shapes
from cnnlab.runtime.errors import ArgumentError

SETTINGS: dict[str, Any] = {"size": 20, "train_count": 160, "test_count": 80, "thickness": (1, 3), "noise": 0.1}
SETTINGS["drawing_seed"] = 0


def drawn(split: str = "train", **changes: Any) -> tuple[Tensor, Tensor]:
    images = Shapes(**{**SETTINGS, **changes}).read(split)
    return images.x_NCHW, images.y_N


def of_class(name: str, **changes: Any) -> Tensor:
    """(N, height, width) in [0, 1], without noise."""
    x_NCHW, y_N = drawn(noise=0, **changes)
    return x_NCHW[y_N == list(SHAPES).index(name), 0] / 255


@pytest.mark.parametrize(("size", "shape"), [(20, (1, 20, 20)), ((12, 30), (1, 12, 30))])
def test_describe_agrees_with_read(size: Any, shape: tuple[int, int, int]) -> None:
    spec = Shapes(**{**SETTINGS, "size": size}).describe()
    for split, count in (("train", 160), ("test", 80)):
        x_NCHW, y_N = drawn(split, size=size)
        assert tuple(x_NCHW.shape) == (count, *shape)
        assert (spec.input_shape, spec.counts[split]) == (shape, count)
        assert y_N.bincount().tolist() == [count // 8] * spec.classes == [count // 8] * 8
    assert x_NCHW.dtype == torch.uint8


def test_what_is_drawn_follows_from_seed_and_split_alone() -> None:
    first = drawn()[0]
    torch.manual_seed(123)
    assert torch.equal(first, drawn()[0])
    assert not torch.equal(first, drawn(drawing_seed=1)[0])
    assert not torch.equal(first[:80], drawn("test")[0])


def test_more_images_leave_the_others_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    few = drawn(train_count=80)[0]
    assert torch.equal(drawn(train_count=160)[0][:80], few)
    monkeypatch.setattr("cnnlab.data.shapes.CHUNK", 7 * 20 * 20)
    assert torch.equal(drawn(train_count=160)[0][:80], few)


def test_noise_has_the_standard_deviation_that_is_asked_for() -> None:
    clean, noisy = (drawn(noise=noise)[0].double() / 255 for noise in (0, 0.05))
    between = (clean > 0.3) & (clean < 0.7)  # where neither black nor white cuts it off
    assert between.sum() > 5000
    assert (noisy - clean)[between].std().item() == pytest.approx(0.05, rel=0.05)
    assert (noisy - clean)[between].mean().item() == pytest.approx(0, abs=0.005)


def test_a_thicker_line_covers_more_in_proportion() -> None:
    thin, thick = (of_class("vertical_line", thickness=(width, width)).sum().item() for width in (2, 4))
    assert thick / thin == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize(
    ("name", "steeper"), [("vertical_edge", 2), ("horizontal_edge", 1), ("vertical_line", 2), ("horizontal_line", 1)]
)
def test_a_shape_changes_across_its_direction_and_not_along_it(name: str, steeper: int) -> None:
    images_NHW = of_class(name)
    change = {axis: images_NHW.diff(dim=axis).abs().sum().item() for axis in (1, 2)}
    assert change[steeper] > 3 * change[3 - steeper]


@pytest.mark.parametrize(("name", "sign"), [("falling_line", 1), ("rising_line", -1)])
def test_a_diagonal_goes_the_way_of_its_name(name: str, sign: int) -> None:
    for image_HW in of_class(name):
        rows, columns = (image_HW > 0.2).nonzero(as_tuple=True)
        covariance = torch.cov(torch.stack((rows, columns)).double())[0, 1].item()
        assert sign * covariance > 0


@pytest.mark.parametrize("name", ["corner", "curve"])
def test_a_corner_and_a_curve_are_not_straight(name: str) -> None:
    """The spread about the longest axis of a line of two pixels is far below a pixel; here it is not."""
    for image_HW in of_class(name, thickness=(2, 2), size=28):
        points = (image_HW > 0.2).nonzero().double()
        smallest = torch.linalg.eigvalsh(torch.cov(points.T))[0].item()
        assert smallest**0.5 > 1


@pytest.mark.parametrize("name", SHAPES)
def test_no_image_is_empty(name: str) -> None:
    assert of_class(name, size=8).amax((1, 2)).min() > 0.3


ILLEGAL = {
    "size": [(28, 7), 10**6],
    "train_count": [10**11],
    "test_count": [0],
    "thickness[1]": [(3, 1)],
    "noise": [-1],
}


@pytest.mark.parametrize(("argument", "value"), [(name, value) for name in ILLEGAL for value in ILLEGAL[name]])
def test_a_value_out_of_range_names_its_argument(argument: str, value: Any) -> None:
    with pytest.raises(ArgumentError) as caught:
        Shapes(**{**SETTINGS, argument.split("[")[0]: value})
    assert caught.value.argument == argument
