from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from image_folders import write_folders
from torch import Tensor

from cnnlab.data.cache import read_files
from cnnlab.data.cache_file import cache_folder
from cnnlab.data.image_files import ImageReader
from cnnlab.data.level_counts import level_counts
from cnnlab.data.source import Images

PATHS = ["cat/000.png", "cat/001.png", "cat/002.png", "dog/000.png", "dog/001.png"]
LABELS = torch.tensor([0, 0, 0, 1, 1])


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Images:
    """Five images in the file of a cache."""
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path / "cache"))
    return read_files(write_folders(tmp_path / "data", {"cat": 3, "dog": 2}), PATHS, LABELS, ImageReader((6, 8), 3))


def counted_one_by_one(x_NCHW: Tensor) -> Tensor:
    levels = torch.arange(256)[:, None]
    return torch.stack([(x_NHW.flatten() == levels).sum(1) for x_NHW in x_NCHW.unbind(1)])


def kept_files() -> list[Path]:
    return sorted(cache_folder().glob("*.levels"))


def test_they_are_how_often_each_level_occurs(images: Images) -> None:
    x_NCHW = images.x_NCHW
    for of in (x_NCHW, images, Images.of(x_NCHW, LABELS)):
        assert torch.equal(level_counts(of), counted_one_by_one(x_NCHW))


def test_those_of_a_file_are_counted_once(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    counts_C256 = level_counts(images)

    def gather(images: Images, rows: Tensor) -> Tensor:
        raise AssertionError("an image was read")

    monkeypatch.setattr(Images, "gather", gather)
    assert torch.equal(level_counts(images), counts_C256)


def test_those_of_other_images_of_the_file_are_kept_beside_them(images: Images) -> None:
    level_counts(images)
    fewer = images.select(torch.tensor([4, 0]))
    for _ in range(2):
        assert torch.equal(level_counts(fewer), counted_one_by_one(fewer.x_NCHW))
    assert len(kept_files()) == 2


@pytest.mark.parametrize("damage", [lambda text: text.replace("[[", "[[1", 1), lambda text: text[:-9], lambda _: "[]"])
def test_a_damaged_file_of_counts_is_written_again(images: Images, damage: Callable[[str], str]) -> None:
    counts_C256 = level_counts(images)
    (kept,) = kept_files()
    before = kept.read_text()
    kept.write_text(damage(before))
    assert torch.equal(level_counts(images), counts_C256)
    assert kept.read_text() == before


def test_a_folder_that_cannot_be_written_to_stops_nothing(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, content: bytes) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("cnnlab.data.level_counts.replace_file", refuse)
    assert torch.equal(level_counts(images), counted_one_by_one(images.x_NCHW))
