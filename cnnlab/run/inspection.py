"""What there is to know of a run's data before it trains: counts, files, what cannot be read, duplicates."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from cnnlab.config.run_plan import RunPlan
from cnnlab.data.duplicates import Duplicates, Group, Member, find_duplicates
from cnnlab.data.image_files import FileFacts, measure_files
from cnnlab.data.near_duplicates import SMALLEST
from cnnlab.data.source import Images, Labels, Readable
from cnnlab.run.loaders import describe_balance
from cnnlab.runtime.device import size_text
from cnnlab.runtime.errors import ArgumentError, ConfigError
from cnnlab.runtime.terminal import printable

HELD_OUT = ("val", "test")


@dataclass(frozen=True)
class Inspection:
    """`splits` are the images that can be read, as the run uses them; `class_names` are printable."""

    class_names: list[str]
    input_shape: tuple[int, int, int]
    splits: Mapping[str, Images]
    paths: Mapping[str, list[str] | None]  # split → the file of each image, printable, by the images' `index_N`
    unreadable: Mapping[str, list[str]]  # split → sentences, each with its file
    files: list[FileFacts] | None  # None where images are no files of their own
    duplicates: Duplicates
    balance: str | None  # a sentence on classes of different sizes

    def counts(self, split: str) -> list[int]:
        """The images of each class that can be read."""
        counts: list[int] = self.splits[split].y_N.bincount(minlength=len(self.class_names)).tolist()
        return counts

    def file_of(self, member: Member) -> str:
        """The file of an image in a group, or its number where it has none."""
        index = int(self.splits[member.split].index_N[member.row])
        paths = self.paths[member.split]
        return f"image {index}" if paths is None else paths[index]

    def image_of(self, member: Member) -> Tensor:
        """(C, H, W) uint8."""
        return self.splits[member.split].select(torch.tensor([member.row])).x_NCHW[0]


def inspect_data(plan: RunPlan) -> Inspection:
    """Reads all splits of a run. Raises `ConfigError` where a split has no image that can be read."""
    own = [split for split in plan.spec.counts if split != "train"]
    readable = {split: plan.source.read_readable(split) for split in ("train", *own)}
    splits = _training_splits(plan, readable["train"])
    splits |= {split: readable[split].images for split in own}
    order = [split for split in ("train", *HELD_OUT) if split in splits]
    files = [path for split in readable for path in plan.source.image_files(split) or []]
    counts = splits["train"].y_N.bincount(minlength=plan.spec.classes).tolist()
    return Inspection(
        [printable(name) for name in plan.spec.class_names],
        plan.spec.input_shape,
        {split: splits[split] for split in order},
        {split: plan.source.paths(split if split in own else "train") for split in order},
        {split: [*found.unreadable.values()] for split, found in readable.items() if found.unreadable},
        measure_files(files) if files else None,
        find_duplicates({split: splits[split] for split in order}),
        describe_balance(plan, counts),
    )


def _training_splits(plan: RunPlan, readable: Readable) -> dict[str, Images]:
    """The training images that can be read, and those that are held out of them, as the run itself divides them."""
    known = plan.source.labels()
    try:
        kept, carved = plan.data.carve(plan.spec, known or Labels(readable.images.y_N))
    except ArgumentError as error:
        raise ConfigError(f"data.{error}") from error
    splits = {"train": _at(readable, kept[: plan.data.limit])}
    return splits | ({"val": _at(readable, carved)} if len(carved) else {})


def _at(readable: Readable, position_N: Tensor) -> Images:
    """The images at these positions of the split, without those that cannot be read."""
    images, unreadable = readable.images, torch.tensor([*readable.unreadable], dtype=torch.int64)
    every_N = torch.arange(len(images) + len(unreadable))
    read_N = every_N[~torch.isin(every_N, unreadable)]
    return images.select(torch.isin(read_N, position_N).nonzero().flatten())


def summary(found: Inspection) -> list[str]:
    """A line for each thing found, for the terminal and the page."""
    lines = [_unreadable_line(found), found.balance, *_duplicate_lines(found)]
    return [line for line in lines if line]


def _unreadable_line(found: Inspection) -> str | None:
    if found.files is None:
        return None
    unreadable = [reason for reasons in found.unreadable.values() for reason in reasons]
    if not unreadable:
        return "files: all can be read"
    more = f", such as {unreadable[0]}" if len(unreadable) > 1 else f": {unreadable[0]}"
    return f"files: {len(unreadable):,} cannot be read{more}"


def _duplicate_lines(found: Inspection) -> list[str]:
    duplicates = found.duplicates
    if not duplicates.groups:
        return [f"duplicates: none found{_exact_alone(found)}"]
    images = sum(len(group.members) for group in duplicates.groups)
    exact = sum(group.is_exact for group in duplicates.groups)
    lines = [
        f"duplicates: {len(duplicates.groups):,} {'group' if len(duplicates.groups) == 1 else 'groups'} of {images:,} "
        f"images; in {exact:,} they are equal to the bit"
        f"{_exact_alone(found)}"
    ]
    for split in HELD_OUT:
        if split in found.splits and (leaked := duplicates.also_in(split, "train")):
            count = len(found.splits[split])
            lines.append(
                f"duplicates: {leaked:,} of {count:,} {split} images ({leaked / count:.1%}) are in train, too: "
                f"accuracy/{split} counts what was learned by heart"
            )
    if conflicts := sum(len(group.labels) > 1 for group in duplicates.groups):
        have = "group has" if conflicts == 1 else "groups have"
        lines.append(f"duplicates: {conflicts:,} {have} images of more than one class: check their labels")
    return lines


def _exact_alone(found: Inspection) -> str:
    if found.duplicates.near_searched:
        return ""
    return f" (images of fewer than {SMALLEST} pixels a side are compared exactly alone)"


def facts_of_files(found: Inspection) -> list[tuple[str, str]]:
    """What the headers say, as rows of a table; empty where images are no files of their own."""
    if not found.files:
        return []
    files, (_, height, width) = found.files, found.input_shape
    sizes = Counter((file.width, file.height) for file in files)
    (common, times), areas = sizes.most_common(1)[0], sorted(sizes, key=lambda size: size[0] * size[1])
    smaller = sum(file.width < width or file.height < height for file in files)
    formats = Counter(file.format for file in files).most_common()
    return [
        ("files", f"{len(files):,} ({', '.join(f'{name} {count:,}' for name, count in formats)})"),
        ("smallest", _size(areas[0])),
        ("largest", _size(areas[-1])),
        ("most frequent", f"{_size(common)}, {times:,} files"),
        ("median", _size((round(median(file.width for file in files)), round(median(file.height for file in files))))),
        ("different sizes", f"{len(sizes):,}"),
        ("widest and tallest", f"{_aspect(max(sizes, key=_ratio))} and {_aspect(min(sizes, key=_ratio))}"),
        ("network's input", f"{_size((width, height))}; {smaller:,} files have a shorter side and are enlarged"),
        ("bytes", f"{size_text(sum(file.size for file in files))}, a file {size_text(_median_bytes(files))} (median)"),
    ]


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"


def _ratio(size: tuple[int, int]) -> float:
    return size[0] / size[1]


def _aspect(size: tuple[int, int]) -> str:
    return f"{_size(size)} ({_ratio(size):.2g} : 1)"


def _median_bytes(files: list[FileFacts]) -> int:
    return round(median(file.size for file in files))


def as_json(found: Inspection) -> dict[str, Any]:
    """All that was found, for programs."""
    return {
        "classes": {
            name: {split: found.counts(split)[label] for split in found.splits}
            for label, name in enumerate(found.class_names)
        },
        "files": dict(facts_of_files(found)),
        "unreadable": dict(found.unreadable),
        "duplicates": [_group_as_json(found, group) for group in found.duplicates.groups],
        "summary": summary(found),
    }


def _group_as_json(found: Inspection, group: Group) -> dict[str, Any]:
    return {
        "exact": group.is_exact,
        "images": [
            {"split": member.split, "file": found.file_of(member), "class": found.class_names[member.label]}
            for member in group.members
        ],
    }
