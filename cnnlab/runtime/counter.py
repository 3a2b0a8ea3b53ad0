"""Random numbers without a state: each is a hash of what it is for.

splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) over a key, a
image's index and the number of the draw. So what happens to an image depends on nothing but these: neither on the
batch that it comes in, nor on workers, nor on what was drawn before.
"""

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MANTISSA = 24  # bits of a float32


def uniforms(key: int, index_N: Tensor, draws: int) -> Tensor:
    """(N, draws) float32 in [0, 1), a pure function of (key, index, draw), on the device of `index_N`.

    `key` is a whole number in [0, 2⁶³), as `derive(seed, "augment", epoch)` gives.
    """
    image_N1 = _mix(index_N.to(torch.int64)[:, None] * _signed(_GOLDEN) + _signed(key))
    steps_D = torch.arange(1, draws + 1, device=index_N.device) * _signed(_GOLDEN)
    return _shifted(_mix(image_N1 + steps_D), 64 - _MANTISSA).float() * 2.0**-_MANTISSA


def _mix(z: Tensor) -> Tensor:
    """splitmix64's finalizer; int64 products wrap around as unsigned ones do."""
    z = (z ^ _shifted(z, 30)) * _signed(_FACTORS[0])
    z = (z ^ _shifted(z, 27)) * _signed(_FACTORS[1])
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """A logical shift to the right; torch's repeats the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    return value - (1 << 64) if value >= 1 << 63 else value
