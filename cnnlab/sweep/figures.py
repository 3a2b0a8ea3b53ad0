"""Images of a search, by Optuna: its course, what mattered, each axis by itself, the Pareto front."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnlab.config.naming import short_names
from cnnlab.sweep.objectives import Objective
from cnnlab.sweep.study import quiet

if TYPE_CHECKING:
    import optuna

FIGURES = "figures"


@quiet
def draw_figures(study: "optuna.Study", objectives: Sequence[Objective], folder: Path) -> list[str]:
    """Writes PNGs into `figures/`; returns the names of those that there was enough for."""
    import matplotlib.pyplot as plt
    from optuna.importance import FanovaImportanceEvaluator
    from optuna.visualization import matplotlib as draw

    plt.switch_backend("agg")
    names = [by.name for by in objectives]
    drawn: list[str] = []
    for number, name in enumerate(names):

        def target(trial: "optuna.trial.FrozenTrial", number: int = number) -> float:
            return float(trial.values[number])

        chosen: dict[str, Any] = {"target_name": name, "target": target if len(names) > 1 else None}
        suffix = f"_{name.replace('/', '_')}" if len(names) > 1 else ""
        one_of: dict[str, Callable[..., Any]] = {
            f"history{suffix}": draw.plot_optimization_history,
            f"importance{suffix}": partial(draw.plot_param_importances, evaluator=FanovaImportanceEvaluator(seed=0)),
            f"slice{suffix}": _plot_slice,
        }
        drawn += [title for title, plot in one_of.items() if _draw(plot, study, folder, title, **chosen)]
    if len(names) in (2, 3) and _draw(draw.plot_pareto_front, study, folder, "pareto", target_names=names):
        drawn.append("pareto")
    return drawn


def _plot_slice(study: "optuna.Study", **options: Any) -> None:
    """Optuna's slices, wide enough for each axis to have its own short name; choices stand without quotes."""
    import matplotlib.pyplot as plt
    from optuna.visualization import matplotlib as draw

    slices = draw.plot_slice(study, **options)
    axes = list(slices.flat) if hasattr(slices, "flat") else [slices]
    names = short_names([one.get_xlabel() for one in axes])
    plt.gcf().set_size_inches(max(6, 3 * len(axes)), 5)
    for one in axes:
        one.set_xlabel(names[one.get_xlabel()])
        texts = [label.get_text() for label in one.get_xticklabels()]
        if any(text.startswith("'") for text in texts):
            one.set_xticks(one.get_xticks(), [text.strip("'") for text in texts])


def _draw(plot: Callable[..., Any], study: "optuna.Study", folder: Path, title: str, **options: Any) -> bool:
    """False where the trials are too few or too equal for a figure."""
    import matplotlib.pyplot as plt

    place = folder / FIGURES
    place.mkdir(exist_ok=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Matplotlib's, about axes with a single value
            plot(study, **options)
        plt.savefig(place / f"{title}.png", dpi=120, bbox_inches="tight")
    except (ValueError, RuntimeError, ZeroDivisionError):
        return False
    finally:
        plt.close("all")
    return True
