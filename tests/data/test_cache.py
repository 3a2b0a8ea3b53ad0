import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from image_folders import write_folders

from cnnlab.data.cache import read_files
from cnnlab.data.cache_file import HEADER, cache_folder
from cnnlab.data.image_files import ImageReader
from cnnlab.data.resident import ResidentLoader
from cnnlab.data.source import Images
from cnnlab.data.streaming import StreamingLoader
from cnnlab.runtime.errors import ConfigError, TrainingError

PATHS = ["cat/000.png", "cat/001.png", "cat/002.png", "dog/000.png", "dog/001.png"]
LABELS = torch.tensor([0, 0, 0, 1, 1])
READER = ImageReader((6, 8), 3)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five images; the cache is an empty folder beside them."""
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path / "cache"))
    return write_folders(tmp_path / "data", {"cat": 3, "dog": 2})


def read(root: Path, reader: ImageReader = READER, labels: torch.Tensor = LABELS) -> Images:
    return read_files(root, PATHS, labels, reader)


def files() -> list[Path]:
    return sorted(cache_folder().glob("*.images"))


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are decoded from here on."""
    decoded: list[Path] = []
    decode = ImageReader._decode

    def noted(reader: ImageReader, path: Path) -> torch.Tensor:
        decoded.append(path)
        return decode(reader, path)

    monkeypatch.setattr(ImageReader, "_decode", noted)
    return decoded


def test_a_file_is_loaded_in_parts_by_several_threads(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnlab.data.source.CHUNK", 2 * 3 * 6 * 8)  # two images
    images = read(root).select(torch.tensor([4, 0, 3, 1, 2]))
    loader = ResidentLoader(images, None, 2, device=torch.device("cpu"), shuffle=False)
    assert torch.equal(loader.x_NCHW, images.x_NCHW)


def test_a_second_run_decodes_nothing_and_reads_the_same(root: Path, decoding: list[Path]) -> None:
    first = read(root)
    assert len(decoding) == 5
    second = read(root)
    assert len(decoding) == 5
    assert torch.equal(first.x_NCHW, READER.read_all([root / path for path in PATHS]))
    assert torch.equal(first.x_NCHW, second.x_NCHW)
    assert (first.index_N.tolist(), first.y_N.tolist()) == ([0, 1, 2, 3, 4], LABELS.tolist())
    assert first.digest() == second.digest()
    assert second.file is not None


def test_a_folder_that_moved_is_found_again(root: Path, decoding: list[Path]) -> None:
    read(root)
    read(root.rename(root.parent / "elsewhere"))
    assert len(decoding) == 5


CHANGES: dict[str, dict[str, Any]] = {
    "time": {},  # of a file's last change
    "size": {"reader": ImageReader((6, 9), 3)},
    "channels": {"reader": ImageReader((6, 8), 1)},
    "resize": {"reader": ImageReader((6, 8), 3, "pad")},
    "interpolation": {"reader": ImageReader((6, 8), 3, interpolation="bicubic")},
    "resize_size": {"reader": ImageReader((6, 8), 3, resize_size=9)},
    "labels": {"labels": 1 - LABELS},
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_the_images_follow_from_makes_another_file(root: Path, change: str) -> None:
    read(root)
    if change == "time":
        os.utime(root / PATHS[1], ns=(0, 0))
    reader = CHANGES[change].get("reader", READER)
    assert torch.equal(read(root, **CHANGES[change]).x_NCHW, reader.read_all([root / path for path in PATHS]))
    assert len(files()) == 2


def test_another_version_of_the_decoder_decodes_anew(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(root)
    monkeypatch.setattr("PIL.__version__", "0.0.1")
    read(root)
    assert len(files()) == 2


@pytest.mark.parametrize(("days", "is_kept"), [(6.9, True), (7.1, False)])
def test_what_a_killed_decoding_of_other_images_has_begun_is_kept_for_a_week(
    root: Path, days: float, is_kept: bool
) -> None:
    cache_folder().mkdir(parents=True)
    left = cache_folder() / "0123.part"
    left.write_bytes(b"half")
    then = time.time() - days * 24 * 3600
    os.utime(left, (then, then))
    read(root)
    assert left.exists() == is_kept


def cut(content: bytearray) -> bytes:
    return content[:-1]


def flipped(place: int) -> Callable[[bytearray], bytes]:
    def flip(content: bytearray) -> bytes:
        content[place] ^= 1
        return content

    return flip


def replaced_header(header: bytes) -> Callable[[bytearray], bytes]:
    return lambda content: header.ljust(HEADER) + content[HEADER:]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (cut, "bytes and not"),
        (lambda content: b"", "0 bytes and not"),
        (flipped(HEADER), "do not match the SHA-256"),
        (flipped(HEADER + 39), "do not match the SHA-256"),
        (replaced_header(b"[" * HEADER), "its header cannot be read"),
        (replaced_header(b"[]"), "its header cannot be read"),
        (replaced_header(b'{"digest": 5}'), "its header is of another file"),
        (replaced_header(b"\x80\x04cposix\nsystem\n"), "its header cannot be read"),
    ],
)
def test_a_damaged_file_is_reported_and_written_again(
    root: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[bytearray], bytes], expected: str
) -> None:
    whole = read(root).x_NCHW.clone()
    file = files()[0]
    before = file.read_bytes()
    file.write_bytes(damage(bytearray(before)))
    capsys.readouterr()
    assert torch.equal(read(root).x_NCHW, whole)
    printed = capsys.readouterr().out
    assert f"{file} is damaged (" in printed
    assert expected in printed
    assert "it is written again" in printed
    assert file.read_bytes() == before
    read(root)
    assert capsys.readouterr().out == ""


