"""The user's own images whose classes are in a CSV, wherever the files are."""

import csv
import io
import os
import posixpath
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch

from cnnlab.data.file_source import SPLIT_NAMES, FileSource, FileSplit, Found, completed
from cnnlab.data.image_files import MOST_LISTED, check_inside
from cnnlab.runtime.errors import ArgumentError, ConfigError, did_you_mean, first_line, listing
from cnnlab.runtime.files import read_regular
from cnnlab.runtime.terminal import printable

REQUIRED = ("file_name", "label")
COLUMNS = (*REQUIRED, "split", "group")
LARGEST = 1 << 28  # bytes; some million rows
SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}


class LabelsCSV(FileSource):
    """Images of any size under `root`, with their classes in the CSV `labels`. Raises `ArgumentError`.

    Its `size`, `channels`, `resize`, `interpolation`, `resize_size` and `test_fraction` are those of an `ImageFolder`.

    `labels` is a path, relative to `root`. Its columns are `file_name`, relative to `root`, and `label`; and, where
    wanted, `split` (train, val or test) and `group`: images of one group, such as a patient's, are never in two
    splits. What has no rows of its own is carved out of the training images as of an `ImageFolder`, by whole groups.
    Classes are the labels as text, sorted by code points. The order of the rows has no effect.
    """

    def __init__(
        self,
        root: str | None,
        labels: str | None,
        size: int | tuple[int, int] | Literal["auto"],
        channels: int,
        resize: str,
        test_fraction: float,
        interpolation: str = "bilinear",
        resize_size: int | None = None,
    ) -> None:
        super().__init__(root, size, channels, resize, test_fraction, interpolation, resize_size)
        if not isinstance(labels, str) or not labels:
            raise ArgumentError(
                "labels", f"expected a CSV in data.root, as in data.labels=labels.csv, received {labels!r}"
            )
        self.csv = self.root / Path(labels).expanduser()
        self.labels_given = labels

    def _find(self) -> Found:
        if not self.csv.exists() and os.path.isfile(self.labels_given):
            raise ArgumentError(
                "labels",
                f"expected a path relative to data.root; there is no {printable(self.csv.absolute())}: is it "
                f"{printable(os.path.abspath(self.labels_given))}?",
            )
        rows = _read(self.csv)
        _raise_if_any(self.csv, [*_repeated(rows), *_divided_groups(rows)])
        class_names = _class_names(rows, self.csv)
        _raise_if_any(self.csv, _unreadable(rows, self.root))
        splits = {split: _split(rows, split, class_names, printable(self.csv.name)) for split in SPLIT_NAMES}
        splits = {name: split for name, split in splits.items() if split.paths}
        return Found(class_names, completed(splits, self.test_fraction), _notes(rows))


@dataclass(frozen=True)
class _Row:
    """One image; `line` is that of the file where its row ends, `path` relative to the root."""

    line: int
    path: str
    label: str
    split: str
    group: str


def _raise_if_any(path: Path, mistakes: Sequence[str]) -> None:
    """Raises `ArgumentError` with the file and the first few mistakes, each with its line."""
    if not mistakes:
        return
    if len(mistakes) == 1:
        raise ArgumentError("labels", f"{printable(path)}: {mistakes[0]}")
    more = [f"and {len(mistakes) - MOST_LISTED:,} more"] if len(mistakes) > MOST_LISTED else []
    first = [f"{printable(path)}: {len(mistakes):,} mistakes:", *mistakes[:MOST_LISTED]]
    raise ArgumentError("labels", "\n    ".join([*first, *more]))


def _read(path: Path) -> list[_Row]:
    """The rows, sorted by their paths. Raises `ArgumentError` with every mistake that a row has by itself."""
    table = _table(_text(path), path)
    _, header = next(table, (0, []))
    names = [name.strip() for name in header]
    _check_header(names, path)
    rows: list[_Row] = []
    mistakes: list[str] = []
    for line, fields in table:
        try:
            rows.append(_row(line, names, fields))
        except ConfigError as error:
            mistakes.append(f"line {line}: {error}")
    _raise_if_any(path, mistakes)
    return sorted(rows, key=lambda row: row.path)


def _text(path: Path) -> str:
    try:
        content = read_regular(path, LARGEST)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero
        raise ArgumentError(
            "labels",
            f"{printable(path.absolute())} cannot be read: {getattr(error, 'strerror', None) or first_line(error)}",
        ) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ArgumentError("labels", f"{printable(path)}: line {line}: expected text in UTF-8") from error


