import numpy as np
import pytest
import torch
from scipy import stats

from cnnlab.runtime.counter import uniforms

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mixed(z: int) -> int:
    """splitmix64's finalizer in Python's unbounded integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def reference(key: int, index: int, draw: int) -> float:
    image = mixed((index * GOLDEN + key) & MASK)
    return (mixed((image + (draw + 1) * GOLDEN) & MASK) >> 40) / 2**24


@pytest.mark.parametrize("key", [0, 1, 2**63 - 1, 0x123456789ABCDEF])
def test_the_numbers_are_splitmix64s(key: int) -> None:
    index_N = torch.tensor([0, 1, 59_999, 2**40])
    expected = [[reference(key, index, draw) for draw in range(5)] for index in index_N.tolist()]
    assert uniforms(key, index_N, 5).tolist() == expected


def test_a_number_depends_on_nothing_but_key_index_and_draw() -> None:
    whole_ND = uniforms(7, torch.arange(100), 6)
    torch.testing.assert_close(uniforms(7, torch.tensor([42, 17]), 6), whole_ND[[42, 17]], rtol=0, atol=0)
    torch.testing.assert_close(uniforms(7, torch.arange(100), 2), whole_ND[:, :2], rtol=0, atol=0)


def test_keys_and_indices_do_not_share_their_numbers() -> None:
    drawn = torch.cat([uniforms(key, torch.arange(1000), 4).flatten() for key in (1, 2, 3)])
    assert len(drawn.unique()) > 0.99 * len(drawn)


def test_the_numbers_are_uniform_and_uncorrelated() -> None:
    u_ND = uniforms(11, torch.arange(100_000), 4).double().numpy()
    assert u_ND.min() >= 0
    assert u_ND.max() < 1
    assert stats.kstest(u_ND.ravel(), "uniform").pvalue > 1e-3
    counts = np.histogram(u_ND, bins=256, range=(0, 1))[0]
    assert stats.chisquare(counts).pvalue > 1e-3
    between_draws = np.corrcoef(u_ND.T)[np.triu_indices(4, 1)]
    between_images = np.corrcoef(u_ND[:-1, 0], u_ND[1:, 0])[0, 1]
    assert np.abs([*between_draws, between_images]).max() < 5 / np.sqrt(len(u_ND))
