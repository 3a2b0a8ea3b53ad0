"""The figures of an explanation: attributions, exciting images, ablations, embeddings, reliability, boundaries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TILE = 1.15  # inches
SMALL, NORMAL, LARGE = 8, 9, 11  # points
# Okabe and Ito 2008: told apart by colour-blind readers; shapes tell further classes apart
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000", "#b8a800")
MARKERS = "osD^v<>PX*"
OTHERS = "#c8c8c8"
FOR_AND_AGAINST = "RdBu_r"  # red: for, or more; blue: against, or less


@dataclass(frozen=True)
class Row:
    """An image of 0…255, its caption, and a map (H, W) for each column, None where there is none."""

    image_CHW: Tensor
    caption: str
    maps: Sequence[Tensor | None]


def attribution_figure(rows: Sequence[Row], columns: Sequence[str], title: str) -> "Figure":
    """Images beside maps of what speaks for a class (red) and against it (blue), each over its image in light grey.

    Each map has a scale of its own, from minus to plus its largest absolute value.
    """
    from matplotlib.figure import Figure

    count = 1 + len(columns)
    left = 0.1 + 0.085 * max(len(line) for row in rows for line in row.caption.split("\n"))
    right = 0.95
    heading = max(1 + name.count("\n") for name in columns)
    above = 0.2 + 0.19 * (1 + title.count("\n")) + 0.17 * heading
    width, height = left + count * TILE + right, above + len(rows) * TILE + 0.1
    figure = Figure(figsize=(width, height))
    figure.suptitle(title, fontsize=LARGE, parse_math=False, y=1 - 0.08 / height, va="top")
    grid = figure.add_gridspec(
        len(rows),
        count,
        left=left / width,
        right=1 - right / width,
        top=1 - above / height,
        bottom=0.1 / height,
        wspace=0.06,
        hspace=0.06,
    )
    axes = grid.subplots(squeeze=False)
    for axes_of_row, row in zip(axes, rows, strict=True):
        _image(axes_of_row[0], row.image_CHW)
        axes_of_row[0].set_ylabel(
            row.caption, rotation=0, ha="right", va="center", fontsize=SMALL, parse_math=False, labelpad=6
        )
        for axis, map_HW in zip(axes_of_row[1:], row.maps, strict=True):
            if map_HW is None:
                axis.set_axis_off()
            else:
                _over(axis, row.image_CHW, map_HW)
    for axis, name in zip(axes[0], ("image", *columns), strict=True):
        axis.set_title(name, fontsize=NORMAL, parse_math=False)
    _relative_scale(figure, 1 - (right - 0.15) / width, width, axes[0][0], axes[-1][0])
    return figure


def _relative_scale(figure: "Figure", x0: float, width: float, first: "Axes", last: "Axes") -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bottom, top = last.get_position().y0, first.get_position().y1
    middle, half = (bottom + top) / 2, min((top - bottom) / 2, 1.2 / figure.get_figheight())
    bar = figure.add_axes((x0, middle - half, 0.12 / width, 2 * half))
    figure.colorbar(ScalarMappable(Normalize(-1, 1), FOR_AND_AGAINST), cax=bar, ticks=[-1, 0, 1])
    bar.set_yticklabels(["against", "0", "for"])
    bar.tick_params(labelsize=SMALL)


def _over(axis: "Axes", image_CHW: Tensor, map_HW: Tensor) -> None:
    from matplotlib import colormaps

    values_HW = map_HW.detach().float().cpu().nan_to_num().numpy()
    values_HW = values_HW / (abs(values_HW).max() or 1.0)
    grey_HW1 = image_CHW.detach().float().cpu().numpy().mean(0)[:, :, None].clip(0, 255) / 255
    under_HW3 = np.broadcast_to(0.72 + 0.28 * grey_HW1, (*values_HW.shape, 3))
    strength_HW1 = abs(values_HW)[:, :, None] ** 0.6
    colour_HW3 = colormaps[FOR_AND_AGAINST]((values_HW + 1) / 2)[:, :, :3]
    axis.imshow(strength_HW1 * colour_HW3 + (1 - strength_HW1) * under_HW3, interpolation="nearest")
    _bare(axis)


def _image(axis: "Axes", image_CHW: Tensor) -> None:
    pixels = image_CHW.detach().float().cpu().numpy()
    if len(pixels) == 3:
        axis.imshow(pixels.transpose(1, 2, 0).clip(0, 255) / 255, interpolation="nearest")
    else:
        axis.imshow(pixels.mean(0), interpolation="nearest", cmap="gray", vmin=0, vmax=255)
    _bare(axis)


def _bare(axis: "Axes") -> None:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_color("0.7")


Box = tuple[int, int, int, int]  # top, left, bottom, right: inclusive pixels


def boxes_figure(
    rows: Sequence[tuple[str, Sequence[Tensor], Sequence[Box | None], Sequence[str]]], title: str
) -> "Figure":
    """Rows of images (caption of the row, images, a box in each or None, a caption below each)."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    count = max(len(images) for _, images, _, _ in rows)
    left = 0.15 + 0.085 * max(len(line) for caption, *_ in rows for line in caption.split("\n"))
    above, below = 0.2 + 0.19 * (1 + title.count("\n")), 0.36
    width = max(left + count * TILE + 0.1, 0.085 * max(map(len, title.split("\n"))))
    height = above + len(rows) * (TILE + below)
    figure = Figure(figsize=(width, height))
    figure.suptitle(title, fontsize=LARGE, parse_math=False, y=1 - 0.08 / height, va="top")
    grid = figure.add_gridspec(
        len(rows),
        count,
        left=left / width,
        right=(left + count * TILE) / width,
        top=1 - above / height,
        bottom=below / height,
        wspace=0.06,
        hspace=(below + 0.06) / TILE,
    )
    axes = grid.subplots(squeeze=False)
    for axes_of_row, (caption, images, boxes, below_each) in zip(axes, rows, strict=True):
        for axis in axes_of_row[len(images) :]:
            axis.set_axis_off()
        for axis, image_CHW, box, text in zip(axes_of_row, images, boxes, below_each, strict=False):
            _image(axis, image_CHW)
            axis.set_xlabel(text, fontsize=SMALL, parse_math=False, labelpad=2)
            if box:
                top, leftmost, bottom, rightmost = box
                corner, size = (leftmost - 0.5, top - 0.5), (rightmost - leftmost + 1, bottom - top + 1)
                for colour, wide in (("white", 3.2), (COLOURS[5], 1.6)):
                    axis.add_patch(
                        Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=wide, clip_on=False)
                    )
        axes_of_row[0].set_ylabel(
            caption, rotation=0, ha="right", va="center", fontsize=SMALL, parse_math=False, labelpad=6
        )
    return figure


