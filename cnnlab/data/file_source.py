"""What data sets of the user's own image files have in common, however the class of a file is known."""

import os
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cnnlab.data.auto_size import LOOKED_AT, auto_size, sample
from cnnlab.data.cache import read_files
from cnnlab.data.image_files import LONGEST, ImageReader, UnreadableError, read_sizes
from cnnlab.data.source import DataSpec, Images, Labels, Readable, Source
from cnnlab.data.splits import carve, carve_groups
from cnnlab.runtime.checks import int_or_pair, number
from cnnlab.runtime.errors import ArgumentError, ConfigError
from cnnlab.runtime.randomness import derive
from cnnlab.runtime.terminal import printable

# what a split goes by, in upper or lower case
SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
AUTO: Literal["auto"] = "auto"
TEST_SEED = 0
ORDER_SEED = 0


@dataclass(frozen=True)
class FileSplit:
    """The files of a split, relative to the root, the class of each and, where there are groups, its group."""

    paths: list[str]
    y_N: Tensor
    origin: str
    group_N: Tensor | None = None

    def select(self, rows: Tensor, origin: str) -> "FileSplit":
        group_N = None if self.group_N is None else self.group_N[rows]
        return FileSplit([self.paths[row] for row in rows.tolist()], self.y_N[rows], origin, group_N)


@dataclass(frozen=True)
class Found:
    """The data set found under a root."""

    class_names: tuple[str, ...]
    splits: dict[str, FileSplit]
    notes: list[str]


class FileSource(Source):
    """Images of any size in files under `root`, brought to one `size` by an `ImageReader`. Raises `ArgumentError`.

    With `size` auto it follows the files' own: the headers of some of them are read when it is first needed.
    """

    def __init__(
        self,
        root: str | None,
        size: int | tuple[int, int] | Literal["auto"],
        channels: int,
        resize: str,
        test_fraction: float,
        interpolation: str = "bilinear",  # which the configs of earlier versions' runs leave out
        resize_size: int | None = None,
    ) -> None:
        if not root:
            raise ArgumentError(
                "root", f"expected the folder of your images, as in data.root=my_images, received {root!r}"
            )
        self.root = Path(root).expanduser()
        self.size_is_auto = size == AUTO
        sides = (1, 1) if size == AUTO else int_or_pair("size", size, 1, LONGEST)
        self._reader = ImageReader(sides, channels, resize, interpolation, resize_size)
        self.test_fraction = number("test_fraction", test_fraction, 0, 1, open_maximum=True)

    @abstractmethod
    def _find(self) -> Found:
        """Which files there are, and the class of each; reads no image. Raises `ConfigError`."""

    def describe(self) -> DataSpec:
        """Reads names, and headers for a `size` of auto. Raises `ConfigError` for files that are no data set."""
        found = self._found
        return DataSpec(
            (self.image_reader.channels, *self.image_reader.size),
            {name: len(split.paths) for name, split in found.splits.items()},
            found.class_names,
            {name: split.origin for name, split in found.splits.items()},
        )

    def read(self, split: str) -> Images:
        chosen = self._found.splits[split]
        return read_files(self.root, chosen.paths, chosen.y_N, self.image_reader)

    def read_readable(self, split: str) -> Readable:
        chosen = self._found.splits[split]
        try:
            return Readable(self.read(split))
        except UnreadableError as error:
            rows = torch.tensor([row for row in range(len(chosen.paths)) if row not in error.reasons])
            if not len(rows):
                raise
            left = chosen.select(rows, chosen.origin)
            images = read_files(self.root, left.paths, left.y_N, self.image_reader)
            return Readable(replace(images, index_N=rows), error.reasons)

    def image_files(self, split: str) -> list[Path]:
        return [self.root / path for path in self._found.splits[split].paths]

    def paths(self, split: str) -> list[str]:
        return [printable(path) for path in self._found.splits[split].paths]

    def labels(self) -> Labels:
        train = self._found.splits["train"]
        return Labels(train.y_N, train.group_N)

    def reader(self, input_shape: tuple[int, int, int]) -> ImageReader:
        return self.image_reader

    def notes(self) -> list[str]:
        return self._found.notes

    @cached_property
    def image_reader(self) -> ImageReader:
        """It has the size that was found, where that is auto. Raises `ConfigError` where no header can be read."""
        if not self.size_is_auto:
            return self._reader
        try:
            return replace(self._reader, size=auto_size([*self.sizes_looked_at]))
        except ArgumentError as error:  # of a resize_size that is smaller
            raise ConfigError(f"data.{error}") from error

    @cached_property
    def sizes_looked_at(self) -> tuple[tuple[int, int], ...]:
        """(H, W) of the training images whose headers were read for a `size` of auto."""
        return _sizes(self.root, tuple(sample(self._found.splits["train"].paths, LOOKED_AT)))

    @cached_property
    def _found(self) -> Found:
        if not os.path.isdir(self.root):  # False for a name that is too long, where Path.is_dir raises
            is_there = "is no folder" if os.path.exists(self.root) else "does not exist"
            raise ConfigError(
                f"data.root: expected the folder of your images, but {printable(self.root.absolute())} {is_there}"
            )
        try:
            return self._find()
        except ArgumentError as error:
            raise ConfigError(f"data.{error}") from error
        except ConfigError as error:
            raise ConfigError(f"data.root: {error}") from error


@lru_cache(maxsize=16)  # the jobs of a sweep are checked in one process
def _sizes(root: Path, paths: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    sizes, refused = read_sizes([root / path for path in paths])
    if not sizes:
        raise ConfigError(
            f"data.size: auto follows the sizes of the images, and of {len(paths):,} looked at none can be read; "
            f"{refused[0]}"
        )
    return tuple(sizes)


def completed(splits: Mapping[str, FileSplit], test_fraction: float) -> dict[str, FileSplit]:
    """The splits with a test split carved out of the training images, where there is none and a fraction is asked for.

    The training images are in a mixed order that never changes. Raises `ArgumentError` where no group would be left.
    """
    train, others = splits["train"], {name: split for name, split in splits.items() if name != "train"}
    if "test" not in splits and test_fraction > 0:
        train, others["test"] = _carve_test(train, test_fraction)
    generator = torch.Generator().manual_seed(derive(ORDER_SEED, "files"))
    return {"train": train.select(torch.randperm(len(train.paths), generator=generator), train.origin), **others}


def _carve_test(train: FileSplit, fraction: float) -> tuple[FileSplit, FileSplit]:
    count = max(1, round(fraction * len(train.paths)))
    if train.group_N is None:
        kept, carved = carve(train.y_N, count, "random", TEST_SEED)
    elif len(train.group_N.unique()) < 2:
        raise ArgumentError("test_fraction", f"expected 0 for images that are all of one group, received {fraction}")
    else:
        kept, carved = carve_groups(train.y_N, train.group_N, count, TEST_SEED)
    return train.select(kept, train.origin), train.select(carved, f"{fraction:.0%} of {train.origin}")
