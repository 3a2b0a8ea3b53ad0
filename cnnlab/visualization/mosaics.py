"""Small images with their captions side by side, drawn while training: in milliseconds, without Matplotlib.

Every pixel of an image becomes a square, so that a browser that scales the whole does not blur it.
"""

import importlib.util
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from cnnlab.runtime.terminal import printable

if TYPE_CHECKING:
    from PIL import Image, ImageFont

# TensorBoard shows an image 350 pixels wide, whatever its size: only one as wide has letters that can be read
COLUMNS, TILE = 4, 76  # of many tiles, and a tile's longer side in pixels, about
FEWER, LARGER = 3, 104  # of tiles with names below
WIDTH = 344
GAP, LINE, TEXT = 8, 17, 13  # between tiles; of a line of text and its letters
MOST_TILES = 24  # of filters and of maps
BAR = 12  # the height of a colour bar
INK, FAINT = (34, 34, 34), (110, 116, 124)
# ColorBrewer's RdBu from blue (−1) over white (0) to red (+1): Matplotlib's RdBu_r, which evaluations draw with
DIVERGING = np.array(
    [
        (5, 48, 97),
        (33, 102, 172),
        (67, 147, 195),
        (146, 197, 222),
        (209, 229, 240),
        (247, 247, 247),
        (253, 219, 199),
        (244, 165, 130),
        (214, 96, 77),
        (178, 24, 43),
        (103, 0, 31),
    ],
    dtype=float,
)


def pixels_of(x_CHW: Tensor, mean_C: Sequence[float], sd_C: Sequence[float]) -> np.ndarray:
    """A normalised image as uint8 (H, W, 3); of two channels or more than four, the mean of all in grey."""
    values_CHW = x_CHW.detach().float().cpu().numpy()
    mean, sd = (np.asarray(one, dtype=float).reshape(-1, 1, 1) for one in (mean_C or (127.5,), sd_C or (64.0,)))
    values_CHW = values_CHW * sd + mean
    shown_CHW = values_CHW[:3] if len(values_CHW) in (3, 4) else values_CHW.mean(0, keepdims=True)
    shown_HWC = np.broadcast_to(shown_CHW.transpose(1, 2, 0), (*shown_CHW.shape[1:], 3))
    return np.nan_to_num(shown_HWC).round().clip(0, 255).astype(np.uint8)


