import os
from pathlib import Path
from typing import Any

import pytest
import torch
from image_folders import noise, write_folders, write_image

from cnnlab.data.image_files import ImageReader
from cnnlab.data.image_folder import ImageFolder
from cnnlab.runtime.errors import ArgumentError, ConfigError

WHOLE = {"train/cat": 12, "train/dog": 8, "val/cat": 3, "val/dog": 2, "test/cat": 4, "test/dog": 5}


def source(root: Path | str | None, **changes: Any) -> ImageFolder:
    arguments: dict[str, Any] = {"size": 8, "channels": 3, "resize": "crop", "test_fraction": 0.1, **changes}
    return ImageFolder(None if root is None else str(root), **arguments)


def refusal(root: Path, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        source(root, **changes).describe()
    return str(caught.value)


def test_each_split_is_the_folder_of_its_name(tmp_path: Path) -> None:
    spec = source(write_folders(tmp_path, WHOLE)).describe()
    assert spec.counts == {"train": 20, "val": 5, "test": 9}
    assert spec.class_names == ("cat", "dog")
    assert spec.input_shape == (3, 8, 8)
    assert spec.origins == {"train": "train/", "val": "val/", "test": "test/"}


@pytest.mark.parametrize("name", ["valid", "Val"])
def test_a_validation_folder_goes_by_several_names(tmp_path: Path, name: str) -> None:
    write_folders(tmp_path, {"Train/a": 2, "Train/b": 2, f"{name}/a": 1, f"{name}/b": 1})
    assert source(tmp_path, test_fraction=0).describe().counts == {"train": 4, "val": 2}


def test_without_a_test_folder_a_fraction_of_the_training_images_is_carved(tmp_path: Path) -> None:
    write_folders(tmp_path, {"train/cat": 30, "train/dog": 10})
    folder = source(tmp_path, test_fraction=0.2)
    assert folder.describe().counts == {"train": 32, "test": 8}
    assert folder.describe().origins["test"] == "20% of train/"
    assert folder.read("test").y_N.bincount().tolist() == [6, 2]
    everything = [
        f"train/{name}/{number:03d}.png" for name, count in (("cat", 30), ("dog", 10)) for number in range(count)
    ]
    assert sorted([*folder.paths("train"), *folder.paths("test")]) == everything
    torch.manual_seed(5)
    assert source(tmp_path, test_fraction=0.2).paths("test") == folder.paths("test") == sorted(folder.paths("test"))


def test_class_folders_in_the_root_are_split(tmp_path: Path) -> None:
    write_folders(tmp_path / "pets", {"cat": 10, "dog": 10})
    spec = source(tmp_path / "pets").describe()
    assert spec.counts == {"train": 18, "test": 2}
    assert spec.origins == {"train": "pets/", "test": "10% of pets/"}


def test_the_first_and_the_last_training_images_are_of_all_classes(tmp_path: Path) -> None:
    y_N = source(write_folders(tmp_path, {"a": 40, "b": 40}), test_fraction=0).read("train").y_N
    assert set(y_N[:10].tolist()) == set(y_N[-10:].tolist()) == {0, 1}


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_path_of_an_image_stands_at_its_index(tmp_path: Path, split: str) -> None:
    folder = source(write_folders(tmp_path, WHOLE))
    images, paths = folder.read(split), folder.paths(split)
    assert len(images) == len(paths)
    for x_CHW, label, index in zip(images.x_NCHW, images.y_N, images.index_N, strict=True):
        path = paths[int(index)]
        assert torch.equal(x_CHW, ImageReader((8, 8), 3).read(tmp_path / path))
        assert path.split("/")[:2] == [split, ("cat", "dog")[int(label)]]


def test_a_file_name_that_is_not_utf8_can_be_read_and_shown(tmp_path: Path) -> None:
    write_folders(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a" / "000.png").rename(tmp_path / "a" / os.fsdecode(b"\xff.png"))
    folder = source(tmp_path, test_fraction=0)
    shown = folder.paths("train")[int(folder.read("train").y_N.argmin())]
    assert "a/\\udcff.png" in folder.paths("train")
    assert shown.encode().startswith(b"a/")


@pytest.mark.parametrize(("size", "shape"), [(5, (1, 5, 5)), ((4, 6), (1, 4, 6))])
def test_the_size_and_channels_are_those_asked_for(
    tmp_path: Path, size: int | tuple[int, int], shape: tuple[int, int, int]
) -> None:
    folder = source(write_folders(tmp_path, {"a": 2, "b": 2}), size=size, channels=1, resize="pad", test_fraction=0)
    assert folder.describe().input_shape == tuple(folder.read("train").x_NCHW.shape[1:]) == shape
    assert folder.reader(shape) == ImageReader(shape[1:], 1, "pad")


def test_a_root_is_scanned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = source(write_folders(tmp_path, WHOLE))
    assert folder.notes() == []
    monkeypatch.setattr("cnnlab.data.image_folder._scan", None)
    folder.check()
    assert len(folder.read("test")) == len(folder.paths("test")) == 9


def test_what_is_not_read_is_reported_in_a_sentence_each(tmp_path: Path) -> None:
    write_folders(tmp_path, {**WHOLE, "extras/cat": 1})
    write_image(tmp_path / "stray.png", noise(8, 8))
    (tmp_path / "train" / "cat" / "notes.txt").touch()
    (tmp_path / "train" / "cat" / ".hidden").touch()
    write_image(tmp_path / "train" / "stray.png", noise(8, 8))
    assert source(tmp_path).notes() == [
        "files not read, in no class folder or without the extension of an image: 3, such as stray.png",
        "folders not read, beside those of the splits: 1, such as extras",
    ]


@pytest.mark.parametrize(
    ("argument", "value"), [("size", (8, 0)), ("channels", 2), ("resize", "zoom"), ("test_fraction", 1.0)]
)
def test_an_illegal_value_is_refused_by_its_name(argument: str, value: Any) -> None:
    with pytest.raises(ArgumentError) as caught:
        source("images", **{argument: value})
    assert caught.value.argument == argument


def test_a_root_that_is_missing_or_no_folder_is_reported_with_its_absolute_path(in_tmp_path: Path) -> None:
    for root in (None, ""):
        with pytest.raises(ArgumentError, match=r"expected the folder of your images, as in data\.root=my_images"):
            source(root)
    (in_tmp_path / "file").touch()
    assert refusal(Path("nowhere")).endswith(f"{in_tmp_path / 'nowhere'} does not exist")
    assert refusal(Path("file")).endswith(f"{in_tmp_path / 'file'} is no folder")


@pytest.mark.parametrize(
    ("sizes", "fragment"),
    [
        ({"train/cat": 2}, "for each class, two or more, in {root}/train; found cat"),
        ({".": 2}, "for each class, two or more, in {root}; found –"),
        ({"train/cat": 2, "train/dog": 0}, "the class folder {root}/train/dog has no image (.bmp"),
        ({"train/a": 1, "train/b": 1, "val/a": 1, "val/c": 1}, "in {root}/val; it lacks b and has beside them c"),
        ({"train/a": 1, "train/b": 1, "test/a": 1}, "in {root}/test; it lacks b and has beside them –"),
        ({"test/a": 1, "test/b": 1}, "expected a folder 'train' beside test in {root}"),
        ({"train/a": 1, "val/a": 1, "valid/a": 1}, "one folder for the val split in {root}, found val, valid"),
        ({"a": 1, "b\x1b[31m": 1}, "a class's name in printable letters, received the folder b\\x1b[31m"),
    ],
)
def test_folders_that_make_no_data_set_are_refused(tmp_path: Path, sizes: dict[str, int], fragment: str) -> None:
    message = refusal(write_folders(tmp_path, sizes))
    assert message.startswith("data.root: ")
    assert fragment.replace("{root}", str(tmp_path)) in message


def test_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    write_folders(tmp_path / "mine", {"train/a": 1, "train/b": 1})
    write_folders(tmp_path / "elsewhere", {"c": 1})
    (tmp_path / "mine" / "train" / "c").symlink_to(tmp_path / "elsewhere" / "c")
    assert f"data.root: {tmp_path}/mine/train/c: the link leads out of {tmp_path}/mine" in refusal(tmp_path / "mine")


def test_an_image_that_cannot_be_read_is_reported_with_its_path(tmp_path: Path) -> None:
    write_folders(tmp_path, WHOLE)
    (tmp_path / "train" / "cat" / "003.png").write_text("no image")
    folder = source(tmp_path)
    folder.describe()
    folder.check()
    with pytest.raises(ConfigError) as caught:
        folder.read("train")
    assert str(caught.value).startswith("data.root: 1 of 20 images cannot be read:")
    assert f"{tmp_path}/train/cat/003.png: its content is no supported image" in str(caught.value)


def test_classes_are_sorted_by_code_points_and_may_be_called_like_a_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_folders(tmp_path / "pets", dict.fromkeys(["Zebra", "ant", "Ölvogel", "10", "9/deep", "train"], 1))
    assert source("~/pets", test_fraction=0).describe().class_names == ("10", "9", "Zebra", "ant", "train", "Ölvogel")
