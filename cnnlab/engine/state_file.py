"""Nested state in one safetensors file: tensors as they are, structure and plain values as JSON in its header.

Nothing in such a file can be executed, and it takes no more memory than it has bytes.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

LARGEST_STRUCTURE = 1 << 24  # bytes of JSON
_STRUCTURE = "structure"
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Writes dictionaries, lists, tuples, tensors and plain values.

    Raises `TypeError` with the place of anything else. Tensors come back contiguous, on the CPU.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_packed(state, "", tensors), allow_nan=False)
    safetensors.torch.save_file(tensors, path, {_STRUCTURE: structure})


def read_state(path: Path) -> dict[str, Any]:
    """What `write_state` wrote. Raises `ValueError` for any other file."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            structure = (file.metadata() or {}).get(_STRUCTURE, "")
            if len(structure) > LARGEST_STRUCTURE:
                raise ValueError(f"its structure has more than {LARGEST_STRUCTURE:,} characters")
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 — it is no mapping
        state = _unpacked(json.loads(structure), tensors)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"it is no state: {type(error).__name__}: {error}") from error
    if not isinstance(state, dict):
        raise ValueError("it is no state: expected a mapping")
    return state


def _packed(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """The value for JSON, its tensors put among `tensors` under their places."""
    if isinstance(value, Tensor):
        # a copy: safetensors refuses tensors that share memory
        tensors[place] = torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())
        return {"tensor": place}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        items = [[_key(key, place), _packed(inner, f"{place}.{key}", tensors)] for key, inner in value.items()]
        return {"dict": items}
    if isinstance(value, list | tuple):
        items = [_packed(inner, f"{place}.{number}", tensors) for number, inner in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    raise TypeError(f"{place.lstrip('.')} is a {type(value).__name__}: expected tensors and plain values")


def _key(key: Any, place: str) -> Any:
    if not isinstance(key, str | int):
        raise TypeError(f"{place.lstrip('.')} has a key {key!r}: expected texts or whole numbers")
    return key


def _unpacked(packed: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(packed, list):
        return [_unpacked(inner, tensors) for inner in packed]
    if not isinstance(packed, dict):
        return packed
    [(kind, content)] = packed.items()
    if kind == "tensor":
        return tensors.pop(content)  # once: no two of a state share memory
    if kind == "float":
        return _NOT_FINITE[content]
    if kind == "tuple":
        return tuple(_unpacked(inner, tensors) for inner in content)
    if kind == "dict":
        return {key: _unpacked(inner, tensors) for key, inner in content}
    raise KeyError(kind)