def overwrite(file: Path, row: int) -> None:
    """Changes a byte of an image in place, as another process might while the file is mapped."""
    image_bytes = 3 * 6 * 8
    with file.open("rb+") as opened:
        opened.seek(HEADER + 8 * len(PATHS) + row * image_bytes + 5)
        (byte,) = opened.read(1)
        opened.seek(-1, os.SEEK_CUR)
        opened.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("workers", [None, 0, 1])
def test_an_image_that_is_overwritten_under_a_run_is_never_trained_on(
    root: Path, decoding: list[Path], workers: int | None
) -> None:
    """Resident images were copied before and stay as they were; others are compared when they are read."""
    images, whole = read(root), read(root).x_NCHW
    options = {"normalization": None, "batch_size": 5, "device": torch.device("cpu"), "shuffle": False}
    loader = (
        ResidentLoader(images, **options) if workers is None else StreamingLoader(images, workers=workers, **options)
    )
    try:
        assert torch.equal(next(iter(loader)).x_NCHW, whole.float())
        overwrite(files()[0], 3)
        loader.set_epoch(1)
        if workers is None:
            assert torch.equal(next(iter(loader)).x_NCHW, whole.float())
        else:
            with pytest.raises(TrainingError, match=r"^image 3 in .*images is not as it was decoded"):
                list(loader)
            decoding.clear()
            assert torch.equal(read(root).x_NCHW, whole)
            assert len(decoding) == 5
    finally:
        loader.close()


def test_a_file_that_was_damaged_between_two_runs_is_noticed_at_the_image_and_decoded_again(root: Path) -> None:
    whole = read(root).x_NCHW
    for row in range(5):
        overwrite(files()[0], row)
        with pytest.raises(TrainingError, match=f"image {row} "):
            list(read(root).chunks())
        assert torch.equal(read(root).x_NCHW, whole)


class StoppedError(Exception):
    pass


