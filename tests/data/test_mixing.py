"""Images joined two by two: what the targets say is what the pixels show."""

from typing import Any

import pytest
import torch
from scipy import stats

from cnnlab.data.mixing import CutMix, Mixing, MixUp
from cnnlab.runtime.errors import ArgumentError

BATCH, CLASSES = 16, 5


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Image n is full of n, and is of class n mod 5."""
    x_NCHW = torch.arange(BATCH, dtype=torch.float32)[:, None, None, None].expand(BATCH, 2, 8, 8).contiguous()
    return x_NCHW, torch.eye(CLASSES)[torch.arange(BATCH) % CLASSES]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("mixing", [MixUp(0.4), CutMix(1.0)], ids=["mixup", "cutmix"])
@pytest.mark.parametrize("seed", range(2))
def test_targets_are_probabilities_of_at_most_two_classes(mixing: Mixing, seed: int) -> None:
    _, target_NK = mixing(*batch(), generator(seed))
    torch.testing.assert_close(target_NK.sum(1), torch.ones(BATCH))
    assert target_NK.min() >= 0
    assert ((target_NK > 0).sum(1) <= 2).all()


@pytest.mark.parametrize("seed", range(2))
def test_mixup_gives_pixels_and_targets_the_same_weights(seed: int) -> None:
    x_NCHW, target_NK = batch()
    partner_N = torch.randperm(BATCH, generator=generator(seed))
    mixed_NCHW, mixed_NK = MixUp().mix(x_NCHW, target_NK, partner_N, 0.7, generator(0))
    torch.testing.assert_close(mixed_NCHW, 0.7 * x_NCHW + 0.3 * x_NCHW[partner_N])
    torch.testing.assert_close(mixed_NK, 0.7 * target_NK + 0.3 * target_NK[partner_N])


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_cutmix_counts_the_pixels_that_it_pasted(weight: float, seed: int) -> None:
    x_NCHW, _ = batch()
    partner_N = torch.arange(BATCH).roll(1)  # no image is its own partner
    mixed_NCHW, mixed_NB = CutMix().mix(x_NCHW, torch.eye(BATCH), partner_N, weight, generator(seed))
    pasted_N = (mixed_NCHW != x_NCHW).float().mean((1, 2, 3))
    torch.testing.assert_close(mixed_NB.diagonal(), 1 - pasted_N)
    assert ((mixed_NCHW == x_NCHW) | (mixed_NCHW == x_NCHW[partner_N])).all()
    assert (pasted_N <= (1 - weight) + 0.2).all()  # whole pixels, and what lay over an edge is cut


def test_fractions_are_beta_distributed() -> None:
    class Spy(MixUp):
        def mix(self, *arguments: Any) -> Any:
            return arguments[3], None

    source = generator(0)
    weights = [Spy(0.4)(*batch(), source)[0] for _ in range(2000)]
    assert stats.kstest(weights, stats.beta(0.4, 0.4).cdf).pvalue > 1e-3


@pytest.mark.parametrize("kind", [MixUp, CutMix])
@pytest.mark.parametrize("alpha", [0, -1.0, 1e-300, 1e300, float("nan")])
def test_an_alpha_without_a_usable_distribution_is_refused(kind: type[Mixing], alpha: float) -> None:
    with pytest.raises(ArgumentError) as caught:
        kind(alpha)
    assert caught.value.argument == "alpha"
