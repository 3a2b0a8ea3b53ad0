"""Each augmentation does what it says: a planted pixel lands where it was computed to land."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as TF

from cnnlab.data.augmentation import (
    AUGMENTATIONS,
    Affine,
    AlternatingFlip,
    Augment,
    Augmentation,
    Brightness,
    Contrast,
    Cutout,
    HorizontalFlip,
    RandomResizedCrop,
    Rotation,
    Shift,
)
from cnnlab.data.mixing import CutMix, Mixing, MixUp
from cnnlab.runtime.errors import ArgumentError
from cnnlab.runtime.randomness import uniforms


def planted(row: int, column: int, size: int = 9, channels: int = 1) -> Tensor:
    x_NCHW = torch.zeros(1, channels, size, size)
    x_NCHW[:, :, row, column] = 200
    return x_NCHW


def bright(x_NCHW: Tensor) -> list[tuple[int, int]]:
    return [(int(row), int(column)) for row, column in x_NCHW[0, 0].nonzero()]


def numbers(*values: float) -> Tensor:
    return torch.tensor([values])


FIRST = torch.tensor(0)  # turn: each image comes for the first time
SINGLE = [name for name in AUGMENTATIONS if name not in ("mixup", "cutmix")]  # those that change image by image


def with_defaults(name: str) -> Augmentation:
    made = AUGMENTATIONS[name](**({"size": 3} if name == "cutout" else {}))
    assert not isinstance(made, Mixing)
    return made


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


@pytest.mark.parametrize(
    ("u", "moved"),
    [((0.9, 0.5, 0.5), (0, 0)), ((0.1, 0.2, 0.9), (2, -1)), ((0.4, 0.9, 0.1), (-3, 3)), ((0.5, 0.1, 0.5), (0, 1))],
)
def test_affine_equals_torchvisions(u: tuple[float, float, float], moved: tuple[int, int]) -> None:
    x_NCHW = torch.rand(1, 3, 12, 12)
    places = [0.5 + pixels / (2 * 0.25 * 12) for pixels in moved]
    ours = Affine(40.0, 0.25, (0.7, 1.4), 20.0)(x_NCHW, numbers(*u, *places), FIRST)
    turn, shear, scale = 40 - 80 * u[0], 20 - 40 * u[1], 0.7 + u[2] * 0.7  # torchvision turns clockwise
    right_down, bilinear = [moved[1], moved[0]], TF.InterpolationMode.BILINEAR
    theirs = TF.affine(x_NCHW, turn, right_down, scale, [shear, 0.0], bilinear)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_quarter_turn_is_rot90() -> None:
    x_NCHW = torch.rand(2, 1, 7, 7)
    turned = Rotation(degrees=90)(x_NCHW, torch.ones(2, 5), FIRST)
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


def test_cutout_paints_a_square_about_the_drawn_pixel_cut_at_the_edges() -> None:
    painted = Cutout(size=3, fill=9)(torch.ones(1, 2, 8, 8), numbers(0.5, 0.25), FIRST)
    assert (painted[0] == 9).sum() == 2 * 9
    assert (painted[0, :, 3:6, 1:4] == 9).all()
    at_the_edge = Cutout(size=4, fill=9)(torch.ones(1, 1, 8, 8), numbers(0.0, 0.99), FIRST)
    assert (at_the_edge[0, 0, :2, 5:] == 9).all()
    assert (at_the_edge == 9).sum() == 6


def test_brightness_multiplies_and_contrast_stretches_about_the_mean_within_the_range() -> None:
    x_NCHW = torch.tensor([[[[100.0, 240.0]]]])
    assert Brightness(0.5)(x_NCHW, numbers(1.0), FIRST).flatten().tolist() == [150, 255]
    assert Brightness(0.5)(x_NCHW, numbers(0.0), FIRST).flatten().tolist() == [50, 120]
    x_NCHW = torch.tensor([[[[100.0, 140.0]]]])
    assert Contrast(0.5)(x_NCHW, numbers(1.0), FIRST).flatten().tolist() == [90, 150]
    assert Contrast(1.0)(x_NCHW, numbers(0.0), FIRST).flatten().tolist() == [120, 120]


@pytest.mark.parametrize("name", SINGLE)
def test_an_image_is_changed_out_of_place_and_the_same_way_in_whatever_batch(name: str) -> None:
    augmentation = with_defaults(name)
    x_NCHW = torch.rand(20, 3, 10, 10) * 255
    before, u_ND = x_NCHW.clone(), uniforms(2, torch.arange(20), augmentation.draws)
    whole = augmentation(x_NCHW, u_ND, FIRST)
    assert torch.equal(x_NCHW, before)
    assert whole.shape == x_NCHW.shape
    assert (whole != x_NCHW).flatten(1).any(1).sum() >= 4
    torch.testing.assert_close(augmentation(x_NCHW[4:5], u_ND[4:5], FIRST), whole[4:5], rtol=1e-6, atol=1e-4)


ILLEGAL: dict[str, list[tuple[str, Any]]] = {
    "horizontal_flip": [("p", 1.5)],
    "shift": [("pixels", 0), ("padding_mode", "mirror"), ("padding_value", 256)],
    "affine": [("degrees", 200), ("scale", (1.2, 0.8)), ("shear", 90)],
    "random_resized_crop": [("scale", (0.5, 1.5))],
    "cutout": [("size", 0)],
    "contrast": [("amount", math.nan)],
}


@pytest.mark.parametrize(("name", "given"), [(name, given) for name in ILLEGAL for given in ILLEGAL[name]])
def test_a_value_out_of_range_is_refused_by_its_name(name: str, given: tuple[str, Any]) -> None:
    with pytest.raises(ArgumentError) as caught:
        AUGMENTATIONS[name](**dict([given]))
    assert caught.value.argument == given[0]


@pytest.mark.parametrize(("augmentation", "argument"), [(Shift(pixels=8), "pixels"), (Cutout(size=9), "size")])
def test_what_does_not_fit_the_image_is_refused(augmentation: Augmentation, argument: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        augmentation.check((1, 8, 8))
    assert caught.value.argument == argument
    augmentation.check((1, 9, 9))


STEPS = {"flip": HorizontalFlip(), "shift": Shift(2), "turn": Rotation(20), "cut": Cutout(3), "light": Brightness(0.3)}


def test_a_name_gives_an_augmentation_numbers_of_its_own() -> None:
    x_NCHW, y_N, index_N = torch.rand(40, 1, 6, 6) * 255, torch.zeros(40, dtype=torch.int64), torch.arange(40)
    one, _ = Augment({"a": HorizontalFlip()}, 2, seed=0)(x_NCHW, y_N, index_N, FIRST, 0, 0)
    other, _ = Augment({"b": HorizontalFlip()}, 2, seed=0)(x_NCHW, y_N, index_N, FIRST, 0, 0)
    assert not torch.equal(one, other)
    both, _ = Augment({"x": Brightness(0), "a": HorizontalFlip()}, 2, seed=0)(x_NCHW, y_N, index_N, FIRST, 0, 0)
    torch.testing.assert_close(both, one)  # what stands before it takes nothing away from it


@pytest.mark.parametrize("changed", [{"seed": 1}, {"turn": 1}])
def test_another_seed_or_turn_gives_other_images(changed: dict[str, int]) -> None:
    def augmented(seed: int = 0, turn: int = 0) -> Tensor:
        x_NCHW = torch.arange(30 * 36.0).reshape(30, 1, 6, 6) % 256
        y_N = torch.zeros(30, dtype=torch.int64)
        return Augment(STEPS, 2, seed)(x_NCHW, y_N, torch.arange(30), torch.full((30,), turn), 0, 0)[0]

    assert torch.equal(augmented(), augmented())
    assert not torch.equal(augmented(), augmented(**changed))


def test_mixing_makes_class_indices_into_probabilities_other_ones_in_each_batch() -> None:
    x_NCHW, y_N = torch.rand(8, 1, 6, 6), torch.arange(8) % 3
    mix = Augment({"mix": MixUp(), "cut": CutMix()}, 3, seed=0)
    (one, target_NK), (same, _), (other, _) = (mix(x_NCHW, y_N, torch.arange(8), FIRST, 0, n) for n in (0, 0, 1))
    assert target_NK.shape == (8, 3)
    torch.testing.assert_close(target_NK.sum(1), torch.ones(8))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
