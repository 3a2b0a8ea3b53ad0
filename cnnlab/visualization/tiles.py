"""Filters and feature maps as tiles side by side."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INCHES = 1.1  # a tile's side
MOST_COLUMNS = 10


def tiles_figure(
    tiles_THW: Tensor, title: str, captions: Sequence[str] = (), *, signed: bool = False, columns: int = MOST_COLUMNS
) -> "Figure":
    """T small pictures on one scale, each under its caption.

    Grey from the least to the greatest value; `signed` ones are blue below 0, white at 0, red above. NaN is left blank.
    """
    from matplotlib.figure import Figure

    values_THW = tiles_THW.detach().float().cpu().numpy()
    columns = min(len(values_THW), columns)
    rows = math.ceil(len(values_THW) / columns)
    width = max(columns * INCHES + 1.0, 0.11 * len(title))
    figure = Figure(figsize=(width, rows * (INCHES + (0.2 if captions else 0)) + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=11, parse_math=False)
    axes = figure.subplots(rows, columns, squeeze=False)
    scale = _scale(values_THW, signed)
    for place, axis in enumerate(axes.flat):
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(color="lightgrey", visible=place < len(values_THW))
        if place < len(values_THW):
            image = axis.imshow(values_THW[place], interpolation="nearest", **scale)
        if place < len(captions):
            axis.set_title(captions[place], fontsize=8, parse_math=False)
    figure.colorbar(image, ax=axes, shrink=0.9, aspect=12 * rows)
    return figure


def filters_figure(weight_OIHW: Tensor, title: str) -> "Figure":
    """The kernels of a convolution, averaged over the channels that they read."""
    return tiles_figure(weight_OIHW.mean(1), title, [str(number) for number in range(len(weight_OIHW))], signed=True)


def _scale(values_THW: Any, signed: bool) -> dict[str, Any]:
    if not signed:
        return {"cmap": "gray", "vmin": np.nanmin(values_THW), "vmax": np.nanmax(values_THW)}
    most = np.nanmax(abs(values_THW)) or 1.0
    return {"cmap": "RdBu_r", "vmin": -most, "vmax": most}
