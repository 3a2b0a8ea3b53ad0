"""The confusion matrix as an image."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NUMBERS = 25  # classes up to which the cells hold their counts
MOST_NAMES = 100  # and up to which every class is named


def confusion_figure(confusion_KK: Tensor, class_names: Sequence[str], title: str) -> "Figure":
    """Rows are labels, columns predictions; the colour is the fraction of the row, stretched so that mistakes show."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    classes = len(class_names)
    counts_KK = confusion_KK.numpy()
    fraction_KK = counts_KK / np.maximum(counts_KK.sum(1, keepdims=True), 1)
    side = min(4.5 + 0.42 * classes, 15.0)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(fraction_KK, cmap="Blues", norm=PowerNorm(0.4, 0, 1))
    figure.colorbar(image, ax=axes, shrink=0.8, label="fraction of the label's images", ticks=[0, 0.01, 0.1, 0.3, 1])
    axes.set(title=title, xlabel="prediction", ylabel="label")
    if classes <= MOST_NAMES:
        plain: dict[str, Any] = {"parse_math": False}  # dollar signs in a name make no formula
        axes.set_xticks(range(classes), class_names, rotation=90 if max(map(len, class_names)) > 2 else 0, **plain)
        axes.set_yticks(range(classes), class_names, **plain)
        axes.tick_params(labelsize=10 if classes <= MOST_NUMBERS else 6)
    if classes <= MOST_NUMBERS:
        _write_counts(axes, counts_KK, fraction_KK)
    return figure


def _write_counts(axes: "Axes", counts_KK: np.ndarray, fraction_KK: np.ndarray) -> None:
    for label, prediction in zip(*counts_KK.nonzero(), strict=True):
        dark = fraction_KK[label, prediction] > 0.2
        axes.text(
            prediction,
            label,
            f"{counts_KK[label, prediction]:,}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark else "black",
        )


def pixels(figure: "Figure", dpi: int = 120) -> np.ndarray:
    """The figure as (H, W, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
