"""Image files: found in folders, read within limits, brought to one size.

The files may come from a stranger. An image's format is detected from its content, out of a few; its size is read from
its header before a pixel is decoded; a link is followed only where it stays inside the folder of the data.
"""

import os
import stat
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from cnnlab.runtime.checks import integer, one_of
from cnnlab.runtime.device import cpu_count
from cnnlab.runtime.errors import ArgumentError, ConfigError, first_line
from cnnlab.runtime.terminal import is_live, printable, stop_waiting

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")
EXTENSIONS = frozenset(
    [".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"]
)
MOST_PIXELS = 64_000_000
LONGEST = 8000  # side of the size that images are brought to
LONGEST_TO_SHORTEST = 32  # sides of an image that is resized whole before it is cropped
MOST_BYTES = 1 << 28  # of a file; 64 megapixels of four uncompressed channels
RESIZES = ("crop", "squash", "pad")
INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

CHUNK = 64  # files a task: a future for each would cost as much as a small image
MOST_THREADS = 8  # each may hold one large image
TINY = 2048  # bytes of a file, such as one of 32×32 pixels, that one thread decodes sooner than two that share Python
LOOKED_AT = 64  # files, for how large they are
PATIENCE = 2.0  # seconds before a progress bar appears
MOST_LISTED = 5
TURNED = (5, 6, 7, 8)  # orientations whose sides are swapped

Keep = Callable[[int, Tensor], None]  # takes a file's number and its image, in any thread
Item = TypeVar("Item")


class UnreadableError(ConfigError):
    """Images that cannot be read: `reasons` are the sentences, which name the files, by the files' numbers."""

    def __init__(self, reasons: Mapping[int, str], count: int, key: str = "") -> None:
        super().__init__(key + _unreadable(list(reasons.values()), count))
        self.reasons = reasons
        self.count = count


