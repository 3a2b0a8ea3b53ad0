"""The loss over the learning rates of a range test as an image."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def lr_figure(lrs: Sequence[float], losses: Sequence[float], suggestions: Mapping[str, float]) -> "Figure":
    """The curve, and a mark with its name at each suggested learning rate, which is one of `lrs`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(lrs, losses, color="tab:blue")
    for (name, lr), colour in zip(suggestions.items(), ("tab:orange", "tab:green"), strict=False):
        at = lr, losses[list(lrs).index(lr)]
        axes.plot(*at, "o", color=colour, markersize=8)
        beside: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "va": "top"}  # where no curve is
        axes.annotate(f"{name} {lr:.2g}", at, (-8, -4), color=colour, fontweight="bold", **beside)
    axes.set(
        title="Loss while the learning rate rises",
        xlabel="learning rate",
        ylabel="training loss, smoothed",
        xscale="log",
    )
    axes.grid(alpha=0.3)
    return figure
