"""Randomness that can be named, captured and put back."""

import hashlib
import io
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from cnnlab.runtime.randomness import (
    capture_generators,
    derive,
    put_back,
    restore_generators,
    same_generators,
    seed_generators,
    uniforms,
)


def draws() -> tuple[list[float], list[float], list[float]]:
    """A few numbers from each global generator; the gaussians leave a spare one behind in Python's and NumPy's."""
    return (
        [random.random(), random.gauss(0, 1)],
        [float(np.random.random()), float(np.random.standard_normal())],
        torch.randn(3).tolist(),
    )


@pytest.mark.parametrize(
    ("purpose", "text"), [((), "[7]"), (("order", 3), '[7, "order", 3]'), (("a", "b"), '[7, "a", "b"]')]
)
def test_a_derived_seed_is_the_first_63_bits_of_a_sha256(purpose: tuple[str | int, ...], text: str) -> None:
    eight_bytes = hashlib.sha256(text.encode()).digest()[:8]
    little_endian = sum(byte * 256**position for position, byte in enumerate(eight_bytes))
    assert derive(7, *purpose) == little_endian // 2


def test_one_seed_makes_every_generator_repeat_and_another_none() -> None:
    drawn = []
    for seed in (3, 3, 4):
        seed_generators(seed)
        drawn.append(draws())
    assert drawn[0] == drawn[1]
    assert all(one != other for one, other in zip(drawn[0], drawn[2], strict=True))


def test_restored_generators_draw_what_followed_the_capture() -> None:
    """From a file that holds no code; a spare gaussian of Python and NumPy included."""
    seed_generators(0)
    draws()
    file = io.BytesIO()
    torch.save(capture_generators(), file)
    expected = random.gauss(0, 1), float(np.random.standard_normal()), draws()
    seed_generators(9)
    file.seek(0)
    restore_generators(torch.load(file, weights_only=True))
    assert (random.gauss(0, 1), float(np.random.standard_normal()), draws()) == expected


def test_tensors_and_generators_are_put_back_even_after_an_error() -> None:
    seed_generators(0)
    weight, count = torch.ones(2, requires_grad=True), torch.tensor([3])
    expected = draws()
    seed_generators(0)

    def spoil() -> None:
        with put_back([weight, count]):
            draws()
            count.add_(1)
            weight.detach().mul_(7)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        spoil()
    assert (weight.tolist(), count.tolist(), weight.requires_grad) == ([1.0, 1.0], [3], True)
    assert draws() == expected


@pytest.mark.parametrize(
    "draw",
    [random.random, np.random.random, lambda: torch.rand(1), lambda: random.gauss(0, 1), np.random.standard_normal],
)
def test_a_draw_from_any_generator_is_another_state(draw: Callable[[], object]) -> None:
    seed_generators(0)
    before = capture_generators()
    assert same_generators(before, capture_generators())
    draw()
    assert not same_generators(before, capture_generators())


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


@pytest.mark.parametrize("key", [1, 2**63 - 1])
def test_the_numbers_are_splitmix64s(key: int) -> None:
    index_N = torch.tensor([0, 1, 59_999, 2**40])
    expected = [[reference(key, index, draw) for draw in range(5)] for index in index_N.tolist()]
    assert uniforms(key, index_N, 5).tolist() == expected


def test_a_number_depends_on_nothing_but_key_index_and_draw() -> None:
    whole_ND = uniforms(7, torch.arange(100), 6)
    torch.testing.assert_close(uniforms(7, torch.tensor([42, 17]), 2), whole_ND[[42, 17], :2], rtol=0, atol=0)


def test_the_numbers_are_uniform_and_uncorrelated() -> None:
    u_ND = uniforms(11, torch.arange(100_000), 4).double().numpy()
    assert u_ND.min() >= 0
    assert u_ND.max() < 1
    assert stats.kstest(u_ND.ravel(), "uniform").pvalue > 1e-3
    between_draws = np.corrcoef(u_ND.T)[np.triu_indices(4, 1)]
    between_images = np.corrcoef(u_ND[:-1, 0], u_ND[1:, 0])[0, 1]
    assert np.abs([*between_draws, between_images]).max() < 5 / np.sqrt(len(u_ND))
