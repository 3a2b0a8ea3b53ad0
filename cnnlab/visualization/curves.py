"""The curves of a run as an image."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cnnlab.visualization.charts import Line

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curves_figure(title: str, panels: Sequence[tuple[str, Sequence[Line]]]) -> "Figure":
    """One panel below the other over a common epoch axis; `panels` are (label of the y axis, curves).

    The axis of a positive loss over more than one and a half decades is logarithmic. Names stand at the curves' ends.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 2.4 * len(panels)), layout="constrained")
    figure.suptitle(title, parse_math=False)
    axes_P = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (label, lines) in zip(axes_P, panels, strict=True):
        values = [y for line in lines for _, y in line.points if y is not None]
        if label == "loss" and values and min(values) > 0 and max(values) / min(values) > 10**1.5:
            axes.set_yscale("log")
        for line in lines:
            xs, ys = [x for x, _ in line.points], [float("nan") if y is None else y for _, y in line.points]
            marker = "o" if line.marked else ""
            axes.plot(xs, ys, color=line.colour, label=line.name, marker=marker, markersize=3)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes_P[-1].set_xlabel("epoch")
    return figure
