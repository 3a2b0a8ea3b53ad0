"""Randomness that can be named, captured and put back.

What can be derived is derived: `derive(seed, "order", epoch)` is a pure function, so the order of an epoch needs no
state, and `uniforms(key, index, draws)` hashes a counter, so an image's augmentation depends neither on its batch nor
on what was drawn before. What draws from a generator (dropout, a user's own block) is captured with
`capture_generators`.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnnlab.runtime.ranks import world_size

_GOLDEN = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MANTISSA = 24  # bits of a float32


def derive(seed: int, *purpose: str | int) -> int:
    """A seed in [0, 2⁶³) for one purpose, such as `derive(seed, "order", epoch)`; SHA-256 keeps them apart."""
    text = json.dumps([seed, *purpose])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def uniforms(key: int, index_N: Tensor, draws: int) -> Tensor:
    """(N, draws) float32 in [0, 1), a pure function of (key, index, draw), on the device of `index_N`.

    splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014); `key` is a whole
    number in [0, 2⁶³), such as `derive(seed, "augment", name)`.
    """
    image_N1 = _splitmix64(index_N.to(torch.int64)[:, None] * _signed(_GOLDEN) + _signed(key))
    steps_D = torch.arange(1, draws + 1, device=index_N.device) * _signed(_GOLDEN)
    return _shifted(_splitmix64(image_N1 + steps_D), 64 - _MANTISSA).float() * 2.0**-_MANTISSA


def _splitmix64(z: Tensor) -> Tensor:
    """Its finalizer; int64 products wrap around as unsigned ones do."""
    z = (z ^ _shifted(z, 30)) * _signed(_FACTORS[0])
    z = (z ^ _shifted(z, 27)) * _signed(_FACTORS[1])
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """A logical shift to the right; torch's repeats the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    return value - (1 << 64) if value >= 1 << 63 else value


def seed_generators(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's global generators, CUDA's among them."""
    random.seed(derive(seed, "python"))
    np.random.seed(derive(seed, "numpy") % 2**32)
    torch.manual_seed(derive(seed, "torch"))


def capture_generators() -> dict[str, Any]:
    """The state of every global generator, as tensors and plain values that load with `weights_only=True`."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": {
            "name": str(name),
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "gauss": float(gauss),
        },
        "torch": torch.get_rng_state(),
        "cuda": _cuda_states() if torch.cuda.is_available() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }


def _cuda_states() -> list[Tensor]:
    """Of every GPU; of a rank's own alone, where the others are other ranks'."""
    if world_size() > 1:
        return [torch.cuda.get_rng_state().cpu()]
    return [state.cpu() for state in torch.cuda.get_rng_state_all()]


def restore_generators(state: dict[str, Any]) -> None:
    """Puts back what `capture_generators` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy_state = state["numpy"]
    np.random.set_state(
        (
            numpy_state["name"],
            numpy_state["keys"].numpy().astype(np.uint32),
            numpy_state["position"],
            numpy_state["has_gauss"],
            numpy_state["gauss"],
        )
    )
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        if world_size() > 1:
            torch.cuda.set_rng_state(state["cuda"][0])
        else:
            torch.cuda.set_rng_state_all(state["cuda"])
    if state.get("mps") is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


@contextmanager
def put_back(tensors: Sequence[Tensor]) -> Iterator[None]:
    """The tensors, and the state of every global generator, are afterwards what they were before."""
    before, generators = [tensor.detach().clone() for tensor in tensors], capture_generators()
    try:
        yield
    finally:
        for tensor, value in zip(tensors, before, strict=True):
            tensor.detach().copy_(value)
        restore_generators(generators)


def same_generators(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """True if two results of `capture_generators` are the same state."""
    return all(_same(one[name], other[name]) for name in one)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return all(_same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return all(_same(*pair) for pair in zip(one, other, strict=True))
    return bool(one == other)
