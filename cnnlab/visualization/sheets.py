"""Contact sheets: many small images side by side, without captions, as pixels."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

TILE = 72  # pixels of an image's longer side
GAP = 4  # white pixels around an image
WHITE = 255


def contact_sheet(rows: Sequence[Tensor]) -> np.ndarray:
    """(H, W, 3) uint8: each tensor of images of 0…255, (N, C, H, W), is a row, from the left; shorter ones end early.

    Small images are enlarged by a whole number, each pixel a square; large ones are reduced.
    """
    tiles = [[_tile(image_CHW) for image_CHW in x_NCHW] for x_NCHW in rows]
    height, width = tiles[0][0].shape[:2]
    columns = max(map(len, tiles))
    sheet = np.full((len(tiles) * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), WHITE, dtype=np.uint8)
    for row, images in enumerate(tiles):
        for column, tile in enumerate(images):
            top, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
            sheet[top : top + height, left : left + width] = tile
    return sheet


def _tile(image_CHW: Tensor) -> np.ndarray:
    """(H, W, 3) uint8; images of other than three channels as their mean."""
    image_CHW = image_CHW.detach().float().cpu()
    shown_CHW = image_CHW if len(image_CHW) == 3 else image_CHW.mean(0, keepdim=True).expand(3, -1, -1)
    pixels = shown_CHW.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    longer = max(pixels.shape[:2])
    if longer <= TILE:
        factor = TILE // longer
        return pixels.repeat(factor, 0).repeat(factor, 1)
    height, width = (max(1, round(side * TILE / longer)) for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX))
