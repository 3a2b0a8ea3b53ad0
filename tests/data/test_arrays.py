import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cnnlab.data.arrays import Arrays
from cnnlab.data.image_files import ImageReader
from cnnlab.runtime.errors import ArgumentError, ConfigError

RANDOM = np.random.default_rng(0)
X = RANDOM.integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
Y = np.array([0, 1, 2, 0, 1, 2])
WHOLE: dict[str, Any] = {"x_train": X, "y_train": Y}


def saved(tmp_path: Path, **arrays: Any) -> Arrays:
    path = tmp_path / "images.npz"
    np.savez(path, **arrays)
    return Arrays(str(path))


def refusal(source: Arrays) -> str:
    with pytest.raises(ConfigError) as caught:
        source.describe()
    return str(caught.value)


@pytest.mark.parametrize(
    ("stored", "expected_NCHW"),
    [
        (X, X.transpose(0, 3, 1, 2)),
        (X.transpose(0, 3, 1, 2), X.transpose(0, 3, 1, 2)),
        (X[..., 0], X[:, None, :, :, 0]),
        (X[..., :1], X[:, None, :, :, 0]),
        (np.asfortranarray(X), X.transpose(0, 3, 1, 2)),
    ],
)
def test_each_layout_is_read_with_channels_first(tmp_path: Path, stored: np.ndarray, expected_NCHW: np.ndarray) -> None:
    source = saved(tmp_path, x_train=stored, y_train=Y)
    images = source.read("train")
    assert source.describe().input_shape == images.shape == expected_NCHW.shape[1:]
    assert np.array_equal(images.x_NCHW.numpy(), expected_NCHW)
    assert images.x_NCHW.is_contiguous()
    assert (images.y_N.dtype, images.y_N.tolist()) == (torch.int64, Y.tolist())


def test_splits_and_names_are_those_of_the_file(tmp_path: Path) -> None:
    names = np.array(["ant", "[b]", "cat"])
    source = saved(
        tmp_path,
        **WHOLE,
        x_val=X[:2],
        y_val=Y[:2].astype(">u2"),
        x_test=X[:3],
        y_test=Y[:3],
        class_names=names,
        extra=Y,
    )
    spec = source.describe()
    assert spec.counts == {"train": 6, "val": 2, "test": 3}
    assert spec.class_names == ("ant", "[b]", "cat")
    assert spec.origins == {"train": "x_train", "val": "x_val", "test": "x_test"}
    assert source.read("val").y_N.tolist() == [0, 1]
    assert source.notes() == ["arrays not read: extra"]
    assert torch.equal(source.labels().y_N, source.read("train").y_N)


def test_without_names_the_classes_are_numbers(tmp_path: Path) -> None:
    assert saved(tmp_path, **WHOLE).describe().class_names == ("0", "1", "2")


def test_a_compressed_file_is_read_and_predictions_need_none(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "images.npz", **WHOLE)
    source = Arrays(str(tmp_path / "images.npz"))
    assert len(source.read("train")) == 6
    (tmp_path / "images.npz").unlink()
    assert Arrays(str(tmp_path / "images.npz")).reader((3, 4, 5)) == ImageReader((4, 5), 3)


OBJECTS = np.array([{}, 1, "x", None, 2, 3], dtype=object)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y_train": Y}, "expected the array x_train; found y_train"),
        ({"X_train": X, "y_train": Y}, "found X_train, y_train did you mean 'X_train'?"),
        ({**WHOLE, "x_val": X}, "expected the array y_val; found "),
        (
            {"x_train": X.astype(np.float32), "y_train": Y},
            "x_train: expected uint8 values from 0 to 255, received float32",
        ),
        ({"x_train": OBJECTS, "y_train": Y}, "x_train: expected plain numbers or strings, received an array of Python"),
        ({"x_train": X[0, 0], "y_train": Y}, "(N, C, H, W) with 1 or 3 channels, received (5, 3)"),
        ({"x_train": X[..., :2], "y_train": Y}, "with 1 or 3 channels, received (6, 4, 5, 2)"),
        ({"x_train": X[:, :3], "y_train": Y}, "x_train: (6, 3, 5, 3) is (N, H, W, C) as well as (N, C, H, W)"),
        (
            {"x_train": X[:0], "y_train": Y[:0]},
            "x_train: expected images of 1 to 8000 pixels a side, received (0, 4, 5, 3)",
        ),
        ({"x_train": X, "y_train": Y[:5]}, "of the 6 images of x_train, (6), received (5)"),
        ({"x_train": X, "y_train": Y[:, None]}, "of the 6 images of x_train, (6), received (6, 1)"),
        ({"x_train": X, "y_train": Y / 2}, "y_train: expected whole numbers, received float64"),
        ({"x_train": X, "y_train": OBJECTS}, "y_train: expected plain numbers or strings, received an array of Python"),
        ({"x_train": X, "y_train": Y - 1}, "y_train: expected labels from 0 to 1, received -1 to 1"),
        ({"x_train": X, "y_train": Y + 1}, "y_train: expected every label from 0 to 3; there is no 0"),
        ({"x_train": X, "y_train": 0 * Y}, "expected images of two classes or more; found 0"),
        ({"x_train": X, "y_train": Y * 2**40}, "y_train: expected labels below 100,000, received 2199023255552"),
        ({**WHOLE, "class_names": np.array(["a", "b"])}, "y_train: expected labels from 0 to 1, received 0 to 2"),
        (
            {**WHOLE, "class_names": np.arange(3)},
            "class_names: expected an array (K,) of strings, received (3) of int64",
        ),
        ({**WHOLE, "class_names": np.array(["a", "b\x1b", "c"])}, "printable letters, received 'b\\x1b'"),
        ({**WHOLE, "class_names": np.array(["a", "b", "a"])}, "class_names: expected each name once, received a, b, a"),
        (
            {**WHOLE, "x_val": X[:, :3, :, 0], "y_val": Y},
            "x_val: expected images as in x_train, (6, 4, 5, 3), received",
        ),
        ({**WHOLE, "x_test": X, "y_test": Y + 1}, "y_test: expected labels from 0 to 2, received 1 to 3"),
    ],
)
def test_arrays_that_make_no_data_set_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    refused = refusal(saved(tmp_path, **arrays))
    assert refused.startswith(f"data.root: {tmp_path}/images.npz")
    assert message in refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"", "cannot be read (File is not a zip file)"),
        (b"PK\x03\x04junk", "cannot be"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "images.npz"
    if content is not None:
        path.write_bytes(content)
    assert message in refusal(Arrays(str(path)))
    with pytest.raises(ArgumentError, match=r"^root: expected a \.npz file"):
        Arrays("")


def test_an_array_larger_than_the_memory_is_refused_by_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tmp_path, **WHOLE)
    source.describe()
    monkeypatch.setattr("cnnlab.data.arrays.free_memory", lambda device: 700)  # 6 · 4 · 5 · 3 = 360 bytes, twice
    with pytest.raises(ConfigError, match=r"x_train takes 720 bytes, and 700 bytes of memory are free"):
        source.read("train")


@pytest.mark.parametrize("shape", ["(10, 10**9)", "(-6, -360)", "(" * 3000])
def test_a_header_that_lies_is_refused_before_anything_is_read(tmp_path: Path, shape: str) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    array = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(tmp_path / "images.npz", "w") as archive:
        archive.writestr("x_train.npy", array)
        archive.writestr("y_train.npy", array)
    assert refusal(Arrays(str(tmp_path / "images.npz"))).startswith("data.root: ")
