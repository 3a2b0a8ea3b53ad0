"""The user's own images: files in folders that are named after their classes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cnnlab.data.file_source import SPLIT_NAMES, FileSource, FileSplit, Found, completed
from cnnlab.data.image_files import EXTENSIONS, Entries, list_images, visible
from cnnlab.runtime.errors import ConfigError, listing
from cnnlab.runtime.terminal import printable


class ImageFolder(FileSource):
    """Images of any size under `root`, brought to one `size` by an `ImageReader`. Raises `ArgumentError`.

    Its `resize`, `interpolation` and `resize_size` say how, its `channels` whether grey (1) or in colour (3).

    Either `root/train/CLASS/…` with `root/val/CLASS/…` and `root/test/CLASS/…` where there are such, or
    `root/CLASS/…`. What has no folder of its own is carved out of the training images: the test split here, a
    `test_fraction` of them, stratified, by a fixed seed (0 for none); validation as of any other data set. Classes are
    the folders' names, sorted by code points; a class's images may be in subfolders.

    The training images are numbered in a mixed order that never changes, so that the first of them (`data.limit`)
    and the last (`data.validation.from=end`) are of all classes; the other splits in the order of their paths.
    """

    def _find(self) -> Found:
        return _scan(self.root, self.test_fraction)


@dataclass
class _Leftovers:
    """Files and folders that are not read."""

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """At most one sentence on files and one on folders."""
        return [
            f"{what}: {len(paths):,}, such as {printable(Path(min(paths)))}"
            for paths, what in (
                (self.files, "files not read, in no class folder or without the extension of an image"),
                (self.folders, "folders not read, beside those of the splits"),
            )
            if paths
        ]


def _scan(root: Path, test_fraction: float) -> Found:
    """Every name under the root once. Raises `ConfigError`."""
    top = visible(root, root)
    folders = _split_folders(root, top)
    leftovers = _Leftovers()
    if folders:
        leftovers.files += top.files
        leftovers.folders += [name for name in top.folders if name not in folders.values()]
    else:
        folders = {"train": "."}
    classes = {split: _classes(root, folder, leftovers) for split, folder in folders.items()}
    class_names = tuple(sorted(classes["train"]))
    if len(class_names) < 2:
        raise ConfigError(
            f"expected a folder for each class, two or more, in {printable(root / folders['train'])}; found "
            f"{listing(class_names)}"
        )
    for split, folder in folders.items():
        _check_same_classes(root / folder, set(classes[split]), set(class_names))
    splits = {split: _files(classes[split], class_names, _shown(root / folder)) for split, folder in folders.items()}
    return Found(class_names, completed(splits, test_fraction), leftovers.notes())


def _split_folders(root: Path, top: Entries) -> dict[str, str]:
    """Split → its folder's name; empty if the root holds the classes themselves.

    A folder is a split's by its name and by having folders of its own: a class may be called `train`.
    """
    found: dict[str, str] = {}
    for split, names in SPLIT_NAMES.items():
        own = [name for name in top.folders if name.lower() in names and visible(root / name, root).folders]
        if len(own) > 1:
            raise ConfigError(f"expected one folder for the {split} split in {printable(root)}, found {listing(own)}")
        if own:
            found[split] = own[0]
    if found and "train" not in found:
        raise ConfigError(f"expected a folder 'train' beside {listing(found.values())} in {printable(root)}")
    return found


def _classes(root: Path, folder: str, leftovers: _Leftovers) -> dict[str, list[str]]:
    """Class → the paths of its images, relative to the root. Raises `ConfigError` for a class without any."""
    entries = visible(root / folder, root)
    leftovers.files += [str(Path(folder, name)) for name in entries.files]
    classes = {}
    for name in entries.folders:
        place = Path(folder, name)
        if not name.isprintable():
            raise ConfigError(f"expected a class's name in printable letters, received the folder {printable(place)}")
        found = list_images(root / place, root)
        below = place.as_posix()  # a Path for each of a million images would take half a minute
        leftovers.files += [f"{below}/{path}" for path in found.others]
        if not found.images:
            others = f"; its {len(found.others):,} files are of other kinds" if found.others else ""
            raise ConfigError(
                f"the class folder {printable(root / place)} has no image ({listing(sorted(EXTENSIONS))}){others}"
            )
        classes[name] = [f"{below}/{path}" for path in found.images]
    return classes


def _check_same_classes(folder: Path, found: set[str], expected: set[str]) -> None:
    """Raises `ConfigError` if a split's classes differ from those of the training images."""
    if found != expected:
        raise ConfigError(
            f"expected the classes of the training images in {printable(folder)}; it lacks "
            f"{listing(sorted(expected - found))} and has beside them {listing(sorted(found - expected))}"
        )


def _files(by_class: Mapping[str, list[str]], class_names: tuple[str, ...], origin: str) -> FileSplit:
    paths = [path for name in class_names for path in by_class[name]]
    sizes = torch.tensor([len(by_class[name]) for name in class_names])
    return FileSplit(paths, torch.arange(len(class_names)).repeat_interleave(sizes), origin)


def _shown(folder: Path) -> str:
    return f"{printable(Path(folder.resolve().name))}/"
