import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_folders import noise, png_header, write_image
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode, functional

from cnnlab.data.image_files import MOST_LISTED, ImageReader, Listing, list_images, printable, visible
from cnnlab.runtime.errors import ArgumentError, ConfigError


def reader(height: int = 8, width: int = 8, channels: int = 3, resize: str = "crop") -> ImageReader:
    return ImageReader((height, width), channels, resize)


def hwc(x_CHW: Tensor) -> np.ndarray:
    pixels: np.ndarray = x_CHW.permute(1, 2, 0).numpy()
    return pixels


def refusal(path: Path, by: ImageReader | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        (by or reader()).read(path)
    return str(caught.value)


SIDES = [(64, 64), (97, 64), (64, 97), (301, 200), (33, 90), (71, 70), (20, 250), (56, 64), (64, 56), (500, 480)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), SIDES)
def test_a_resize_size_gives_the_pixels_of_torchvisions_resize_and_centre_crop(
    height: int, width: int, interpolation: str
) -> None:
    image = Image.fromarray(noise(height, width))
    for resize, size in (("crop", [64]), ("squash", [64, 64])):
        resized = functional.resize(image, size, InterpolationMode(interpolation))
        expected = functional.pil_to_tensor(functional.center_crop(resized, [56, 49]))
        assert torch.equal(ImageReader((56, 49), 3, resize, interpolation, 64).convert(image), expected)


def test_with_a_resize_size_a_jpeg_is_decoded_at_its_full_resolution(tmp_path: Path) -> None:
    path = write_image(tmp_path / "x.jpg", noise(240, 320))
    exact = ImageReader((30, 30), 3, resize_size=32)
    assert torch.equal(exact.read(path), exact.convert(Image.open(path)))


def test_with_a_resize_size_a_very_long_image_is_not_resized_whole() -> None:
    x_CHW = ImageReader((200, 200), 3, resize_size=256).convert(Image.new("RGB", (1_000_000, 1), "red"))
    assert (x_CHW[0] == 255).all()  # whole, it would be 256 × 256,000,000 pixels
    assert not x_CHW[1:].any()


@pytest.mark.parametrize("extension", ["png", "jpg", "bmp", "webp", "tif", "ppm"])
@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_an_image_of_the_size_is_what_pil_decodes(tmp_path: Path, extension: str, resize: str) -> None:
    path = write_image(tmp_path / f"x.{extension}", noise(6, 8))
    x_CHW = reader(6, 8, resize=resize).read(path)
    assert x_CHW.dtype == torch.uint8
    assert np.array_equal(hwc(x_CHW), np.asarray(Image.open(path)))


def test_the_content_decides_the_format_and_not_the_name(tmp_path: Path) -> None:
    path = write_image(tmp_path / "x.png", noise(8, 8)).rename(tmp_path / "x.jpg")
    assert np.array_equal(hwc(reader().read(path)), noise(8, 8))


def test_grey_becomes_three_equal_channels_and_colours_one_of_their_luma(tmp_path: Path) -> None:
    grey, colours = noise(8, 8, channels=1), noise(8, 8)
    assert np.array_equal(hwc(reader().read(write_image(tmp_path / "x.png", grey))), grey[..., None].repeat(3, 2))
    x_CHW = reader(channels=1).read(write_image(tmp_path / "x.png", colours))
    assert x_CHW.shape == (1, 8, 8)
    assert np.abs(x_CHW[0].numpy() - colours @ np.array([0.299, 0.587, 0.114])).max() <= 1  # ITU-R BT.601


def test_transparent_pixels_are_laid_over_white(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), dtype=np.uint8)
    pixels[..., 0] = 200
    pixels[0, :, 3], pixels[1, :, 3] = 255, 51  # opaque, a fifth; the rest is not seen
    x_CHW = reader().read(write_image(tmp_path / "x.png", pixels))
    assert x_CHW[:, 0, 0].tolist() == [200, 0, 0]
    assert x_CHW[:, 1, 0].tolist() == [round(255 * 0.8 + 200 * 0.2), round(255 * 0.8), round(255 * 0.8)]
    assert x_CHW[:, 2, 0].tolist() == [255, 255, 255]