@dataclass(frozen=True)
class ImageReader:
    """Turns an image file into uint8 (C, H, W). Raises `ArgumentError`.

    `size` is (H, W); `channels` is 1 (grey) or 3 (RGB). `resize` brings an image of another size to it by an
    `interpolation`, bilinear or bicubic, with antialiasing: `crop` brings the shorter side to the size and keeps the
    centre, `squash` stretches both sides, `pad` brings the longer side to the size and fills the border with black. An
    image that has the size already is passed on as it was decoded.

    With a `resize_size` of at least the size, every image is resized to that first, `crop` its shorter side and
    `squash` both, and its centre of the size is kept: the pixels of torchvision's `Resize` and `CenterCrop`.

    The orientation in the EXIF data is applied. Transparent pixels are laid over white; of 16 bits the upper 8
    count; palettes, CMYK and black-and-white become RGB or grey; of an animation the first image counts.
    A JPEG of at least twice the size is decoded at 1/2, 1/4 or 1/8 of its resolution, which is several times faster;
    not with a `resize_size`, whose pixels are exact.
    """

    size: tuple[int, int]
    channels: int
    resize: str = "crop"
    interpolation: str = "bilinear"
    resize_size: int | None = None

    def __post_init__(self) -> None:
        for side in self.size:
            integer("size", side, 1, LONGEST)
        one_of("channels", self.channels, (1, 3))
        one_of("resize", self.resize, RESIZES)
        one_of("interpolation", self.interpolation, tuple(INTERPOLATIONS))
        if self.resize_size is not None:
            integer("resize_size", self.resize_size, max(self.size), LONGEST)
            if self.resize == "pad":
                raise ArgumentError("resize", "expected crop or squash where there is a resize_size, received 'pad'")

    def read(self, path: Path) -> Tensor:
        """(C, H, W) uint8. Raises `ConfigError` with the file and the reason."""
        with _large_images_unannounced():
            return self._read(path)

    def read_all(self, paths: Sequence[Path]) -> Tensor:
        """(N, C, H, W) uint8, on all processors. Raises one `ConfigError` for everything that cannot be read."""
        x_NCHW = torch.empty((len(paths), self.channels, *self.size), dtype=torch.uint8)
        self.read_each(paths, x_NCHW.__setitem__)
        return x_NCHW

    def read_each(self, paths: Sequence[Path], keep: Keep) -> None:
        """Hands each file's image, (C, H, W) uint8, to `keep` and holds none itself. Raises as `read_all` does."""

        def read_chunk(start: int) -> list[tuple[int, str]]:
            refused = []
            for row, path in enumerate(paths[start : start + CHUNK], start):
                try:
                    x_CHW = self._read(path)
                except ConfigError as error:
                    refused.append((row, str(error)))
                else:
                    keep(row, x_CHW)
            return refused

        pool = ThreadPoolExecutor(_threads(paths))
        try:
            with _large_images_unannounced():
                chunks = pool.map(read_chunk, range(0, len(paths), CHUNK))
                refused = [found for chunk in _with_progress(chunks, len(paths)) for found in chunk]
        finally:
            pool.shutdown(cancel_futures=True)
        if refused:
            raise UnreadableError(dict(refused), len(paths))

    def _read(self, path: Path) -> Tensor:
        try:
            return self._decode(path)
        except UnidentifiedImageError:
            reason = f"its content is no supported image: expected {', '.join(FORMATS)}"
        except Image.DecompressionBombError:
            reason = _too_large(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:,.0f}")
        except ConfigError as error:
            reason = str(error)
        except Exception as error:  # a damaged file makes a decoder raise nearly anything
            reason = f"it cannot be decoded: {first_line(error)}"
        raise ConfigError(f"{printable(path)}: {reason}")

    def _decode(self, path: Path) -> Tensor:
        _check_file(path)
        with Image.open(path, formats=FORMATS) as file:
            if file.width * file.height > MOST_PIXELS:
                raise ConfigError(_too_large(f"{file.width}×{file.height}, {file.width * file.height / 1e6:,.1f}"))
            twice = 2 * max(self.size)  # the orientation may still swap the sides
            if self.resize_size is None:
                file.draft(None, (twice, twice))
            turned = file.getexif().get(ExifTags.Base.Orientation, 1) != 1
            return self.convert(ImageOps.exif_transpose(file) if turned else file)

    def convert(self, image: Image.Image) -> Tensor:
        """(C, H, W) uint8 from an image that is open already. Raises `ConfigError` for more than 16 bits a channel."""
        height, width = self.size
        image = _plain(image, self.channels)
        resample = INTERPOLATIONS[self.interpolation]
        if self.resize_size is not None:
            image = _centre(image, width, height, self.resize, self.resize_size, resample)
        elif image.size != (width, height):
            image = _resized(image, width, height, self.resize, resample)
        pixels_HWC = np.asarray(image).reshape(height, width, self.channels)
        return torch.from_numpy(pixels_HWC.transpose(2, 0, 1).copy())


