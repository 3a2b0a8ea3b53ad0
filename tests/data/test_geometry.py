"""Pixels land where they were computed to land, and where torchvision's functions put them for the same draw."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from cnnlab.data.geometry import (
    Affine,
    AlternatingFlip,
    HorizontalFlip,
    RandomAffine,
    RandomCrop,
    RandomResizedCrop,
    RandomRotation,
    Rotation,
    Shift,
    VerticalFlip,
)
from cnnlab.data.per_image import Augmentation
from cnnlab.runtime.errors import ArgumentError
from cnnlab.runtime.randomness import uniforms

FIRST = torch.tensor(0)  # turn: each image comes for the first time


def planted(row: int, column: int, size: int = 9, channels: int = 1) -> Tensor:
    x_NCHW = torch.zeros(1, channels, size, size)
    x_NCHW[:, :, row, column] = 200
    return x_NCHW


def bright(x_NCHW: Tensor) -> list[tuple[int, int]]:
    return [(int(row), int(column)) for row, column in x_NCHW[0, 0].nonzero()]


def numbers(*values: float) -> Tensor:
    return torch.tensor([values])


def test_a_flip_mirrors_where_the_number_is_below_p() -> None:
    flip = HorizontalFlip(p=0.3)
    assert bright(flip(planted(2, 1), numbers(0.29), FIRST)) == [(2, 7)]
    assert bright(flip(planted(2, 1), numbers(0.31), FIRST)) == [(2, 1)]


def test_alternating_flips_show_both_sides_in_any_two_turns() -> None:
    u_ND = uniforms(3, torch.arange(50), 1)
    x_NCHW = torch.rand(50, 1, 4, 4)
    shown = [AlternatingFlip()(x_NCHW, u_ND, torch.full((50,), turn)) for turn in range(4)]
    for before, after in pairwise(shown):
        torch.testing.assert_close(after, before.flip(3))
    mirrored = (shown[0] != x_NCHW).flatten(1).any(1).sum()
    assert 10 < mirrored < 40


@pytest.mark.parametrize(("number", "moved"), [(0.0, -2), (0.19, -2), (0.21, -1), (0.5, 0), (0.99, 2)])
def test_a_shift_moves_by_whole_pixels_and_brings_in_the_padding_value(number: float, moved: int) -> None:
    shift = Shift(pixels=2, padding_mode="constant")
    assert bright(shift(planted(4, 3), numbers(number, 0.5), FIRST)) == [(4 + moved, 3)]
    assert bright(shift(planted(4, 3), numbers(0.5, number), FIRST)) == [(4, 3 + moved)]
    filled = Shift(pixels=2, padding_mode="constant", padding_value=7)(
        torch.ones(1, 2, 9, 9), numbers(number, 0.5), FIRST
    )
    assert filled.eq(7).sum() == 2 * 9 * abs(moved)


def test_a_reflecting_shift_is_a_window_of_the_reflected_image() -> None:
    x_NCHW = torch.rand(6, 3, 8, 5)
    u_ND = uniforms(1, torch.arange(6), 2)
    shifted = Shift(pixels=3)(x_NCHW, u_ND, FIRST)
    padded = torch.nn.functional.pad(x_NCHW, (3, 3, 3, 3), mode="reflect")
    for n, (down, right) in enumerate((u_ND * 7).long().tolist()):
        window = padded[n, :, 6 - down : 14 - down, 6 - right : 11 - right]
        torch.testing.assert_close(shifted[n], window)


@pytest.mark.parametrize(("padding_mode", "fill"), [("constant", (7.0, 0.0, 9.0)), ("constant", 5.0), ("reflect", 0.0)])
def test_a_random_crop_is_torchvisions(padding_mode: str, fill: float | tuple[float, ...]) -> None:
    x_NCHW = torch.rand(6, 3, 8, 5) * 255
    u_ND = uniforms(1, torch.arange(6), 2)
    cropped = RandomCrop(3, fill, padding_mode)(x_NCHW, u_ND, FIRST)
    padded = TF.pad(x_NCHW, [3], fill=fill, padding_mode=padding_mode)
    for n, (down, right) in enumerate((u_ND * 7).long().tolist()):
        assert torch.equal(cropped[n], TF.crop(padded[n], 6 - down, 6 - right, 8, 5))


@pytest.mark.parametrize("fill", [0.0, 80.0, (80.0, 0.0, 7.0)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_a_random_affine_is_torchvisions(interpolation: str, fill: float | tuple[float, ...]) -> None:
    x_NCHW = torch.rand(12, 3, 12, 9) * 255
    u_ND = uniforms(4, torch.arange(12), 6)
    affine = RandomAffine((-20, 90), (0.2, 0.4), (0.7, 1.4), (-10, 20, -30, 0), interpolation, fill)
    ours = affine(x_NCHW, u_ND, FIRST)
    for x_CHW, our_CHW, (angle, shear_x, scale, down, right, shear_y) in zip(x_NCHW, ours, u_ND.tolist(), strict=True):
        moved = [(2 * right - 1) * 0.2 * 9, (2 * down - 1) * 0.4 * 12]
        sheared = [-10 + 30 * shear_x, -30 + 30 * shear_y]
        mode = TF.InterpolationMode(interpolation)
        # torchvision's kernel for tensors weighs pixels at the border twice where there is a fill: images are
        # measured from it here instead, so that what is outside is zero
        around = torch.tensor(fill).reshape(-1, 1, 1)
        theirs = TF.affine(x_CHW - around, -20 + 110 * angle, moved, 0.7 + 0.7 * scale, sheared, mode) + around
        torch.testing.assert_close(our_CHW, theirs, atol=0.01, rtol=0)


def test_affine_is_a_bilinear_random_affine() -> None:
    x_NCHW, u_ND = torch.rand(5, 1, 12, 9) * 255, uniforms(4, torch.arange(5), 6)
    same = RandomAffine(40, (0.25, 0.25), (0.7, 1.4), 20, "bilinear")
    assert torch.equal(Affine(40, 0.25, (0.7, 1.4), 20)(x_NCHW, u_ND, FIRST), same(x_NCHW, u_ND, FIRST))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_a_random_rotation_is_torchvisions(interpolation: str) -> None:
    x_NCHW, u_ND = torch.rand(6, 3, 12, 9) * 255, uniforms(4, torch.arange(6), 6)
    ours = RandomRotation((-20, 70), interpolation)(x_NCHW, u_ND, FIRST)
    for x_CHW, our_CHW, u in zip(x_NCHW, ours, u_ND[:, 0].tolist(), strict=True):
        theirs = TF.rotate(x_CHW, -20 + 90 * u, TF.InterpolationMode(interpolation))
        torch.testing.assert_close(our_CHW, theirs, atol=0.01, rtol=0)


def test_a_quarter_turn_is_rot90() -> None:
    x_NCHW = torch.rand(2, 1, 7, 7)
    turned = Rotation(degrees=90)(x_NCHW, torch.ones(2, 6), FIRST)
    torch.testing.assert_close(turned, x_NCHW.rot90(1, (2, 3)), atol=1e-5, rtol=0)


def test_a_resized_crop_of_a_quarter_is_a_corner_enlarged() -> None:
    x_NCHW = torch.rand(1, 1, 8, 8)
    corner = RandomResizedCrop(scale=(0.25, 0.25), ratio=(1.0, 1.0))(x_NCHW, numbers(0.5, 0.5, 0.0, 0.0), FIRST)
    expected = torch.nn.functional.interpolate(x_NCHW[:, :, :4, :4], scale_factor=2, mode="bilinear")
    torch.testing.assert_close(corner[:, :, :-1, :-1], expected[:, :, :-1, :-1])


def test_the_ratio_of_a_resized_crop_is_that_of_its_sides_in_pixels() -> None:
    x_NCHW = torch.arange(8.0)[:, None] * 100 + torch.arange(16.0)  # 8×16: 100 a row, 1 a column
    square = RandomResizedCrop(scale=(0.5, 0.5), ratio=(1.0, 1.0))(
        x_NCHW[None, None], numbers(0.5, 0.5, 0.0, 0.0), FIRST
    )
    # √(0.5·8·16) = 8 on each side: all 8 rows at their own size, the first 8 columns stretched to 16
    torch.testing.assert_close(square[0, 0, :, 0].diff(), torch.full((7,), 100.0))
    torch.testing.assert_close(square[0, 0, 0, 1:-1].diff(), torch.full((13,), 0.5))


@pytest.mark.parametrize("flip", [HorizontalFlip, VerticalFlip])
def test_flips_come_as_often_as_p_says(flip: type[HorizontalFlip | VerticalFlip]) -> None:
    count, p = 20_000, 0.3
    x_NCHW = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).expand(count, 1, 2, 2)
    flipped = flip(p)(x_NCHW, uniforms(5, torch.arange(count), 1), FIRST)[:, 0, 0, 0] != 0
    assert abs(int(flipped.sum()) - count * p) < 5 * (count * p * (1 - p)) ** 0.5  # five standard deviations


def test_a_vertical_flip_is_torchvisions() -> None:
    x_NCHW = torch.rand(2, 3, 5, 4)
    flipped = VerticalFlip(p=0.5)(x_NCHW, torch.tensor([[0.4], [0.6]]), FIRST)
    assert torch.equal(flipped, torch.stack([TF.vertical_flip(x_NCHW[0]), x_NCHW[1]]))


@pytest.mark.parametrize(
    ("augmentation", "argument"),
    [(Shift(pixels=8), "pixels"), (RandomCrop(8), "padding"), (RandomAffine(5, fill=(1, 2)), "fill")],
)
def test_what_does_not_fit_the_image_is_refused(augmentation: Augmentation, argument: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        augmentation.check((1, 8, 8))
    assert caught.value.argument == argument
    augmentation.check((2, 9, 9))
