"""Images that are nearly the same are found, and no others."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cnnlab.data.near_duplicates import SIDE, correlation, near_duplicates, thumbnails


def scenes(count: int, side: int = 64) -> Tensor:
    """(N, 3, side, side) uint8: sums of random waves, less of the short ones, as in photographs."""
    generator = torch.Generator().manual_seed(0)
    place = (torch.arange(side) + 0.5) * math.pi / side
    waves_KS = torch.cos(torch.arange(12)[:, None] * place)
    falling_KK = 1 / (1 + torch.arange(12)[:, None] + torch.arange(12))
    amount_N3KK = torch.randn(count, 3, 12, 12, generator=generator) * falling_KK
    x_N3SS = waves_KS.T @ amount_N3KK @ waves_KS
    return (127 + 60 * x_N3SS / x_N3SS.std((1, 2, 3), keepdim=True)).clamp(0, 255).byte()


def changed(image: Image.Image, how: str) -> Image.Image:
    width, height = image.size
    if how == "compressed":
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=60)
        return Image.open(buffer)
    if how == "resized":
        return image.resize((round(0.9 * width), round(0.9 * height)), Image.Resampling.BICUBIC)
    if how == "cropped":
        return image.crop((round(0.05 * width), 0, width, round(0.95 * height)))
    return image.point(lambda level: 0.8 * level + 30)


def as_image(x_CHW: Tensor) -> Image.Image:
    return Image.fromarray(x_CHW.permute(1, 2, 0).numpy())


def thumbnail_of(image: Image.Image) -> Tensor:
    return thumbnails(torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)[None])


def test_copies_are_found_whatever_was_done_to_them_and_nothing_else_is() -> None:
    x_NCHW = scenes(300)
    ways = ("compressed", "resized", "cropped", "brighter")
    copies = [thumbnail_of(changed(as_image(x_NCHW[row]), ways[row % 4])) for row in range(40)]
    pairs_P2 = near_duplicates(torch.cat([thumbnails(x_NCHW), *copies]))
    assert pairs_P2.tolist() == [[row, 300 + row] for row in range(40)]


def test_the_images_of_one_seed_give_the_same_pairs() -> None:
    grey_NHW = thumbnails(scenes(50)).repeat(2, 1, 1)
    assert near_duplicates(grey_NHW).equal(near_duplicates(grey_NHW))


@pytest.mark.parametrize("count", [1, 2, 40])
def test_images_without_contrast_have_no_near_duplicates(count: int) -> None:
    assert near_duplicates(torch.full((count, SIDE, SIDE), 7, dtype=torch.uint8)).shape == (0, 2)


def test_an_image_moved_by_two_pixels_correlates_and_another_does_not() -> None:
    x_NHW = thumbnails(scenes(2, side=36)).float()
    wide_HW = torch.nn.functional.interpolate(x_NHW[:1, None], (36, 36), mode="bicubic")[0, 0]
    here_HW, there_HW = wide_HW[2:34, :32], wide_HW[:32, 2:34]
    assert correlation(here_HW[None], there_HW[None]).item() > 0.995
    assert np.corrcoef(here_HW.flatten(), there_HW.flatten())[0, 1] < 0.98  # unaligned
    assert correlation(x_NHW[:1], x_NHW[1:]).item() < 0.9


def test_a_thumbnail_weighs_red_green_and_blue() -> None:
    x_NCHW = torch.tensor([100, 200, 50], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 40, 20)
    assert thumbnails(x_NCHW).unique().tolist() == [round(0.299 * 100 + 0.587 * 200 + 0.114 * 50)]