def test_a_transparent_colour_of_a_palette_is_laid_over_white(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "x.png", transparency=0)
    pixels = hwc(reader().read(tmp_path / "x.png"))
    assert (pixels[0, 0].tolist(), pixels[5, 5].tolist()) == ([255, 255, 255], [40, 50, 60])


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_of_sixteen_bits_the_upper_eight_count_and_one_bit_becomes_0_or_255(tmp_path: Path, extension: str) -> None:
    bytes_HW = noise(8, 8, channels=1)
    wide = (bytes_HW.astype(np.uint16) << 8) | noise(8, 8, channels=1, seed=1)
    for pixels, expected in ((wide, bytes_HW), (bytes_HW > 127, (bytes_HW > 127) * 255)):
        x_CHW = reader(channels=1).read(write_image(tmp_path / f"x.{extension}", pixels))
        assert np.array_equal(x_CHW[0].numpy(), expected)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=100)
    red, green, blue = reader().read(tmp_path / "x.jpg")[:, 4, 4].tolist()
    assert red > 250
    assert max(green, blue) < 5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_in_the_exif_data_is_applied(tmp_path: Path, orientation: int) -> None:
    seen = noise(4, 4)
    turned = (seen, seen[:, ::-1], seen[::-1, ::-1], seen[::-1])  # 1 to 4, then those on their side
    turned += (seen.swapaxes(0, 1), np.rot90(seen), np.rot90(seen[::-1]), np.rot90(seen, -1))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(turned[orientation - 1])).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(hwc(reader(4, 4).read(tmp_path / "x.png")), seen)


def test_of_an_animation_the_first_image_counts(tmp_path: Path) -> None:
    frames = [Image.fromarray(noise(8, 8, seed=seed)) for seed in (0, 1)]
    frames[0].save(tmp_path / "x.png", save_all=True, append_images=frames[1:])
    assert np.array_equal(hwc(reader().read(tmp_path / "x.png")), noise(8, 8))


def test_crop_keeps_the_centre_at_the_scale_of_the_shorter_side_and_squash_stretches_both(tmp_path: Path) -> None:
    path = write_image(tmp_path / "x.png", noise(16, 40))
    halved, squashed = (Image.open(path).resize(size, Image.Resampling.BILINEAR) for size in ((20, 8), (8, 8)))
    assert np.array_equal(hwc(reader(8, 8).read(path)), np.asarray(halved)[:, 6:14])
    assert np.array_equal(hwc(reader(8, 8, resize="squash").read(path)), np.asarray(squashed))


def test_pad_keeps_everything_between_black_bars(tmp_path: Path) -> None:
    pixels = np.full((16, 32, 3), 200, dtype=np.uint8)
    x_CHW = reader(8, 8, resize="pad").read(write_image(tmp_path / "x.png", pixels))
    expected = np.zeros((8, 8, 3), dtype=np.uint8)
    expected[2:6] = 200
    assert np.array_equal(hwc(x_CHW), expected)


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (2, 3)])
def test_any_shape_is_brought_to_the_size(tmp_path: Path, resize: str, shape: tuple[int, int]) -> None:
    path = write_image(tmp_path / "x.png", np.full((*shape, 3), 200, dtype=np.uint8))
    x_CHW = reader(8, 12, resize=resize).read(path)
    assert x_CHW.shape == (3, 8, 12)
    assert int(x_CHW.max()) == 200


def test_a_fine_checkerboard_becomes_grey_and_no_moire(tmp_path: Path) -> None:
    pixels = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    x_CHW = reader(8, 8, channels=1).read(write_image(tmp_path / "x.png", pixels))
    assert int(x_CHW.min()) >= 120
    assert int(x_CHW.max()) <= 135


def test_a_large_jpeg_that_is_decoded_small_is_nearly_the_same(tmp_path: Path) -> None:
    smooth = Image.fromarray(noise(8, 8)).resize((256, 256), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "x.jpg", quality=95)
    whole = ImageOps.fit(Image.open(tmp_path / "x.jpg"), (16, 16), Image.Resampling.BILINEAR)
    difference = hwc(reader(16, 16).read(tmp_path / "x.jpg")).astype(int) - np.asarray(whole)
    assert np.abs(difference).max() <= 6


