"""The image of a confusion matrix, by what Matplotlib was asked to draw."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from cnnlab.visualization.confusion import MOST_NAMES, MOST_NUMBERS, confusion_figure, pixels

MATRIX_KK = torch.tensor([[1234, 0, 6], [2, 7, 1], [0, 0, 0]])
NAMES = ("cat", "dog", "eel")


def drawn(matrix_KK: Tensor = MATRIX_KK, names: tuple[str, ...] = NAMES) -> Figure:
    return confusion_figure(matrix_KK, names, "test split")


def diagonal(classes: int) -> Figure:
    return drawn(torch.eye(classes, dtype=torch.int64), tuple(f"class {k}" for k in range(classes)))


def test_each_count_stands_in_its_cell_and_zeros_are_left_out() -> None:
    # a text's place is (column, row): prediction, then label
    found = {text.get_position(): text.get_text() for text in drawn().axes[0].texts}
    assert found == {(0, 0): "1,234", (2, 0): "6", (0, 1): "2", (1, 1): "7", (2, 1): "1"}


def test_the_colour_is_the_fraction_of_the_labels_images() -> None:
    (image,) = drawn().axes[0].images
    np.testing.assert_allclose(image.get_array(), [[1234 / 1240, 0, 6 / 1240], [0.2, 0.7, 0.1], [0, 0, 0]])
    assert (image.norm.vmin, image.norm.vmax) == (0, 1)


def test_a_count_is_white_on_dark_cells() -> None:
    figure = drawn()
    (image,) = figure.axes[0].images
    for text in figure.axes[0].texts:
        column, row = text.get_position()
        darkness = 1 - np.mean(image.cmap(image.norm(image.get_array()[int(row), int(column)]))[:3])
        contrast = abs(np.mean(to_rgb(text.get_color())) - (1 - darkness))
        assert contrast > 0.4, (row, column)


def test_the_axes_say_which_is_which() -> None:
    axes = drawn().axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("prediction", "label", "test split")
    assert [label.get_text() for label in axes.get_xticklabels()] == list(NAMES)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(NAMES)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first label is at the top


def test_many_classes_have_no_numbers_and_very_many_no_names() -> None:
    assert [len(diagonal(count).axes[0].texts) for count in (MOST_NUMBERS, MOST_NUMBERS + 1)] == [MOST_NUMBERS, 0]
    many, very_many = diagonal(MOST_NAMES), diagonal(MOST_NAMES + 1)
    assert diagonal(2).get_figheight() < many.get_figheight() == very_many.get_figheight() <= 15
    for figure, named in ((many, True), (very_many, False)):
        figure.draw_without_rendering()
        assert ("class 7" in [label.get_text() for label in figure.axes[0].get_yticklabels()]) is named


@pytest.mark.parametrize("names", [("a$b$", "$\\foo$", "<b>&")])
def test_names_are_shown_as_they_are(names: tuple[str, ...]) -> None:
    figure = drawn(names=names)
    pixels(figure)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == list(names)


def test_pixels_are_those_of_the_saved_file(tmp_path: Path) -> None:
    drawn().savefig(tmp_path / "matrix.png", dpi=60)
    saved_HWC = np.asarray(Image.open(tmp_path / "matrix.png").convert("RGB"))
    assert pixels(drawn(), dpi=60).dtype == np.uint8
    assert np.array_equal(pixels(drawn(), dpi=60), saved_HWC)