def mosaic(
    title: str, tiles: Sequence[np.ndarray], captions: Sequence[Sequence[str]] = (), bar: str = ""
) -> np.ndarray:
    """Tiles (H, W, 3) uint8 under a title, each above its lines of text, as one image.

    `bar` is the text of a colour bar from blue to red that says what its ends are, such as `−0.3|0|+0.3`.
    """
    from PIL import Image, ImageDraw

    named = any(len(text) > 6 for caption in captions for text in caption)
    most_columns, side = (FEWER, LARGER) if named or len(tiles) <= FEWER else (COLUMNS, TILE)
    large = [_enlarged(tile, side) for tile in tiles]
    width, height = max(tile.width for tile in large), max(tile.height for tile in large)
    lines = max((len(caption) for caption in captions), default=0)
    words = [[_fitting(text, width) for text in caption] for caption in captions]
    columns = min(most_columns, len(large))
    rows = math.ceil(len(large) / columns)
    font = _font()
    titles = _wrapped(printable(title), WIDTH - 2 * GAP)
    top = GAP + LINE * len(titles) + (LINE + BAR + GAP if bar else 0)
    whole = max(columns * (width + GAP) + GAP, WIDTH)
    image = Image.new("RGB", (whole, top + rows * (height + lines * LINE + GAP) + GAP), "white")
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(titles):
        draw.text((GAP, GAP // 2 + number * LINE), line, INK, font)
    if bar:
        _draw_bar(image, GAP + LINE * len(titles), bar)
    for number, tile in enumerate(large):
        left = GAP + number % columns * (width + GAP)
        upper = top + number // columns * (height + lines * LINE + GAP)
        draw.rectangle((left - 1, upper - 1, left + tile.width, upper + tile.height), outline=(190, 196, 202))
        image.paste(tile, (left, upper))
        for place, text in enumerate(words[number] if number < len(words) else ()):
            draw.text((left, upper + height + 1 + place * LINE), text, FAINT if place == 0 else INK, font)
    return np.asarray(image)


def filters_mosaic(name: str, weight_OIHW: Tensor) -> np.ndarray:
    """The kernels of a convolution on one scale that is symmetric around 0.

    Kernels over three channels are in the colours that they read, 0 in grey; others are means over their channels.
    """
    weight_OIHW = weight_OIHW.detach().float().cpu()
    count, read = weight_OIHW.shape[:2]
    shown = f", the first {MOST_TILES} of {count:,}" if count > MOST_TILES else ""
    captions = [[str(number)] for number in range(min(count, MOST_TILES))]
    if read == 3:
        most = float(weight_OIHW.abs().amax().clamp(min=1e-30))
        tiles = [pixels_of(127.5 + 127.5 / most * one, (0.0,), (1.0,)) for one in weight_OIHW[:MOST_TILES]]
        title = f"filters of {name}{shown}, in the colours that each reads: grey is 0, ±{most:.2g} black or full"
        return mosaic(title, tiles, captions)
    note = f", mean over the {read} channels that each reads" if read > 1 else ""
    kernels_OHW = weight_OIHW.mean(1)
    most = float(kernels_OHW.abs().amax().clamp(min=1e-30))
    tiles = [diverging(one.numpy(), most) for one in kernels_OHW[:MOST_TILES]]
    return mosaic(f"filters of {name}{shown}{note}", tiles, captions, f"−{most:.2g}|0|+{most:.2g}")


def maps_mosaic(name: str, image_HW3: np.ndarray, maps_CHW: Tensor) -> np.ndarray:
    """An image, and each channel of a layer's response to it, all on one scale.

    Grey from 0 where nothing is below 0; else blue below 0, white at 0, red above.
    """
    most_maps = MOST_TILES - 1  # beside the image
    values_CHW = maps_CHW.detach().float().cpu()[:most_maps].nan_to_num(posinf=0.0, neginf=0.0).numpy()
    count = len(maps_CHW)
    shown = f", the first {most_maps} of {count:,} channels" if count > most_maps else f", {count:,} channels"
    size = f"{maps_CHW.shape[1]} × {maps_CHW.shape[2]}"
    most = float(abs(values_CHW).max())
    captions = [["image"], *([str(channel)] for channel in range(len(values_CHW)))]
    if (values_CHW < 0).any():
        tiles, bar, scale = [diverging(one, most) for one in values_CHW], f"−{most:.2g}|0|+{most:.2g}", ""
    else:
        tiles = [np.repeat((255 / (most or 1) * one).astype(np.uint8)[..., None], 3, 2) for one in values_CHW]
        bar, scale = "", f"; black is 0, white {most:.2g}"
    return mosaic(f"what {name} puts out for one image{shown} of {size}{scale}", [image_HW3, *tiles], captions, bar)


def diverging(values_HW: np.ndarray, most: float) -> np.ndarray:
    """Colours (H, W, 3) uint8 of values in −`most` … `most`: blue, white at 0, red."""
    place_HW = (np.clip(values_HW / most, -1, 1) + 1) / 2 * (len(DIVERGING) - 1)
    levels = np.arange(len(DIVERGING))
    channels = [np.interp(place_HW, levels, DIVERGING[:, channel]) for channel in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def _enlarged(tile_HW3: np.ndarray, side: int) -> "Image.Image":
    """By a whole factor; one that is too large is reduced."""
    from PIL import Image

    image = Image.fromarray(tile_HW3)
    if max(image.size) > side:
        image.thumbnail((side, side))
        return image
    factor = side // max(image.size)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _draw_bar(image: "Image.Image", top: int, bar: str) -> None:
    from PIL import Image, ImageDraw

    length = min(260, image.width - 2 * GAP)
    colours_13 = diverging(np.linspace(-1, 1, length)[None], 1.0)
    image.paste(Image.fromarray(np.repeat(colours_13, BAR, 0)), (GAP, top + 2))
    draw, font = ImageDraw.Draw(image), _font()
    texts = bar.split("|")
    for number, text in enumerate(texts):
        x = GAP + number * length / (len(texts) - 1) - font.getlength(text) * number / (len(texts) - 1)
        draw.text((x, top + BAR + 1), text, INK, font)


def _fitting(text: str, width: int) -> str:
    """As much of a name as fits below a tile, without what a terminal or a font would act on."""
    text, font = printable(text), _font()
    while len(text) > 1 and font.getlength(text) > width:
        text = f"{text.rstrip('…')[:-1]}…"
    return text


def _wrapped(text: str, width: int) -> list[str]:
    lines, font = [""], _font()
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


@cache
def _font() -> "ImageFont.FreeTypeFont":
    """DejaVu, which Matplotlib brings along: it has Greek, Cyrillic and more. Importing Matplotlib takes too long."""
    from PIL import ImageFont

    found = importlib.util.find_spec("matplotlib")
    assert found is not None
    assert found.origin is not None
    return ImageFont.truetype(Path(found.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf", TEXT)
