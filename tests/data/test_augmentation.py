"""What all augmentations have in common: one image's result is its own, and wrong values are refused."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cnnlab.data.augmentation import (
    AUGMENTATIONS,
    Augment,
    Augmentation,
    Brightness,
    Cutout,
    HorizontalFlip,
    Rotation,
    Shift,
)
from cnnlab.data.mixing import CutMix, Mixing, MixUp
from cnnlab.runtime.errors import ArgumentError

FIRST = torch.tensor(0)  # turn: each image comes for the first time
SINGLE = [name for name in AUGMENTATIONS if name not in ("mixup", "cutmix")]  # those that change image by image


NEEDED: dict[str, dict[str, Any]] = {
    "cutout": {"size": 3},
    "random_crop": {"padding": 2},
    "random_affine": {"degrees": 30},
    "random_rotation": {"degrees": 30},
    "color_jitter": {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.1},
    "random_grayscale": {"p": 0.5},
}


def with_defaults(name: str) -> Augmentation:
    made = AUGMENTATIONS[name](**NEEDED.get(name, {}))
    assert not isinstance(made, Mixing)
    return made


def smooth_images(count: int, channels: int) -> Tensor:
    rows, columns = torch.arange(10.0)[:, None], torch.arange(9.0)
    return (rows * 13 + columns * 7 + torch.arange(count * channels).reshape(count, channels, 1, 1) * 5) % 256


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SINGLE)
def test_an_image_is_changed_out_of_place_and_the_same_way_in_whatever_batch(name: str, channels: int) -> None:
    augment = Augment({"a": with_defaults(name)}, 2, seed=0)
    x_NCHW, index_N, y_N = smooth_images(40, channels), torch.arange(40), torch.zeros(40, dtype=torch.int64)
    before, turn_N = x_NCHW.clone(), torch.full((40,), 3)
    whole, _ = augment(x_NCHW, y_N, index_N, turn_N, 3, 0)
    assert torch.equal(x_NCHW, before)
    assert whole.shape == x_NCHW.shape
    if (name, channels) != ("random_grayscale", 1):
        assert (whole != x_NCHW).flatten(1).any(1).sum() >= 8
    others = torch.randperm(40)[:7]
    for given in (x_NCHW[others], x_NCHW[others].to(memory_format=torch.channels_last)):
        part, _ = augment(given, y_N[others], index_N[others], turn_N[others], 3, 5)
        torch.testing.assert_close(part, whole[others], rtol=1e-6, atol=1e-4)


ILLEGAL: dict[str, list[tuple[str, Any]]] = {
    "horizontal_flip": [("p", 1.5)],
    "random_vertical_flip": [("p", -0.1)],
    "random_crop": [("padding", 0), ("padding_mode", "edge"), ("fill", (1.0, -1.0))],
    "shift": [("pixels", 0), ("padding_mode", "mirror"), ("padding_value", 256)],
    "affine": [("degrees", 200), ("scale", (1.2, 0.8)), ("shear", 90)],
    "random_affine": [
        ("degrees", -5),
        ("degrees", (20, 10)),
        ("translate", (0.1, 1.5)),
        ("scale", (0, 1)),
        ("shear", (0, 5, 0, 90)),
        ("interpolation", "bicubic"),
    ],
    "random_rotation": [("degrees", (0, 200)), ("fill", 300)],
    "random_resized_crop": [("scale", (0.5, 1.5))],
    "cutout": [("size", 0)],
    "random_erasing": [("p", 2), ("scale", (0.3, 0.02)), ("scale", (0, 1.1)), ("ratio", (3.3, 0.3)), ("value", "mean")],
    "color_jitter": [("brightness", -1), ("contrast", (2, 1)), ("saturation", (-1, 1)), ("hue", 0.6)],
    "random_grayscale": [("p", 1.1)],
    "gaussian_noise": [("sigma", -0.1), ("mean", 2)],
    "contrast": [("amount", math.nan)],
}


@pytest.mark.parametrize(("name", "given"), [(name, given) for name in ILLEGAL for given in ILLEGAL[name]])
def test_a_value_out_of_range_is_refused_by_its_name(name: str, given: tuple[str, Any]) -> None:
    with pytest.raises(ArgumentError) as caught:
        AUGMENTATIONS[name](**{**NEEDED.get(name, {}), **dict([given])})
    assert caught.value.argument == given[0]


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