def _table(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """The fields of each row with the line where it ends, empty rows left out. Raises `ArgumentError`."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise ArgumentError("labels", f"{printable(path)}: line {reader.line_num}: {first_line(error)}") from error


def _check_header(names: Sequence[str], path: Path) -> None:
    expected = f"expected {listing(REQUIRED)} and, where wanted, {listing(COLUMNS[len(REQUIRED) :])}"
    received = printable(listing(names))[:200]
    for name in names:
        if name not in COLUMNS:
            commas = " separated by commas" if any(mark in name for mark in ";\t|") else ""
            raise ArgumentError(
                "labels",
                f"{printable(path)}: line 1: there is no column {name[:200]!r};{did_you_mean(name, COLUMNS)} "
                f"{expected}{commas}, received {received}",
            )
    if len(set(names)) < len(names) or not set(REQUIRED) <= set(names):
        raise ArgumentError("labels", f"{printable(path)}: line 1: {expected}, each once, received {received}")


def _row(line: int, names: Sequence[str], fields: Sequence[str]) -> _Row:
    """Raises `ConfigError` for what is wrong with this row alone."""
    if len(fields) != len(names):
        raise ConfigError(f"expected {len(names)} fields, received {len(fields)}")
    row = dict(zip(names, fields, strict=True))
    path = row.pop("file_name")
    for name, value in (("file_name", path), *row.items()):
        if not value.strip():
            raise ConfigError(f"expected a {name}, received nothing")
    label, split = row["label"].strip(), row.get("split", "train").strip()
    if not label.isprintable():
        raise ConfigError(f"expected a label in printable letters, received {printable(label)}")
    if split.lower() not in SPLIT_OF:
        raise ConfigError(
            f"expected one of the splits {listing(SPLIT_NAMES)}, received {split!r};{did_you_mean(split, SPLIT_OF)}"
        )
    return _Row(line, _inside(path), label, SPLIT_OF[split.lower()], row.get("group", "").strip())


def _inside(name: str) -> str:
    """One spelling of a path below the root. Raises `ConfigError` for a path that leaves it by its name."""
    path = posixpath.normpath(name)
    if os.path.isabs(name) or Path(name).drive or path == ".." or path.startswith("../"):
        raise ConfigError(f"{printable(name)!r} leads out of data.root: expected a path relative to it")
    return path


def _repeated(rows: Sequence[_Row]) -> Iterator[str]:
    """A sentence for each file that is listed again; the rows are sorted by their paths."""
    for first, second in pairwise(rows):
        if first.path == second.path:
            lines = f"{printable(first.path)} is in lines {first.line} and {second.line}"
            splits = f", of the splits {first.split} and {second.split}" if first.split != second.split else ""
            yield f"{lines}{splits}: expected each file once"


def _divided_groups(rows: Sequence[_Row]) -> Iterator[str]:
    """A sentence for each group that is in two splits."""
    homes: dict[str, _Row] = {}
    divided: set[str] = set()
    for row in rows:
        home = homes.setdefault(row.group, row)
        if row.group and row.split != home.split and row.group not in divided:
            divided.add(row.group)
            yield (
                f"the group {printable(row.group)} is in the splits {home.split} (line {home.line}) and {row.split} "
                f"(line {row.line}): expected all images of a group in one split"
            )


def _class_names(rows: Sequence[_Row], path: Path) -> tuple[str, ...]:
    """Those of the training images. Raises `ArgumentError` for fewer than two, and where another split has more."""
    class_names = tuple(sorted({row.label for row in rows if row.split == "train"}))
    if len(class_names) < 2:
        raise ArgumentError(
            "labels",
            f"{printable(path)}: expected training images of two labels or more; found {listing(class_names)}",
        )
    known = set(class_names)
    _raise_if_any(
        path,
        [
            f"line {row.line}: no training image has the label {row.label!r} of this {row.split} image: expected one "
            f"of {listing(class_names[:20])}"
            for row in rows
            if row.label not in known
        ],
    )
    return class_names


def _unreadable(rows: Sequence[_Row], root: Path) -> list[str]:
    """A sentence for each file that is missing, no regular file, or a link out of the root."""
    check = _file_check(root)
    mistakes = []
    for row in rows:
        try:
            check(row.path)
        except ConfigError as error:
            mistakes.append(f"line {row.line}: {error}")
    return mistakes


def _file_check(root: Path) -> Callable[[str], None]:
    inside: set[str] = set()  # folders that are checked already

    def check(path: str) -> None:
        place = root / path
        try:
            is_file, is_link = stat.S_ISREG(place.stat().st_mode), place.is_symlink()
        except (OSError, ValueError) as error:  # no such file, a name that is too long, one with a zero
            raise ConfigError(
                f"there is no file {printable(place)} ({getattr(error, 'strerror', None) or first_line(error)})"
            ) from error
        if not is_file:
            raise ConfigError(f"{printable(place)} is no file: expected an image")
        if is_link:
            check_inside(place, root)
        folder = posixpath.dirname(path)
        if folder not in inside:
            check_inside(place.parent, root)
            inside.add(folder)

    return check


def _split(rows: Sequence[_Row], split: str, class_names: Sequence[str], origin: str) -> FileSplit:
    own = [row for row in rows if row.split == split]
    number = {name: label for label, name in enumerate(class_names)}
    y_N = torch.tensor([number[row.label] for row in own], dtype=torch.int64)
    groups = {name: index for index, name in enumerate(sorted({row.group for row in own}))}
    group_N = torch.tensor([groups[row.group] for row in own]) if any(groups) else None
    return FileSplit([row.path for row in own], y_N, origin, group_N)


def _notes(rows: Sequence[_Row]) -> list[str]:
    groups = {row.group for row in rows if row.group}
    return [f"groups: {len(groups):,}, each whole in one split"] if groups else []
