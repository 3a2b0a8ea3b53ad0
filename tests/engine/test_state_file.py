import json
import math
import random
import resource
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from cnnlab.engine.state_file import read_state, write_state
from cnnlab.runtime.randomness import capture_generators, restore_generators, same_generators


def planted(path: Path, structure: Any, **tensors: torch.Tensor) -> Path:
    """A state with any structure, as a stranger would write it."""
    text = structure if isinstance(structure, str) else json.dumps(structure)
    safetensors.torch.save_file(tensors, path, {"structure": text})
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.safetensors"


def test_plain_values_come_back_with_their_types(path: Path) -> None:
    state = {
        "none": None,
        "bools": [True, False],
        "ints": [0, -1, 2**80],
        "floats": [0.1, -0.0, 1e300, math.inf, -math.inf],
        "texts": ["", "ü\n", "tensor"],
        "tuple": (1, (2.0, []), ()),
        "dict": {0: "a", 1: {"x": 2}, "0": "b"},
        "like a mark": {"tensor": "x", "float": "nan"},
    }
    write_state(path, state)
    read = read_state(path)
    assert read == state
    assert repr(read) == repr(state)
    write_state(path, {"x": math.nan})
    assert math.isnan(read_state(path)["x"])


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.5),
        torch.zeros(0, 3),
        torch.arange(6).reshape(2, 3).t(),
        torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        torch.rand(3).to(torch.bfloat16),
        torch.tensor([True, False]),
        torch.randint(0, 256, (7,), dtype=torch.uint8),
        torch.rand(3, dtype=torch.float64, requires_grad=True),
        torch.zeros(1).expand(5),
    ],
    ids=lambda tensor: f"{tuple(tensor.shape)} {tensor.dtype}",
)
def test_tensors_come_back_bit_by_bit(path: Path, tensor: torch.Tensor) -> None:
    write_state(path, {"a": {"b": [tensor, tensor]}})
    for read in read_state(path)["a"]["b"]:
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor.detach())
        assert read.is_contiguous()


def test_generators_come_back(path: Path) -> None:
    random.gauss()  # leaves half of a pair behind
    before = capture_generators()
    write_state(path, before)
    draws = random.random(), torch.rand(1)
    restore_generators(read_state(path))
    assert same_generators(before, capture_generators())
    assert (random.random(), torch.rand(1)) == draws


@pytest.mark.parametrize(
    ("state", "place"),
    [({"a": {"b": object()}}, "a.b is a object"), ({"a": [1, {2}]}, "a.1 is a set"), ({"a": {1.5: 1}}, "a has a key")],
)
def test_what_cannot_be_written_is_refused_by_its_place(path: Path, state: dict[str, Any], place: str) -> None:
    with pytest.raises(TypeError, match=place):
        write_state(path, state)
    assert not path.exists()


@pytest.mark.parametrize(
    "structure",
    [
        "",
        "[",
        "3",
        "[]",
        "[" * 100_000,
        {"tensor": "missing"},
        {"unknown": 1},
        {"dict": [["a"]]},
        {"dict": 3},
        {"dict": [], "tuple": []},
        {"float": "1e9"},
        {"tensor": ["a"]},
    ],
    ids=lambda structure: str(structure)[:20],
)
def test_a_strangers_structure_is_refused(path: Path, structure: Any) -> None:
    with pytest.raises(ValueError, match=r"it is no state|Expecting|expected"):
        read_state(planted(path, structure))


def test_a_small_file_takes_little_memory(path: Path) -> None:
    header = json.dumps({"x": {"dtype": "U8", "shape": [6_000_000_000], "data_offsets": [0, 6_000_000_000]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(1000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="it is no state"):
        read_state(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB
