"""Folders of small images, as a user has them."""

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """(H, W) or (H, W, C) uint8."""
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_image(path: Path, pixels: np.ndarray) -> Path:
    """The format goes by the path's extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_folders(root: Path, sizes: Mapping[str, int], side: int = 8) -> Path:
    """So many different images `000.png`, `001.png`, … in each folder, such as {"train/cat": 5}."""
    for number, (folder, count) in enumerate(sizes.items()):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for image in range(count):
            write_image(root / folder / f"{image:03d}.png", noise(side, side, seed=1000 * number + image))
    return root


def png_header(width: int, height: int) -> bytes:
    """A grey PNG of any size whose pixels are missing."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