def ablation_figure(change_CK: np.ndarray, channels: Sequence[str], class_names: Sequence[str], title: str) -> "Figure":
    """What silencing each channel (rows) changes in the accuracy on each class (columns), in percentage points."""
    from matplotlib.figure import Figure

    rows, columns = change_CK.shape
    longest = max(map(len, class_names))
    rotated = longest > 3
    width = 2.3 + 0.08 * max(map(len, channels)) + max(0.42 * columns, 0.085 * max(map(len, title.split("\n"))) - 2.3)
    height = 1.1 + 0.26 * rows + (0.075 * longest if rotated else 0.15) + 0.19 * title.count("\n")
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=LARGE, parse_math=False)
    axes = figure.add_subplot()
    most = max(float(np.nanmax(abs(change_CK))), 1.0)
    image = axes.imshow(change_CK, cmap=FOR_AND_AGAINST, vmin=-most, vmax=most, aspect="auto")
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label("change in accuracy\n(percentage points)", fontsize=NORMAL)
    bar.ax.tick_params(labelsize=SMALL)
    axes.set_xticks(range(columns), class_names, rotation=90 if rotated else 0, parse_math=False)
    axes.set_yticks(range(rows), channels, parse_math=False)
    axes.tick_params(labelsize=SMALL)
    axes.set_xlabel("class", fontsize=NORMAL)
    axes.set_ylabel("silenced channel", fontsize=NORMAL)
    for row, column in np.argwhere(np.isfinite(change_CK) & (abs(np.nan_to_num(change_CK)) >= 0.5)):
        value = change_CK[row, column]
        dark = abs(value) > 0.6 * most
        axes.text(
            column,
            row,
            f"{value:+.0f}".replace("-", "−"),
            ha="center",
            va="center",
            fontsize=7,
            color="white" if dark else "black",
        )
    return figure


