"""Tiles by what Matplotlib was asked to draw."""

import numpy as np
import torch

from cnnlab.visualization.tiles import (
    MOST_COLUMNS,
    filters_figure,
    images_figure,
    maps_figure,
    tiles_figure,
)

TILES_THW = torch.arange(3 * 2 * 2, dtype=torch.float32).reshape(3, 2, 2) - 3


def test_each_tile_shows_its_own_values_under_its_caption_on_one_scale() -> None:
    axes = tiles_figure(TILES_THW, "maps", ["a", "b", "c"], label="volt").axes
    for axis, tile, caption in zip(axes[:3], TILES_THW, "abc", strict=True):
        np.testing.assert_array_equal(axis.images[0].get_array(), tile.numpy())
        assert axis.get_title() == caption
        assert axis.images[0].get_clim() == (-3.0, 8.0)
    assert axes[3].get_ylabel() == "volt"


def test_zero_is_the_middle_of_a_signed_scale_even_of_nothing_but_zeros() -> None:
    for tiles_THW, limits in ((TILES_THW, (-8.0, 8.0)), (torch.zeros(1, 2, 2), (-1.0, 1.0))):
        assert tiles_figure(tiles_THW, "maps", signed=True).axes[0].images[0].get_clim() == limits


def test_more_tiles_than_fit_a_row_continue_in_the_next() -> None:
    figure = tiles_figure(torch.zeros(MOST_COLUMNS + 1, 2, 2), "maps")
    rows = {round(axis.get_subplotspec().rowspan.start) for axis in figure.axes if axis.images}
    assert rows == {0, 1}


def test_a_filter_is_the_mean_over_the_channels_that_it_reads() -> None:
    weight_OIHW = torch.stack([torch.full((2, 3, 3), -1.0), torch.full((2, 3, 3), 2.0)])
    weight_OIHW[:, 1] += 1
    axes = filters_figure(weight_OIHW, "conv1").axes
    np.testing.assert_array_equal(axes[0].images[0].get_array(), np.full((3, 3), -0.5))
    np.testing.assert_array_equal(axes[1].images[0].get_array(), np.full((3, 3), 2.5))


MAPS_CHW = torch.tensor([[[0.0, 2.0, 1.0], [0.5, 0.0, 0.25]], [[0.0, 0.0, 0.0], [3.0, 1.0, 1.0]]])


def test_maps_on_one_scale_follow_their_image_with_the_place_of_their_peak() -> None:
    image_CHW = torch.arange(16).reshape(1, 4, 4)
    axes = maps_figure(image_CHW, MAPS_CHW, "conv1").axes
    np.testing.assert_array_equal(axes[0].images[0].get_array(), image_CHW[0])
    for axis, map_HW in zip(axes[1:3], MAPS_CHW, strict=True):
        np.testing.assert_array_equal(axis.images[0].get_array(), map_HW)
    assert [axis.get_title() for axis in axes[:3]] == ["image\n", "0: 2\nat 0, 1", "1: 3\nat 1, 0"]
    assert [axis.images[0].get_clim() for axis in axes[:3]] == [(0, 255), (0, 3), (0, 3)]
    assert axes[1].images[0].get_cmap().name == "gray"
    assert axes[3].get_ylabel() == "activation"


def test_maps_with_values_below_zero_are_blue_white_and_red() -> None:
    image = maps_figure(torch.zeros(1, 4, 4), MAPS_CHW - 4, "conv1").axes[1].images[0]
    assert image.get_clim() == (-4, 4)
    assert image.get_cmap().name == "RdBu_r"


def test_three_channels_are_shown_in_colour_and_a_weight_of_zero_in_grey() -> None:
    x_NCHW = torch.tensor([255.0, 51.0, 0.0])[None, :, None, None].expand(1, 3, 2, 2)
    shown_HWC = images_figure(x_NCHW, "images").axes[0].images[0].get_array()
    np.testing.assert_allclose(shown_HWC, np.broadcast_to([1, 0.2, 0], (2, 2, 3)))
    weight_OIHW = torch.tensor([[0.0, 0.0, 0.0], [-2.0, 1.0, 0.0]])[:, :, None, None]
    axes = filters_figure(weight_OIHW, "conv1", colour=True).axes
    np.testing.assert_allclose(axes[0].images[0].get_array(), np.full((1, 1, 3), 0.5))
    np.testing.assert_allclose(axes[1].images[0].get_array(), [[[0, 0.75, 0.5]]])


def test_captions_of_64_maps_stand_above_them_and_do_not_overlap() -> None:
    maps_CHW = -1.2345e-5 * torch.arange(64 * 784).reshape(64, 28, 28)
    figure = maps_figure(torch.zeros(1, 28, 28), maps_CHW, "conv2: response to image 0")
    figure.draw_without_rendering()
    assert all(
        a.y0 >= b.y1 for a, b in ((x.title.get_window_extent(), x.get_window_extent()) for x in figure.axes[:65])
    )
    boxes = [axis.title.get_window_extent() for axis in figure.axes if axis.get_title()]
    assert len(boxes) == 65
    assert not any(a.overlaps(b) for place, a in enumerate(boxes) for b in boxes[:place])
