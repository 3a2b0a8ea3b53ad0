"""Colours change as torchvision's functions change them for the same draw."""

from itertools import permutations
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from cnnlab.data.color import Brightness, ColorJitter, Contrast, GaussianNoise, RandomGrayscale
from cnnlab.runtime.errors import ArgumentError, ConfigError
from cnnlab.runtime.randomness import uniforms

FIRST = torch.tensor(0)
TOLERANCE = 0.01  # of 255: the functions compute in 0…1 here, so they round in other places
FUNCTIONS: dict[str, Any] = {
    "brightness": TF.adjust_brightness,
    "contrast": TF.adjust_contrast,
    "saturation": TF.adjust_saturation,
    "hue": TF.adjust_hue,
}


def images(channels: int, count: int = 24) -> Tensor:
    """Noise with grey, black, white and evenly coloured pixels in it."""
    x_NCHW = torch.rand(count, channels, 6, 7, generator=torch.Generator().manual_seed(0)) * 255
    x_NCHW[:, :, 0, 0], x_NCHW[:, :, 0, 1], x_NCHW[:, :, 0, 2] = 77, 0, 255
    x_NCHW[:, :1, 0, 3:] = x_NCHW[:, -1:, 0, 3:]  # two channels share the brightest or the darkest value
    return x_NCHW


def test_brightness_multiplies_and_contrast_stretches_about_the_mean_within_the_range() -> None:
    x_NCHW = torch.tensor([[[[100.0, 240.0]]]])
    assert Brightness(0.5)(x_NCHW, torch.ones(1, 1), FIRST).flatten().tolist() == [150, 255]
    assert Brightness(0.5)(x_NCHW, torch.zeros(1, 1), FIRST).flatten().tolist() == [50, 120]
    x_NCHW = torch.tensor([[[[100.0, 140.0]]]])
    assert Contrast(0.5)(x_NCHW, torch.ones(1, 1), FIRST).flatten().tolist() == [90, 150]
    assert Contrast(1.0)(x_NCHW, torch.zeros(1, 1), FIRST).flatten().tolist() == [120, 120]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "interval"), [*((name, (0.2, 2.5)) for name in FUNCTIONS if name != "hue"), ("hue", (-0.5, 0.5))]
)
def test_each_adjustment_is_torchvisions(name: str, interval: tuple[float, float], channels: int) -> None:
    x_NCHW, u_ND = images(channels), uniforms(7, torch.arange(24), 5)
    ours = ColorJitter(**{name: interval})(x_NCHW, u_ND, FIRST)
    factor_N = interval[0] + u_ND[:, list(FUNCTIONS).index(name)] * (interval[1] - interval[0])
    for x_CHW, our_CHW, factor in zip(x_NCHW, ours, factor_N.tolist(), strict=True):
        theirs = FUNCTIONS[name](x_CHW / 255, factor) * 255
        torch.testing.assert_close(our_CHW, theirs, atol=TOLERANCE, rtol=0)


def test_each_of_the_24_orders_is_torchvisions() -> None:
    x_NCHW, u_ND = images(3), torch.rand(24, 5)
    u_ND[:, 4] = (torch.arange(24) + 0.5) / 24
    factors = {"brightness": 1.4, "contrast": 1.7, "saturation": 0.3, "hue": 0.2}
    ours = ColorJitter(**{name: (factor, factor) for name, factor in factors.items()})(x_NCHW, u_ND, FIRST)
    for theirs, our_CHW, order in zip(x_NCHW / 255, ours, permutations(factors), strict=True):
        for name in order:
            theirs = FUNCTIONS[name](theirs, factors[name])
        torch.testing.assert_close(our_CHW, theirs * 255, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("given", "intervals"),
    [
        ({"brightness": 0.4}, ((0.6, 1.4), None, None, None)),
        ({"contrast": 1.5, "hue": 0.1}, (None, (0.0, 2.5), None, (-0.1, 0.1))),
        ({"saturation": (0.5, 3.0), "hue": (0.0, 0.2)}, (None, None, (0.5, 3.0), (0.0, 0.2))),
    ],
)
def test_a_number_is_half_an_interval(given: dict[str, Any], intervals: tuple[Any, ...]) -> None:
    assert ColorJitter(**given).intervals == intervals


@pytest.mark.parametrize("channels", [1, 3])
def test_grayscale_is_torchvisions_and_comes_as_often_as_p_says(channels: int) -> None:
    x_NCHW, u_ND = images(channels, 2_000), uniforms(8, torch.arange(2_000), 1)
    ours = RandomGrayscale(p=0.3)(x_NCHW, u_ND, FIRST)
    theirs = TF.rgb_to_grayscale(x_NCHW, num_output_channels=channels)
    torch.testing.assert_close(ours, torch.where(u_ND[:, :1, None, None] < 0.3, theirs, x_NCHW), atol=1e-4, rtol=0)
    assert abs(int((u_ND < 0.3).sum()) - 600) < 5 * (2_000 * 0.3 * 0.7) ** 0.5  # five standard deviations


def test_noise_is_normal_in_units_of_the_range() -> None:
    noise = GaussianNoise(mean=0.1, sigma=0.2, clip=False)
    added = noise(torch.full((20, 1, 30, 30), 100.0), uniforms(9, torch.arange(20), 2), FIRST) - 100
    assert stats.kstest(added.flatten(), stats.norm(0.1 * 255, 0.2 * 255).cdf).pvalue > 1e-3
    assert len(added.unique()) > 0.99 * added.numel()


def test_noise_is_finite_and_clipped() -> None:
    clipped = GaussianNoise(sigma=1.0)(torch.zeros(2, 1, 50, 50), torch.zeros(2, 2), FIRST)
    assert clipped.min() == 0
    assert clipped.max() == 255


def test_a_jitter_of_nothing_is_refused() -> None:
    with pytest.raises(ArgumentError, match="contrast, saturation and hue; received none"):
        ColorJitter()


@pytest.mark.parametrize("augmentation", [ColorJitter(hue=0.1), RandomGrayscale()])
def test_images_without_colours_of_torchvisions_are_refused(augmentation: ColorJitter | RandomGrayscale) -> None:
    augmentation.check((1, 8, 8))
    with pytest.raises(ConfigError, match="1 channel or 3, and these have 4"):
        augmentation.check((4, 8, 8))