def scatter_figure(
    place_N2: np.ndarray, target_N: np.ndarray, names: Mapping[int, str], axes_names: tuple[str, str], title: str
) -> "Figure":
    """Points in the colour and shape of their class; classes without a name are small and grey.

    A class's name stands at the median of its points.
    """
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    figure = Figure(figsize=(7.6, 6.2), layout="constrained")
    figure.suptitle(title, fontsize=LARGE, parse_math=False)
    axes = figure.add_subplot()
    others = ~np.isin(target_N, list(names))
    if others.any():
        axes.scatter(
            place_N2[others, 0], place_N2[others, 1], s=6, color=OTHERS, linewidths=0, label="other classes", zorder=1
        )
    for number, (label, name) in enumerate(names.items()):
        of_class = place_N2[target_N == label]
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        axes.scatter(
            of_class[:, 0], of_class[:, 1], s=16, color=colour, marker=marker, linewidths=0, alpha=0.75, zorder=2
        )
        axes.scatter([], [], s=26, color=colour, marker=marker, linewidths=0, label=literal(name))
    for label, name in names.items():
        of_class = place_N2[target_N == label]
        if len(of_class):
            x, y = np.median(of_class, 0)
            text = axes.text(x, y, name, fontsize=NORMAL, parse_math=False, ha="center", va="center")
            text.set(zorder=3, path_effects=[withStroke(linewidth=2.5, foreground="white")])
    axes.set_xlabel(axes_names[0], fontsize=NORMAL)
    axes.set_ylabel(axes_names[1], fontsize=NORMAL)
    axes.tick_params(labelsize=SMALL)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=SMALL, title="label")
    return figure


def literal(name: str) -> str:
    """A name for a legend, which takes dollar signs for a formula, and leaves out what begins with an underscore."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def reliability_figure(bins: Sequence[Mapping[str, float]], count: int, title: str) -> "Figure":
    """Accuracy over confidence in `count` equal bins, against the diagonal, and the images of each bin."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(6, 6.2), layout="constrained")
    figure.suptitle(title, fontsize=LARGE, parse_math=False)
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    middles = [(min(int(one["confidence"] * count), count - 1) + 0.5) / count for one in bins]
    accuracy = [one["accuracy"] for one in bins]
    wide = 0.92 / count
    upper.bar(middles, accuracy, wide, color=COLOURS[0], label="accuracy")
    for middle, one in zip(middles, bins, strict=True):
        low, high = sorted((one["accuracy"], one["confidence"]))
        label = "gap to confidence" if middle == middles[0] else None
        upper.bar(middle, high - low, wide, bottom=low, fill=False, edgecolor=COLOURS[5], hatch="////", label=label)
    upper.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="perfectly calibrated")
    upper.set(ylim=(0, 1), xlim=(0, 1))
    upper.set_ylabel("accuracy", fontsize=NORMAL)
    upper.legend(loc="upper left", fontsize=SMALL)
    lower.bar(middles, [one["images"] for one in bins], wide, color="0.45")
    lower.set_ylabel("images", fontsize=NORMAL)
    lower.set_xlabel("confidence: the probability of the predicted class", fontsize=NORMAL)
    for axis in (upper, lower):
        axis.xaxis.set_major_formatter(PercentFormatter(1))
        axis.tick_params(labelsize=SMALL)
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
    upper.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def boundary_figure(
    predicted_GG: np.ndarray,
    surest_GG: np.ndarray,
    grid_G: np.ndarray,
    point_N2: np.ndarray,
    target_N: np.ndarray,
    class_names: Sequence[str],
    title: str,
) -> "Figure":
    """The predicted class for each pair of pixel values (second index: the first pixel), and images as points.

    The colour is the class's, the stronger the surer; the black line is where the prediction changes.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    figure.suptitle(title, fontsize=LARGE, parse_math=False)
    axes = figure.add_subplot()
    colour_K3 = np.array([to_rgb(COLOURS[k % len(COLOURS)]) for k in range(len(class_names))])
    least = 1 / len(class_names)
    strength_GG1 = (0.08 + 0.55 * (surest_GG - least) / (1 - least)).clip(0, 1)[:, :, None]
    step = (grid_G[1] - grid_G[0]) / 2
    extent: Any = (grid_G[0] - step, grid_G[-1] + step) * 2
    axes.imshow(1 - strength_GG1 * (1 - colour_K3[predicted_GG]), origin="lower", extent=extent)
    for k in np.unique(predicted_GG)[:-1]:
        axes.contour(grid_G, grid_G, predicted_GG > k, levels=[0.5], colors="black", linewidths=1)
    for k, name in enumerate(class_names):
        mine = point_N2[target_N == k]
        if len(mine):
            look: Any = {"marker": MARKERS[k % len(MARKERS)], "color": colour_K3[k], "edgecolor": "white"}
            axes.scatter(
                mine[:, 0], mine[:, 1], s=70, linewidths=1.2, label=literal(name), clip_on=False, zorder=3, **look
            )
    axes.set_xlabel("first pixel (grey level, 0 black to 255 white)", fontsize=NORMAL)
    axes.set_ylabel("second pixel (grey level)", fontsize=NORMAL)
    axes.tick_params(labelsize=SMALL)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=SMALL, title="label")
    return figure
