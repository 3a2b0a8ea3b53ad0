import os
from pathlib import Path

import pytest
from image_folders import noise, png_header, write_folders, write_image
from PIL import Image

from cnnlab.data.auto_size import auto_size, sample
from cnnlab.data.image_files import read_sizes
from cnnlab.data.image_folder import ImageFolder
from cnnlab.runtime.errors import ConfigError


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(28, 28)] * 3, (28, 28)),
        ([(28, 28), (40, 44), (400, 300)], (40, 40)),  # the median of the shorter sides
        ([(1, 1)], (16, 16)),
        ([(100, 101)], (100, 100)),
        ([(333, 500), (500, 375)], (128, 128)),
        ([(32, 100)], (32, 96)),  # at least twice as long: 32 · 100 / 32 in steps of 8
        ([(900, 60)], (240, 60)),  # 4 times at most
        ([(32, 100), (100, 32)], (32, 32)),
    ],
)
def test_the_size_follows_the_files(sizes: list[tuple[int, int]], expected: tuple[int, int]) -> None:
    assert auto_size(sizes) == expected


def test_a_sample_depends_on_the_paths_alone_and_is_evenly_drawn() -> None:
    paths = [f"{label}/{number}.jpg" for label in "ab" for number in range(1000)]
    drawn = sample(paths, 500)
    assert drawn == sample(paths[::-1], 500)
    assert len(set(drawn)) == 500
    assert 200 < sum(path.startswith("a/") for path in drawn) < 300  # 250 ± 4.5 sd of √(500/4) · √(3/4)
    assert sample(["b", "a"], 500) == ["a", "b"]


def test_only_headers_are_read_and_the_orientation_is_applied(tmp_path: Path) -> None:
    header = tmp_path / "header.png"
    header.write_bytes(png_header(300, 200))  # has no pixels
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(10, 20)).save(turned, exif=exif)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    names = ("header.png", "turned.jpg", "text.png", "empty.png", "pipe.png")
    sizes, refused = read_sizes([tmp_path / name for name in names])
    assert sizes == [(200, 300), (20, 10)]
    assert [line.partition(": ")[2] for line in refused] == [
        "its content is no supported image: expected JPEG, PNG, BMP, WEBP, TIFF, PPM",
        "the file is empty",
        "expected a regular file",
    ]


def source(root: Path, **changes: int) -> ImageFolder:
    return ImageFolder(str(root), size="auto", channels=3, resize="crop", test_fraction=0.1, **changes)


def test_a_folder_is_described_in_the_size_that_was_found(tmp_path: Path) -> None:
    write_folders(tmp_path, {"cat": 10, "dog": 10}, side=20)
    write_image(tmp_path / "cat" / "grey.png", noise(20, 20, channels=1))
    (tmp_path / "dog" / "broken.png").write_text("reported when it is decoded")
    folder = source(tmp_path)
    assert folder.describe().input_shape == (3, 20, 20)
    assert folder.image_reader.size == (20, 20)


def test_images_of_which_none_can_be_read_are_reported_in_one_sentence(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    with pytest.raises(ConfigError) as caught:
        source(tmp_path).describe()
    assert str(caught.value).startswith("data.size: auto follows the sizes of the images, and of 3 looked at none can")
    assert ".png: its content is no supported image" in str(caught.value)


def test_a_resize_size_below_the_size_that_was_found_is_refused(tmp_path: Path) -> None:
    write_folders(tmp_path, {"cat": 3, "dog": 3}, side=20)
    with pytest.raises(ConfigError, match=r"^data.resize_size: expected a whole number from 20 to 8000, received 18"):
        source(tmp_path, resize_size=18).describe()
