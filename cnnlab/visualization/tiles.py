"""Filters, feature maps and images as tiles side by side."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INCHES = 1.2  # a tile's side
GAP = 0.1  # between tiles
LINE = 0.16  # of a caption
SCALE = 1.0  # the colour bar, its numbers and its label
MOST_COLUMNS = 6  # with more, captions are too small on a page 800 pixels wide


def tiles_figure(
    tiles_THW: Tensor,
    title: str,
    captions: Sequence[str] = (),
    *,
    signed: bool = False,
    columns: int = MOST_COLUMNS,
    label: str = "",
) -> "Figure":
    """T small images, each under its caption, and the colour bar of their one scale with its label.

    Grey from the least to the greatest value; `signed` ones are blue below 0, white at 0, red above. NaN is left blank.
    """
    figure, axes = _grid(len(tiles_THW), title, captions, columns)
    _draw_on_one_scale(figure, axes, _numbers(tiles_THW), signed, label)
    return figure


def filters_figure(weight_OIHW: Tensor, title: str, *, colour: bool = False) -> "Figure":
    """The kernels of a convolution, averaged over the channels that they read.

    With `colour`, where those are red, green and blue: a weight of 0 is the middle of 0…255, the largest an end.
    """
    captions = [str(number) for number in range(len(weight_OIHW))]
    if not colour:
        return tiles_figure(weight_OIHW.mean(1), title, captions, signed=True, label="weight")
    most = weight_OIHW.abs().amax().clamp(min=1e-30)
    return images_figure(127.5 * (1 + weight_OIHW / most), title, captions)


def maps_figure(image_CHW: Tensor, maps_CHW: Tensor, title: str) -> "Figure":
    """An image of 0…255 and each channel of a layer's response to it, (C, H, W), on one scale.

    Grey where no value is below 0; else blue below 0, white at 0 and red above. Above each map stand the channel's
    number, its largest value and, in the next line, the row and column of it.
    """
    values_CHW = _numbers(maps_CHW)
    captions = [_peak(channel, values_HW) for channel, values_HW in enumerate(values_CHW)]
    figure, axes = _grid(1 + len(values_CHW), title, ["image\n", *captions])
    _draw_image(axes[0], _numbers(image_CHW))
    _draw_on_one_scale(figure, axes[1:], values_CHW, bool((values_CHW < 0).any()), "activation")
    return figure


def images_figure(x_NCHW: Tensor, title: str, captions: Sequence[str] = ()) -> "Figure":
    """Images of 0…255, each under its caption: in colour where they have three channels, else grey."""
    figure, axes = _grid(len(x_NCHW), title, captions, scale=0)
    for axis, image_CHW in zip(axes, _numbers(x_NCHW), strict=True):
        _draw_image(axis, image_CHW)
    return figure


def _numbers(tensor: Tensor) -> np.ndarray:
    values: np.ndarray = tensor.detach().float().cpu().numpy()
    return values


def _grid(
    count: int, title: str, captions: Sequence[str], columns: int = MOST_COLUMNS, scale: float = SCALE
) -> "tuple[Figure, list[Axes]]":
    """A figure with room for so many tiles and a scale, their captions written; a tile is as large in any of them."""
    from matplotlib.figure import Figure

    columns = min(count, columns)
    rows = math.ceil(count / columns)
    above = GAP + LINE * max((1 + caption.count("\n") for caption in captions), default=0)  # each tile
    tiles = columns * (INCHES + GAP) - GAP
    width = max(tiles + scale + 2 * GAP, 0.09 * max(map(len, title.split("\n"))))
    height = rows * (INCHES + above) + 0.2 * (1 + title.count("\n")) + 2 * GAP
    left = max(GAP, (width - tiles - scale) / 2)
    figure = Figure(figsize=(width, height))
    figure.suptitle(title, fontsize=11, parse_math=False, y=1 - GAP / height, va="top")
    grid = figure.add_gridspec(
        rows,
        columns,
        left=left / width,
        right=(left + tiles) / width,
        bottom=GAP / height,
        top=(GAP + rows * (INCHES + above) - above) / height,
        wspace=GAP / INCHES,
        hspace=above / INCHES,
    )
    axes = list(grid.subplots(squeeze=False).flat)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_color("0.7")  # a white image ends somewhere, too
    for axis in axes[count:]:
        axis.set_axis_off()
    for axis, caption in zip(axes, captions, strict=False):
        axis.set_title(caption, fontsize=9, parse_math=False, pad=4)
    return figure, axes[:count]


def _draw_on_one_scale(
    figure: "Figure", axes: "Sequence[Axes]", values_THW: np.ndarray, signed: bool, label: str
) -> None:
    scale = _scale(values_THW, signed)
    images = [
        axis.imshow(values_HW, interpolation="nearest", **scale)
        for axis, values_HW in zip(axes, values_THW, strict=True)
    ]
    places = [axis.get_position() for axis in figure.axes]
    bottom, top = min(place.y0 for place in places), max(place.y1 for place in places)
    width = figure.get_figwidth()
    bar = figure.add_axes((max(place.x1 for place in places) + 2 * GAP / width, bottom, 0.12 / width, top - bottom))
    figure.colorbar(images[0], cax=bar).set_label(label, fontsize=9)
    bar.tick_params(labelsize=9)


def _draw_image(axis: "Axes", image_CHW: np.ndarray) -> None:
    if len(image_CHW) == 3:
        axis.imshow(image_CHW.transpose(1, 2, 0).clip(0, 255) / 255, interpolation="nearest")
    else:
        axis.imshow(image_CHW.mean(0), interpolation="nearest", cmap="gray", vmin=0, vmax=255)


def _peak(channel: int, values_HW: np.ndarray) -> str:
    row, column = np.unravel_index(values_HW.argmax(), values_HW.shape)
    return f"{channel}: {values_HW.max() + 0.0:.3g}\nat {row}, {column}"


def _scale(values_THW: Any, signed: bool) -> dict[str, Any]:
    if not signed:
        return {"cmap": "gray", "vmin": np.nanmin(values_THW), "vmax": np.nanmax(values_THW)}
    most = np.nanmax(abs(values_THW)) or 1.0
    return {"cmap": "RdBu_r", "vmin": -most, "vmax": most}
