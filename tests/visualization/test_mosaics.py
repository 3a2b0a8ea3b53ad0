import numpy as np
import pytest
import torch

from cnnlab.visualization.mosaics import COLUMNS, WIDTH, diverging, filters_mosaic, maps_mosaic, mosaic, pixels_of

GREY = np.full((8, 8, 3), 120, np.uint8)


def test_normalised_pixels_are_shown_as_they_were() -> None:
    x_CHW = torch.arange(12.0).view(3, 2, 2) * 20
    mean_C, sd_C = (10.0, 20.0, 30.0), (2.0, 3.0, 4.0)
    normalised = (x_CHW - torch.tensor(mean_C).view(3, 1, 1)) / torch.tensor(sd_C).view(3, 1, 1)
    assert (pixels_of(normalised, mean_C, sd_C) == x_CHW.permute(1, 2, 0).numpy()).all()


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_any_number_of_channels_has_an_image(channels: int) -> None:
    shown_HW3 = pixels_of(torch.full((channels, 4, 6), torch.nan), (0.0,) * channels, (1.0,) * channels)
    assert (shown_HW3.shape, shown_HW3.dtype) == ((4, 6, 3), np.uint8)


def test_the_scale_is_symmetric_white_at_zero_blue_below_and_red_above() -> None:
    least, negative, zero, positive, most = diverging(np.array([[-2.0, -1.0, 0.0, 1.0, 9.0]]), 2.0)[0].tolist()
    assert zero == [247, 247, 247]
    assert (least, most) == ([5, 48, 97], [103, 0, 31])
    assert negative[2] > negative[0]
    assert positive[0] > positive[2]


def test_a_mosaic_is_as_wide_as_tensorboard_shows_it_and_every_pixel_is_a_square() -> None:
    tile_HW3 = np.zeros((3, 3, 3), np.uint8)
    tile_HW3[1, 1] = (255, 0, 0)
    image_HW3 = mosaic("one", [tile_HW3] * COLUMNS, [["0"]] * COLUMNS)
    assert image_HW3.shape[1] == WIDTH
    red_HW = (image_HW3 == (255, 0, 0)).all(2)
    rows, columns = red_HW.any(1).sum(), red_HW.any(0).sum()
    assert columns == COLUMNS * rows
    assert red_HW.sum() == rows * columns


@pytest.mark.parametrize("name", ["<b>\x1b[31m" + 99 * "x", "", "猫\n犬"])
def test_any_name_is_drawn(name: str) -> None:
    assert mosaic(name, [GREY], [[name, name]]).shape[1] == WIDTH


def test_filters_and_maps_of_any_size_are_drawn() -> None:
    for image_HW3 in (
        filters_mosaic("conv1", torch.zeros(70, 3, 1, 1)),
        filters_mosaic("conv1", torch.randn(2, 5, 200, 3)),
        maps_mosaic("relu1", GREY, torch.zeros(40, 1, 2)),
        maps_mosaic("conv1", GREY, torch.tensor([torch.inf, -1.0, torch.nan, 2.0]).view(1, 2, 2)),
    ):
        assert image_HW3.shape[1] == WIDTH
