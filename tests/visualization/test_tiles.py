"""Tiles by what Matplotlib was asked to draw."""

import numpy as np
import torch

from cnnlab.visualization.tiles import MOST_COLUMNS, filters_figure, tiles_figure

TILES_THW = torch.arange(3 * 2 * 2, dtype=torch.float32).reshape(3, 2, 2) - 3


def test_each_tile_shows_its_own_values_under_its_caption() -> None:
    axes = tiles_figure(TILES_THW, "maps", ["a", "b", "c"]).axes
    for axis, tile, caption in zip(axes, TILES_THW, "abc", strict=False):
        np.testing.assert_array_equal(axis.images[0].get_array(), tile.numpy())
        assert axis.get_title() == caption


def test_all_tiles_are_on_one_scale() -> None:
    limits = {axis.images[0].get_clim() for axis in tiles_figure(TILES_THW, "maps").axes[:3]}
    assert limits == {(-3.0, 8.0)}


def test_zero_is_the_middle_of_a_signed_scale() -> None:
    assert tiles_figure(TILES_THW, "maps", signed=True).axes[0].images[0].get_clim() == (-8.0, 8.0)


def test_tiles_that_are_zero_everywhere_have_a_scale_too() -> None:
    low, high = tiles_figure(torch.zeros(1, 2, 2), "maps", signed=True).axes[0].images[0].get_clim()
    assert low < high


def test_more_tiles_than_fit_a_row_go_on_in_the_next() -> None:
    figure = tiles_figure(torch.zeros(MOST_COLUMNS + 1, 2, 2), "maps")
    rows = {round(axis.get_subplotspec().rowspan.start) for axis in figure.axes if axis.images}
    assert rows == {0, 1}


def test_a_filter_is_the_mean_over_the_channels_that_it_reads() -> None:
    weight_OIHW = torch.stack([torch.full((2, 3, 3), -1.0), torch.full((2, 3, 3), 2.0)])
    weight_OIHW[:, 1] += 1
    axes = filters_figure(weight_OIHW, "conv1").axes
    np.testing.assert_array_equal(axes[0].images[0].get_array(), np.full((3, 3), -0.5))
    np.testing.assert_array_equal(axes[1].images[0].get_array(), np.full((3, 3), 2.5))
