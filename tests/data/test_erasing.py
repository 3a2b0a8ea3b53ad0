"""Rectangles are where they were drawn, and as large as torchvision draws them."""

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from cnnlab.data.erasing import Cutout, RandomErasing
from cnnlab.runtime.errors import ArgumentError
from cnnlab.runtime.randomness import uniforms

FIRST = torch.tensor(0)
COUNT = 3_000


def draws(count: int = COUNT) -> Tensor:
    return uniforms(6, torch.arange(count), RandomErasing.draws)


def test_cutout_paints_a_square_about_the_drawn_pixel_cut_at_the_edges() -> None:
    painted = Cutout(size=3, fill=9)(torch.ones(1, 2, 8, 8), torch.tensor([[0.5, 0.25]]), FIRST)
    assert (painted[0] == 9).sum() == 2 * 9
    assert (painted[0, :, 3:6, 1:4] == 9).all()
    at_the_edge = Cutout(size=4, fill=9)(torch.ones(1, 1, 8, 8), torch.tensor([[0.0, 0.99]]), FIRST)
    assert (at_the_edge[0, 0, :2, 5:] == 9).all()
    assert (at_the_edge == 9).sum() == 6


def test_a_cutout_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ArgumentError) as caught:
        Cutout(size=9).check((1, 8, 8))
    assert caught.value.argument == "size"
    Cutout(size=9).check((1, 9, 9))


@pytest.mark.parametrize("value", [9.0, (1.0, 2.0, 3.0)])
def test_erasing_is_torchvisions(value: float | tuple[float, ...]) -> None:
    x_NCHW = torch.rand(20, 3, 16, 12) * 255
    erasing = RandomErasing(value=value)
    first_N2, sides_N2 = erasing.rectangles(draws(20), (16, 12))
    erased = erasing(x_NCHW, draws(20), FIRST)
    for x_CHW, erased_CHW, first, sides in zip(x_NCHW, erased, first_N2.tolist(), sides_N2.tolist(), strict=True):
        expected = TF.erase(x_CHW, *first, *sides, torch.tensor(value).reshape(-1, 1, 1))
        assert torch.equal(erased_CHW, expected)
    assert 4 < sides_N2.prod(1).count_nonzero() < 16


def test_the_erased_area_is_distributed_as_torchvisions() -> None:
    _, sides_N2 = RandomErasing(p=1).rectangles(draws(), (32, 32))
    theirs = v2.RandomErasing(p=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = [theirs.make_params([torch.empty(3, 32, 32)]) for _ in range(COUNT // 3)]
    for ours, name in ((sides_N2[:, 0], "h"), (sides_N2[:, 1], "w")):
        assert stats.ks_2samp(ours, [params[name] for params in drawn]).pvalue > 1e-3
    assert stats.ks_2samp(sides_N2.prod(1), [params["h"] * params["w"] for params in drawn]).pvalue > 1e-3


def test_the_erased_area_is_uniform_and_its_place_too() -> None:
    side = 400
    first_N2, sides_N2 = RandomErasing(p=1, scale=(0.1, 0.3), ratio=(0.8, 1.25)).rectangles(draws(), (side, side))
    assert stats.kstest(sides_N2.prod(1) / side**2, stats.uniform(0.1, 0.2).cdf).pvalue > 1e-3
    assert stats.kstest((first_N2 / (side - sides_N2)).flatten(), stats.uniform.cdf).pvalue > 1e-3


def test_images_are_erased_as_often_as_p_says() -> None:
    _, sides_N2 = RandomErasing(p=0.3, scale=(0.1, 0.2)).rectangles(draws(), (32, 32))
    erased = int(sides_N2.prod(1).count_nonzero())
    assert abs(erased - COUNT * 0.3) < 5 * (COUNT * 0.3 * 0.7) ** 0.5  # five standard deviations


def test_a_rectangle_that_never_fits_erases_nothing() -> None:
    x_NCHW = torch.rand(10, 1, 4, 4)
    assert torch.equal(RandomErasing(p=1, scale=(1, 1))(x_NCHW, draws(10), FIRST), x_NCHW)


def test_random_values_are_uniform_whole_numbers_other_ones_in_each_image() -> None:
    x_NCHW = torch.full((50, 3, 20, 20), -1.0)
    erased = RandomErasing(p=1, scale=(0.3, 0.5), value="random")(x_NCHW, draws(50), FIRST)
    values = erased[erased >= 0]
    assert stats.kstest(values + 0.5, stats.uniform(0, 256).cdf).pvalue > 1e-3
    assert torch.equal(values, values.round())
    assert len({tuple(image[image >= 0][:20].tolist()) for image in erased}) == 50


def test_values_that_do_not_fit_the_channels_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"channels \(3\), received 2"):
        RandomErasing(value=(1.0, 2.0)).check((3, 8, 8))
    RandomErasing(value="random").check((3, 8, 8))