def _threads(paths: Sequence[Path]) -> int:
    """One for tiny files, of which Python's own work is most; one for each processor for others."""
    sizes = []
    for path in paths[:: len(paths) // LOOKED_AT + 1]:
        with suppress(OSError):  # a missing file is reported when it is read
            sizes.append(path.stat().st_size)
    return 1 if sizes and median(sizes) < TINY else min(MOST_THREADS, cpu_count())


def read_sizes(paths: Sequence[Path]) -> tuple[list[tuple[int, int]], list[str]]:
    """(H, W) of each image whose header can be read, as it is seen; and a sentence for each of the others."""
    sizes: list[tuple[int, int]] = []
    refused: list[str] = []
    with _large_images_unannounced():
        for path in paths:
            try:
                sizes.append(_size(path))
            except UnidentifiedImageError:
                refused.append(f"{printable(path)}: its content is no supported image: expected {', '.join(FORMATS)}")
            except Exception as error:  # a damaged file makes a decoder raise nearly anything
                refused.append(f"{printable(path)}: {first_line(error)}")
    return sizes, refused


def _size(path: Path) -> tuple[int, int]:
    _check_file(path)
    with Image.open(path, formats=FORMATS) as file:
        # of other formats, reading the orientation may decode the image
        turned = file.format == "JPEG" and file.getexif().get(ExifTags.Base.Orientation) in TURNED
        return (file.width, file.height) if turned else (file.height, file.width)


@dataclass(frozen=True)
class FileFacts:
    """What an image file's header and its entry in the folder say; sides in pixels, size in bytes."""

    width: int
    height: int
    format: str
    size: int


def measure_files(paths: Sequence[Path]) -> list[FileFacts]:
    """The facts of those files whose header can be read; no pixel is decoded."""

    def measure_chunk(start: int) -> list[FileFacts]:
        return [facts for path in paths[start : start + CHUNK] if (facts := _measure(path))]

    with ThreadPoolExecutor(min(MOST_THREADS, cpu_count())) as pool, _large_images_unannounced():
        chunks = pool.map(measure_chunk, range(0, len(paths), CHUNK))
        return [facts for chunk in _with_progress(chunks, len(paths)) for facts in chunk]


def _measure(path: Path) -> FileFacts | None:
    try:
        _check_file(path)
        with Image.open(path, formats=FORMATS) as file:
            return FileFacts(file.width, file.height, str(file.format), path.stat().st_size)
    except Exception:  # a damaged file makes a decoder raise nearly anything
        return None


def _check_file(path: Path) -> None:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise ConfigError("expected a regular file")
    if status.st_size == 0:
        raise ConfigError("the file is empty")
    if status.st_size > MOST_BYTES:
        raise ConfigError(f"expected at most {MOST_BYTES / 1e6:,.0f} MB, received {status.st_size / 1e6:,.0f}")


def _too_large(received: str) -> str:
    return f"expected at most {MOST_PIXELS // 1_000_000} megapixels, received {received} megapixels"


@contextmanager
def _large_images_unannounced() -> Iterator[None]:
    """PIL only warns of an image that is larger than its own limit; ours is checked afterwards, and raises.

    Filters belong to the process, so this stands around the threads and not within them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _plain(image: Image.Image, channels: int) -> Image.Image:
    """Any mode of PIL's → 8-bit grey or RGB."""
    if image.mode.startswith("I"):  # I;16, I;16B: unsigned 16 bits; I: 32 bits, which PIL also reads 16 into
        grey_HW = np.asarray(image).astype(np.int64)
        if grey_HW.min() < 0 or grey_HW.max() > 0xFFFF:
            raise ConfigError("expected 8 or 16 bits a channel, received 32")
        image = Image.fromarray((grey_HW >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ConfigError("expected 8 or 16 bits a channel, received floating-point numbers")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = {1: "L", 3: "RGB"}[channels]
    return image if image.mode == mode else image.convert(mode)


def _resized(
    image: Image.Image, width: int, height: int, resize: str, resample: Image.Resampling
) -> Image.Image:  # the support of a filter grows with the reduction: no aliasing
    if resize == "squash":
        return image.resize((width, height), resample)
    if resize == "crop":
        return ImageOps.fit(image, (width, height), resample)
    scale = min(width / image.width, height / image.height)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    padded = Image.new(image.mode, (width, height))
    padded.paste(image.resize(inner, resample), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return padded


def _centre(
    image: Image.Image, width: int, height: int, resize: str, resize_size: int, resample: Image.Resampling
) -> Image.Image:
    """The centre of the resized image; sides and margins are rounded as torchvision rounds them.

    Of an extremely long image only the middle is resized: the whole would fill the memory.
    """
    shorter = min(image.size)
    if resize == "crop" and max(image.size) > LONGEST_TO_SHORTEST * shorter:
        kept = [min(side, LONGEST_TO_SHORTEST * shorter) for side in image.size]
        image = _cropped(image, kept[0], kept[1])
    sides = [resize_size if resize == "squash" else int(resize_size * side / shorter) for side in image.size]
    return _cropped(image.resize((sides[0], sides[1]), resample), width, height)


def _cropped(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _unreadable(refused: list[str], count: int) -> str:
    if count == 1 == len(refused):
        return refused[0]
    more = [f"and {len(refused) - MOST_LISTED:,} more"] if len(refused) > MOST_LISTED else []
    return "\n  ".join([f"{len(refused):,} of {count:,} images cannot be read:", *refused[:MOST_LISTED], *more])


def _with_progress(chunks: Iterable[Item], count: int) -> Iterator[Item]:
    """Passes the chunks on; on a terminal, a progress bar appears if they take long."""
    from rich.console import Console
    from rich.progress import Progress

    begun = time.monotonic()
    progress = Progress(console=Console(stderr=True), transient=True)
    task = progress.add_task("reading images", total=count)
    shown = False
    try:
        for chunk in chunks:
            progress.advance(task, CHUNK)
            if not shown and is_live(sys.stderr) and time.monotonic() - begun > PATIENCE:
                stop_waiting()
                progress.start()
                shown = True
            yield chunk
    finally:
        if shown:
            progress.stop()


@dataclass(frozen=True)
class Listing:
    """The files under a folder: paths relative to it with `/`, sorted by code points, whatever the locale."""

    images: list[str]
    others: list[str]


def list_images(folder: Path, root: Path) -> Listing:
    """The image files under `folder` by their extension, at any depth, hidden files and folders left out.

    Raises `ConfigError` for a link that leads nowhere, out of `root` or around in a circle.
    """
    images: list[str] = []
    others: list[str] = []
    waiting = [""]
    linked: set[Path] = set()
    while waiting:
        below = waiting.pop()
        entries = visible(folder / below, root)
        for name in entries.folders:
            if (folder / below / name).is_symlink():
                _check_circle(folder / below / name, linked)
            waiting.append(f"{below}{name}/")
        for name in entries.files:
            is_image = name[name.rfind(".") :].lower() in EXTENSIONS
            (images if is_image else others).append(f"{below}{name}")
    return Listing(sorted(images), sorted(others))


@dataclass(frozen=True)
class Entries:
    """The names in one folder, hidden ones left out, sorted by code points."""

    folders: list[str]
    files: list[str]


def visible(folder: Path, root: Path) -> Entries:
    """The entries of a folder. Raises `ConfigError` for a link that leads nowhere or out of `root`."""
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":  # what macOS packs beside the files
                    continue
                if entry.is_symlink():
                    check_inside(Path(entry.path), root)
                (folders if entry.is_dir() else files).append(entry.name)
    except OSError as error:
        raise ConfigError(f"{printable(folder)}: it cannot be listed: {first_line(error)}") from error
    return Entries(sorted(folders), sorted(files))


def check_inside(link: Path, root: Path) -> None:
    """Raises `ConfigError` for a link that leads nowhere or out of `root`."""
    target = Path(os.path.realpath(link))  # `resolve` raises for a link to itself
    if not target.is_relative_to(root.resolve()):
        raise ConfigError(
            f"{printable(link)}: the link leads out of {printable(root)} to {printable(target)}: expected links that "
            f"stay inside"
        )
    if not target.exists():
        raise ConfigError(f"{printable(link)}: the link leads to {printable(target)}, where nothing can be read")


def _check_circle(link: Path, linked: set[Path]) -> None:
    target = link.resolve()
    if target in linked or link.parent.resolve().is_relative_to(target):
        raise ConfigError(f"{printable(link)}: the link leads to a folder that is read already: expected each once")
    linked.add(target)
