"""The user's own images as NumPy arrays in one `.npz` file."""

import lzma
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from cnnlab.data.image_files import LONGEST
from cnnlab.data.source import DataSpec, Images, Labels, Source
from cnnlab.runtime.device import free_memory, size_text
from cnnlab.runtime.errors import ArgumentError, ConfigError, did_you_mean, first_line, listing
from cnnlab.runtime.terminal import printable

SPLITS = ("train", "val", "test")
KEYS = (*(f"{array}_{split}" for split in SPLITS for array in "xy"), "class_names")
CHANNELS = (1, 3)
MOST_CLASSES = 100_000
MOST_BYTES = 1 << 30  # of labels and names, which are read whole to describe the data
# what a damaged or hostile file makes zipfile, the decompressors and NumPy raise
UNREADABLE = (
    *(OSError, ValueError, EOFError, RuntimeError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError),
)
HEADERS: dict[tuple[int, int], Callable[[IO[bytes]], tuple[tuple[int, ...], bool, np.dtype]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Arrays(Source):
    """Images and labels of the `.npz` file `root`, as `numpy.savez` writes it. Raises `ArgumentError`.

    `x_train`, and `x_val` and `x_test` where there are such, are uint8: (N, H, W), (N, H, W, C) or (N, C, H, W) with
    1 or 3 channels C, told apart by where the 1 or 3 is. `y_train` and the others hold a whole number for each image,
    from 0; `class_names` is an array of strings. Nothing in the file is executed: pickled objects are refused. What an
    array takes in memory is read from its header first.
    """

    def __init__(self, root: str | None) -> None:
        if not root:
            raise ArgumentError("root", f"expected a .npz file, as in data.root=my_images.npz, received {root!r}")
        self.root = Path(root).expanduser()

    def describe(self) -> DataSpec:
        """Reads headers, labels and names. Raises `ConfigError` for arrays that are no data set."""
        return self._found.spec

    def read(self, split: str) -> Images:
        with self._opened() as file:
            x = torch.from_numpy(file.read(f"x_{split}", copies=2 if self._found.layout == "NHWC" else 1))
        return Images.of(_as_NCHW(x, self._found.layout), self._found.labels[split])

    def labels(self) -> Labels:
        return Labels(self._found.labels["train"])

    def notes(self) -> list[str]:
        return self._found.notes

    @cached_property
    def _found(self) -> "_Found":
        with self._opened() as file:
            return _describe(file)

    @contextmanager
    def _opened(self) -> Iterator["_File"]:
        """Whatever is wrong with the file is raised as `ConfigError` with its name."""
        try:
            if not self.root.is_file():
                raise ConfigError("there is no such file: expected one that numpy.savez wrote")
            with zipfile.ZipFile(self.root) as archive:
                yield _File(archive)
        except ConfigError as error:
            raise ConfigError(f"data.root: {printable(self.root)}: {error}") from error
        except UNREADABLE as error:
            raise ConfigError(
                f"data.root: {printable(self.root)} cannot be read ({first_line(error)}): expected a file that "
                f"numpy.savez wrote"
            ) from error


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _File:
    """The arrays of an open `.npz` file. Raises `ConfigError` with the array's name."""

    archive: zipfile.ZipFile

    @property
    def names(self) -> list[str]:
        return [name.removesuffix(".npy") for name in self.archive.namelist() if name.endswith(".npy")]

    def header(self, name: str) -> _Header:
        """Shape and dtype, from the first bytes of the array."""
        entry = self.archive.getinfo(f"{name}.npy")
        with self.archive.open(entry) as file:
            version = np.lib.format.read_magic(file)
            if version not in HEADERS:
                raise ConfigError(f"{name}: expected an array of plain numbers or strings")
            shape, _, dtype = HEADERS[version](file)
            header = _Header(shape, dtype)
            if dtype.hasobject:
                raise ConfigError(f"{name}: expected plain numbers or strings, received an array of Python objects")
            if entry.file_size - file.tell() != header.nbytes:
                raise ConfigError(f"{name}: its header is of {header.nbytes:,} bytes, which are not in the file")
        return header

    def read(self, name: str, copies: int = 1) -> np.ndarray:
        """The array, if so many copies of it fit into the memory that is free."""
        needed, free = copies * self.header(name).nbytes, free_memory(torch.device("cpu"))
        if needed > free:
            raise ConfigError(f"{name} takes {size_text(needed)}, and {size_text(free)} of memory are free")
        with self.archive.open(f"{name}.npy") as file:
            array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        return np.ascontiguousarray(array)

    def read_small(self, name: str) -> np.ndarray:
        if self.header(name).nbytes > MOST_BYTES:
            raise ConfigError(f"{name}: expected at most {size_text(MOST_BYTES)}")
        return self.read(name)


@dataclass(frozen=True)
class _Found:
    """What the file holds, images aside."""

    spec: DataSpec
    layout: str
    labels: dict[str, Tensor]
    notes: list[str]


def _describe(file: _File) -> _Found:
    splits = _splits(file.names)
    headers = {split: file.header(f"x_{split}") for split in splits}
    layouts = {split: _layout(f"x_{split}", header) for split, header in headers.items()}
    layout, input_shape = layouts["train"]
    for split in splits:
        if layouts[split] != layouts["train"]:
            raise ConfigError(
                f"x_{split}: expected images as in x_train, {_shown(headers['train'].shape)}, received "
                f"{_shown(headers[split].shape)}"
            )
    labels = {split: _labels(file, split, headers[split]) for split in splits}
    class_names = _class_names(file, labels["train"])
    for split, y_N in labels.items():
        _check_labels(split, y_N, len(class_names))
    others = sorted(set(file.names) - set(KEYS))
    counts = {split: len(y_N) for split, y_N in labels.items()}
    origins = {split: f"x_{split}" for split in splits}
    spec = DataSpec(input_shape, counts, class_names, origins)
    return _Found(spec, layout, labels, [f"arrays not read: {printable(listing(others))}"] if others else [])


def _splits(names: list[str]) -> list[str]:
    """Those whose images or labels are there. Raises `ConfigError` unless both are."""
    found = [split for split in SPLITS if split == "train" or {f"x_{split}", f"y_{split}"} & set(names)]
    missing = [key for split in found for key in (f"x_{split}", f"y_{split}") if key not in names]
    if missing:
        near = did_you_mean(missing[0], set(names) - set(KEYS))
        raise ConfigError(f"expected the array {missing[0]}; found {printable(listing(sorted(names)))}{near}")
    return found


def _layout(name: str, header: _Header) -> tuple[str, tuple[int, int, int]]:
    """`NHW`, `NHWC` or `NCHW`, and (C, H, W)."""
    shape = header.shape
    if header.dtype != np.uint8:
        raise ConfigError(f"{name}: expected uint8 values from 0 to 255, received {header.dtype}")
    if len(shape) == 3:
        layout, input_shape = "NHW", (1, shape[1], shape[2])
    elif len(shape) == 4 and (shape[1] in CHANNELS) != (shape[3] in CHANNELS):
        last = shape[3] in CHANNELS
        layout = "NHWC" if last else "NCHW"
        input_shape = (shape[3], shape[1], shape[2]) if last else (shape[1], shape[2], shape[3])
    elif len(shape) == 4 and shape[1] in CHANNELS:
        raise ConfigError(f"{name}: {_shown(shape)} is (N, H, W, C) as well as (N, C, H, W): expected larger images")
    else:
        raise ConfigError(
            f"{name}: expected (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels, received {_shown(shape)}"
        )
    if shape[0] < 1 or not all(1 <= side <= LONGEST for side in input_shape):
        raise ConfigError(f"{name}: expected images of 1 to {LONGEST} pixels a side, received {_shown(shape)}")
    return layout, input_shape


def _as_NCHW(x: Tensor, layout: str) -> Tensor:  # noqa: N802 — its shape is part of the name
    if layout == "NHW":
        return x.unsqueeze(1)
    return x.permute(0, 3, 1, 2).contiguous() if layout == "NHWC" else x


def _labels(file: _File, split: str, images: _Header) -> Tensor:
    name = f"y_{split}"
    header = file.header(name)
    if header.dtype.kind not in "iu":
        raise ConfigError(f"{name}: expected whole numbers, received {header.dtype}")
    if header.shape != images.shape[:1]:
        raise ConfigError(
            f"{name}: expected a label for each of the {images.shape[0]:,} images of x_{split}, "
            f"{_shown(images.shape[:1])}, received {_shown(header.shape)}"
        )
    y_N = file.read_small(name)
    if y_N.max() >= MOST_CLASSES:
        raise ConfigError(f"{name}: expected labels below {MOST_CLASSES:,}, received {y_N.max()}")
    return torch.from_numpy(y_N.astype(np.int64))


def _class_names(file: _File, y_N: Tensor) -> tuple[str, ...]:
    """Those in the file, else the numbers up to the largest label of the training images."""
    if "class_names" not in file.names:
        names: tuple[str, ...] = tuple(str(label) for label in range(int(y_N.max()) + 1))
    else:
        header = file.header("class_names")
        if header.dtype.kind != "U" or len(header.shape) != 1:
            raise ConfigError(
                f"class_names: expected an array (K,) of strings, received {_shown(header.shape)} of {header.dtype}"
            )
        names = tuple(map(str, file.read_small("class_names")))
    for name in names:
        if not name.strip() or not name.isprintable():
            raise ConfigError(f"class_names: expected names in printable letters, received '{printable(name)}'")
    if len(set(names)) < len(names):
        raise ConfigError(f"class_names: expected each name once, received {listing(names[:20])}")
    if len(names) < 2:
        raise ConfigError(f"expected images of two classes or more; found {listing(names)}")
    return names


def _check_labels(split: str, y_N: Tensor, classes: int) -> None:
    smallest, largest = int(y_N.min()), int(y_N.max())
    if smallest < 0 or largest >= classes:
        raise ConfigError(f"y_{split}: expected labels from 0 to {classes - 1}, received {smallest} to {largest}")
    if split == "train":
        absent = (y_N.bincount(minlength=classes) == 0).nonzero().flatten().tolist()
        if absent:
            raise ConfigError(
                f"y_train: expected every label from 0 to {classes - 1}; there is no {listing(absent[:5])}"
            )


def _shown(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