@pytest.mark.parametrize(
    ("changes", "argument", "fragment"),
    [
        ({"size": (0, 8)}, "size", "received 0"),
        ({"channels": 2}, "channels", "1, 3"),
        ({"resize": "crob"}, "resize", "did you mean 'crop'"),
        ({"interpolation": "nearest"}, "interpolation", "one of bilinear, bicubic"),
        ({"resize_size": 7}, "resize_size", "from 8 to 8000"),
        ({"resize_size": 9, "resize": "pad"}, "resize", "crop or squash where there is a resize_size"),
    ],
)
def test_an_illegal_value_is_refused_by_its_name(changes: dict[str, Any], argument: str, fragment: str) -> None:
    with pytest.raises(ArgumentError, match=fragment) as caught:
        ImageReader(**{"size": (8, 8), "channels": 3, **changes})
    assert caught.value.argument == argument


def truncated(path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(buffer, path.suffix[1:].replace("jpg", "jpeg"))
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "bmp", "ppm"])
def test_a_truncated_image_is_refused(tmp_path: Path, extension: str) -> None:
    truncated(tmp_path / f"x.{extension}")
    assert str(tmp_path / f"x.{extension}") in refusal(tmp_path / f"x.{extension}")


def test_every_truncation_and_many_flips_of_an_image_are_read_or_refused(tmp_path: Path) -> None:
    path = write_image(tmp_path / "x.png", noise(8, 8))
    whole = path.read_bytes()
    damaged = [whole[:length] for length in range(0, len(whole), 7)]
    damaged += [whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :] for place in range(0, len(whole), 5)]
    refusals = []
    for content in damaged:
        path.write_bytes(content)
        try:
            assert reader().read(path).shape == (3, 8, 8)
        except ConfigError as error:
            refusals.append(str(error))
    assert all(message.startswith(f"{path}: ") for message in refusals)
    assert len(refusals) > len(damaged) / 2


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "the file is empty"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "expected JPEG, PNG, BMP, WEBP, TIFF, PPM"),
        (b"GIF89a\x08\x00\x08\x00\x00\x00\x00;", "expected JPEG, PNG"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "x.png: "),
    ],
    ids=["empty", "eps", "gif", "png"],
)
def test_what_is_no_image_whatever_its_name_is_refused(tmp_path: Path, content: bytes, fragment: str) -> None:
    (tmp_path / "x.png").write_bytes(content)
    assert fragment in refusal(tmp_path / "x.png")


@pytest.mark.parametrize(("side", "received"), [(8001, "8001×8001, 64.0 megapixels"), (60_000, "more than 179 mega")])
def test_an_image_of_too_many_pixels_is_refused_by_its_header(tmp_path: Path, side: int, received: str) -> None:
    (tmp_path / "x.png").write_bytes(png_header(side, side))
    assert f"at most 64 megapixels, received {received}" in refusal(tmp_path / "x.png")


def test_a_huge_file_and_what_is_no_file_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(1 << 30)
    os.mkfifo(tmp_path / "pipe.png")
    assert "expected at most 268 MB, received 1,074" in refusal(tmp_path / "huge.png")
    assert "expected a regular file" in refusal(tmp_path / "pipe.png")
    assert "No such file" in refusal(tmp_path / "nothing.png")


@pytest.mark.parametrize("value", [np.int32(70_000), np.float32(0.5)])
def test_more_than_sixteen_bits_are_refused(tmp_path: Path, value: np.generic) -> None:
    path = write_image(tmp_path / "x.tif", np.full((8, 8), value))
    assert "expected 8 or 16 bits a channel" in refusal(path)


def test_many_are_read_in_the_order_of_their_paths(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{number}.png", noise(8, 8, seed=number)) for number in range(150)]
    x_NCHW = reader().read_all(paths)
    assert x_NCHW.shape == (150, 3, 8, 8)
    assert x_NCHW.is_contiguous()
    assert all(np.array_equal(hwc(x_NCHW[number]), noise(8, 8, seed=number)) for number in range(150))


@pytest.mark.parametrize(("side", "threads"), [(8, 1), (64, 3)])  # files of 0.3 and 12 kB
def test_tiny_files_are_read_by_one_thread_and_others_by_as_many_as_there_are_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int, threads: int
) -> None:
    started: list[int] = []

    def pool(workers: int) -> ThreadPoolExecutor:
        started.append(workers)
        return ThreadPoolExecutor(workers)

    monkeypatch.setattr("cnnlab.data.image_files.ThreadPoolExecutor", pool)
    monkeypatch.setattr("cnnlab.data.image_files.cpu_count", lambda: 3)
    paths = [write_image(tmp_path / f"{number}.png", noise(side, side, seed=number)) for number in range(3)]
    ImageReader((8, 8), 3).read_all(paths)
    assert started == [threads]