def test_a_decoding_that_was_stopped_continues_with_what_is_missing(
    root: Path, decoding: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the last image that it wrote is not whole."""
    whole = READER.read_all([root / path for path in PATHS])
    with monkeypatch.context() as patch:
        read_each = ImageReader.read_each

        def stopped(reader: ImageReader, paths: list[Path], keep: Any) -> None:
            read_each(reader, paths[:4], keep)
            raise StoppedError

        patch.setattr(ImageReader, "read_each", stopped)
        with pytest.raises(StoppedError):
            read(root)
    (begun,) = cache_folder().glob("*.part")
    overwrite(begun, 1)
    decoding.clear()
    assert torch.equal(read(root).x_NCHW, whole)
    assert sorted(path.name for path in decoding) == ["001.png", "001.png"]
    assert {path.parent.name for path in decoding} == {"cat", "dog"}
    assert not list(cache_folder().glob("*.part"))


def test_each_bit_of_the_header_with_a_meaning_is_noticed(root: Path, decoding: list[Path]) -> None:
    read(root)
    whole = files()[0].read_bytes()
    used = len(whole[:HEADER].rstrip())
    for place in range(0, used, 7):
        files()[0].write_bytes(flipped(place)(bytearray(whole)))
        decoding.clear()
        read(root)
        assert decoding, f"byte {place} of the header"


def test_an_image_that_cannot_be_decoded_leaves_nothing_in_the_cache(root: Path) -> None:
    (root / PATHS[2]).write_text("no image")
    with pytest.raises(ConfigError, match=r"^data\.root: 1 of 5 images cannot be read"):
        read(root)
    assert [path.name for path in cache_folder().iterdir()] == [".lock"]


def test_too_small_a_disk_is_reported_before_anything_is_written(
    root: Path, monkeypatch: pytest.MonkeyPatch, decoding: list[Path]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9 - 4000, 4000))
    needed = HEADER + 5 * 8 + 5 * 3 * 6 * 8
    with pytest.raises(ConfigError) as caught:
        read(root)
    assert all(
        part in str(caught.value) for part in (f"({needed:,} bytes)", "(4,000 bytes)", "CNNLAB_CACHE", "data.size")
    )
    assert not decoding
    assert not files()


def test_a_cache_under_the_data_or_that_cannot_be_written_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CNNLAB_CACHE", str(root / "cache"))
    with pytest.raises(ConfigError, match=r"is inside the folder of the data, .*: expected a folder elsewhere"):
        read(root)
    assert not (root / "cache").exists()
    (root.parent / "file").touch()
    monkeypatch.setenv("CNNLAB_CACHE", str(root.parent / "file" / "cache"))
    with pytest.raises(ConfigError, match=r"CNNLAB_CACHE: decoded images cannot be kept in .*Not a directory"):
        read(root)


def read_beside_others(root: Path, begin: Any, answers: Any) -> None:
    decoded = 0
    decode = ImageReader._decode

    def slowly(reader: ImageReader, path: Path) -> torch.Tensor:
        nonlocal decoded
        decoded += 1
        begin.wait(0.05)
        return decode(reader, path)

    ImageReader._decode = slowly  # type: ignore[method-assign]
    begin.wait()
    x_NCHW = read(root).x_NCHW
    ImageReader._decode = decode  # type: ignore[method-assign]
    answers.put((torch.equal(x_NCHW, READER.read_all([root / path for path in PATHS])), decoded))


def test_of_processes_that_want_the_same_images_one_decodes_them(root: Path) -> None:
    context = multiprocessing.get_context("fork")
    begin, answers = context.Event(), context.Queue()
    processes = [context.Process(target=read_beside_others, args=(root, begin, answers)) for _ in range(3)]
    for process in processes:
        process.start()
    begin.set()
    equal, decoded = zip(*(answers.get(timeout=60) for _ in processes), strict=True)
    for process in processes:
        process.join()
    assert all(equal)
    assert sorted(decoded) == [0, 0, 5]
    assert len(files()) == 1


def test_the_folder_is_where_people_keep_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CNNLAB_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "cnnlab"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification says to ignore
    assert cache_folder() == tmp_path / ".cache" / "cnnlab"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "cnnlab"
    monkeypatch.setenv("CNNLAB_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
