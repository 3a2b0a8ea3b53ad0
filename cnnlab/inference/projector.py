"""The files of TensorBoard's projector: points in many dimensions, each shown as its image."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cnnlab.run.files import RunDirectory
from cnnlab.runtime.terminal import printable

PREFIX = "projector"
LARGEST_SPRITE = 64  # pixels of an image's longer side


def write_projector(
    directory: RunDirectory, feature_NF: Tensor, columns: Mapping[str, Sequence[str]], x_NCHW: Tensor
) -> Path:
    """Writes the points, what each one is by named columns, their images in one sprite, and what names these files."""
    text = io.StringIO()
    np.savetxt(text, feature_NF.numpy(), delimiter="\t", fmt="%.7g")
    directory.write_text(f"{PREFIX}-tensors.tsv", text.getvalue())
    lines = ["\t".join(columns), *("\t".join(map(printable, row)) for row in zip(*columns.values(), strict=True))]
    directory.write_text(f"{PREFIX}-metadata.tsv", "\n".join(lines) + "\n")
    sprite_HWC, size = _sprite(x_NCHW)
    directory.write_image(f"{PREFIX}-sprite.png", sprite_HWC)
    return directory.write_text("projector_config.pbtxt", _config(size))  # TensorBoard's own name for it


def _config(size: tuple[int, int]) -> str:
    height, width = size
    return f"""embeddings {{
  tensor_name: "features"
  tensor_path: "{PREFIX}-tensors.tsv"
  metadata_path: "{PREFIX}-metadata.tsv"
  sprite {{
    image_path: "{PREFIX}-sprite.png"
    single_image_dim: {width}
    single_image_dim: {height}
  }}
}}
"""


def _sprite(x_NCHW: Tensor) -> tuple[np.ndarray, tuple[int, int]]:
    """A square of images row by row, (H, W, 3) uint8, and height and width of each."""
    height, width = x_NCHW.shape[2:]
    factor = min(1.0, LARGEST_SPRITE / max(height, width))
    size = max(1, round(height * factor)), max(1, round(width * factor))
    x_NCHW = x_NCHW if x_NCHW.shape[1] == 3 else x_NCHW.float().mean(1, keepdim=True).expand(-1, 3, -1, -1)
    if factor < 1:
        x_NCHW = functional.interpolate(x_NCHW.float(), size, mode="area")
    side = math.ceil(math.sqrt(len(x_NCHW)))
    tiles = torch.full((side * side, 3, *size), 255, dtype=torch.uint8)
    tiles[: len(x_NCHW)] = x_NCHW.round().byte() if x_NCHW.is_floating_point() else x_NCHW
    sheet = tiles.reshape(side, side, 3, *size).permute(0, 3, 1, 4, 2).reshape(side * size[0], side * size[1], 3)
    return sheet.numpy(), size