def test_all_that_cannot_be_read_come_in_one_message(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{number:02d}.png", noise(8, 8)) for number in range(20)]
    for number in range(3, 12):
        paths[number].write_text("no image")
    with pytest.raises(ConfigError) as caught:
        reader().read_all(paths)
    lines = str(caught.value).splitlines()
    assert lines[0] == "9 of 20 images cannot be read:"
    assert [line.split(":")[0].strip() for line in lines[1:6]] == [str(path) for path in paths[3:8]]
    assert lines[6:] == ["  and 4 more"]
    assert len(lines) == MOST_LISTED + 2


def test_an_interruption_does_not_wait_for_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_image(tmp_path / "x.png", noise(8, 8))
    read: list[int] = []

    def interrupted(chunks: Any, count: int) -> Any:
        next(iter(chunks))
        raise KeyboardInterrupt

    decode = ImageReader._decode
    monkeypatch.setattr("cnnlab.data.image_files._with_progress", interrupted)
    monkeypatch.setattr(ImageReader, "_decode", lambda self, path: read.append(1) or decode(self, path))
    with pytest.raises(KeyboardInterrupt):
        reader().read_all([path] * 10_000)
    assert len(read) < 5_000
    assert threading.active_count() < 20


def test_images_are_listed_by_extension_at_any_depth_sorted_by_code_points_without_hidden_ones(tmp_path: Path) -> None:
    images = ["Z.bmp", "a/B.jpeg", "a/deep/x.WebP", "a/z.jpg", "b.PNG", "é.tif"]
    for name in (*reversed(images), "notes.txt", "a/data.csv", ".x.png", ".git/y.png", "__MACOSX/z.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list_images(tmp_path, tmp_path) == Listing(images, ["a/data.csv", "notes.txt"])


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_link_out_of_the_root_is_refused_by_its_name(tmp_path: Path, kind: str) -> None:
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "x.png").touch()
    (tmp_path / "root").mkdir()
    link = tmp_path / "root" / "link.png"
    link.symlink_to(tmp_path / "elsewhere" / ("x.png" if kind == "file" else "deep"))
    with pytest.raises(ConfigError, match=f"{link}: the link leads out of {tmp_path / 'root'} to "):
        list_images(tmp_path / "root", tmp_path / "root")


def test_a_link_that_stays_inside_is_followed_and_a_root_may_be_one_itself(tmp_path: Path) -> None:
    write_image(tmp_path / "store" / "x.png", noise(8, 8))
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "one.png").symlink_to("../store/x.png")
    (tmp_path / "cats" / "all").symlink_to("../store")
    assert list_images(tmp_path / "cats", tmp_path).images == ["all/x.png", "one.png"]
    assert list_images(tmp_path / "cats" / "all", tmp_path / "cats" / "all").images == ["x.png"]


@pytest.mark.parametrize("target", ["nothing.png", "x.png"])
def test_a_link_that_leads_nowhere_or_to_itself_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "x.png").symlink_to(target)
    with pytest.raises(ConfigError, match="where nothing can be read"):
        list_images(tmp_path, tmp_path)


@pytest.mark.parametrize("links", [{"a/b/up": "../.."}, {"a/to_b": "../b", "b/to_a": "../a"}, {"one": "a", "two": "a"}])
def test_links_that_go_in_circles_are_refused(tmp_path: Path, links: dict[str, str]) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    for link, target in links.items():
        (tmp_path / link).symlink_to(target)
    with pytest.raises(ConfigError, match="that is read already"):
        list_images(tmp_path, tmp_path)


def test_a_folder_that_cannot_be_listed_is_reported_even_if_its_name_is_no_text(tmp_path: Path) -> None:
    shown = printable(Path(os.fsdecode(b"a\xff\x1b[31m")))
    assert shown.encode() == b"a\\udcff\\x1b[31m"
    with pytest.raises(ConfigError, match=r"cannot be listed: .*No such file"):
        visible(tmp_path / "nowhere", tmp_path)
