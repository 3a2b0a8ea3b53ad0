"""The text of `docs/book.md`: its template, the presets' published figures and what `docs/book.json` holds."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
PRESETS = REPOSITORY / "configs" / "experiment" / "book"
RESULTS = REPOSITORY / "docs" / "book.json"
PAGE = REPOSITORY / "docs" / "book.md"
BEST_OF = {"c6-fc": 3, "c6-conv1": 3, "c6-conv2": 3, "c6-relu": 3}  # runs of which the book took the best
VANISHING = {2: (0.066, 0.309), 3: (0.012, 0.060, 0.283), 4: (0.0030, 0.017, 0.070, 0.285)}  # by hidden layers

HEAD = (
    "`python train.py …`",
    "published",
    "ours (%)",
    "lowest … highest",
    "runs",
    "difference",
    "chosen by",
    "minutes",
)

Results = dict[str, Any]  # experiment → seed → what a run's row needs; and what was measured without a run


def names() -> list[str]:
    """The experiments, in the order of the page."""
    return [path.stem for path in sorted(PRESETS.glob("c*.yaml"))]


def read_results() -> Results:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}


def page(results: Results) -> str:
    """The text of `docs/book.md`."""
    rows, beside, untried = [], [], []
    for name in names():
        published = yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8")).get("published")
        runs = list(results.get(name, {}).values())
        if not runs:
            untried.append(_command(name))
        elif name == "c5-vanish":
            continue  # it has a table of its own
        elif name == "c6-ensemble":
            rows.append(_ensemble_row(published["value"], results[name]))
        else:
            rows.append(_row(name, published, runs))
            beside += _rows_beside(name, runs)
    text = (REPOSITORY / "docs" / "book.template.md").read_text(encoding="utf-8")
    for mark, value in {
        "experiments": _table(HEAD, rows),
        "beside": _table(("`python train.py …`", "figure", "published", "ours (%)"), beside),
        "baselines": _baselines(results.get("baselines")),
        "vanishing": _vanishing(results.get("c5-vanish")),
        "untried": ", ".join(untried) or "none",
    }.items():
        text = text.replace(f"<!-- {mark} -->", value)
    return text


def _row(name: str, published: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    ours = [run["figure"] for run in runs]
    figure = statistics.mean(ours)
    shown = _mean(ours)
    if len(runs) >= BEST_OF.get(name, len(runs) + 1):
        figure = max(runs, key=lambda run: run["val"])["figure"]
        shown = f"**{100 * figure:.2f}** best of {len(runs)} by validation; {shown}"
    minutes = statistics.mean(run["seconds"] for run in runs) / 60
    return [
        _command(name),
        f"{100 * published['value']:.2f}",
        shown,
        f"{100 * min(ours):.2f} … {100 * max(ours):.2f}",
        str(len(runs)),
        f"{100 * (figure - published['value']):+.2f}",
        _chosen_by(runs[0]["monitor"], published["figure"]),
        f"{minutes:.1f}",
    ]


def _command(name: str) -> str:
    return f"`experiment=book/{name}`"


def _chosen_by(monitor: str | None, figure: str) -> str:
    if monitor is None:
        return "last epoch" + (" (validation images)" if figure.endswith("/val") else "")
    return "test peak" if monitor.endswith("/test") else "validation"


def _rows_beside(name: str, runs: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    for figure, found in runs[0]["beside"].items():
        values = [run["beside"][figure]["ours"] for run in runs]
        yield [_command(name), figure, f"{100 * found['published']:.2f}", _mean(values)]


def _ensemble_row(published: float, found: Mapping[str, Any]) -> list[str]:
    return [
        _command("c6-ensemble"),
        f"{100 * published:.2f}",
        f"{100 * found['accuracy']:.2f}",
        "",
        f"{found['votes']} votes",
        f"{100 * (found['accuracy'] - published):+.2f}",
        "validation",
        f"{found['seconds'] / 60:.1f}",
    ]


def _mean(values: Sequence[float]) -> str:
    shown = f"{100 * statistics.mean(values):.2f}"
    return shown if len(values) < 2 else f"{shown} ± {100 * statistics.stdev(values):.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _baselines(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "Not yet measured: `make book ARGS=baselines`."
    rows = [
        ["mean darkness of the image", "22.25", f"{100 * found['darkness']:.2f}"],
        ['`sklearn.svm.SVC(gamma="auto")`', "94.35", f"{100 * found['svm']:.2f}"],
    ]
    return _table(("baseline", "published", "ours (%)"), rows)


def _vanishing(found: Mapping[str, Sequence[Sequence[float]]] | None) -> str:
    if found is None:
        return "Not yet measured: `make book ARGS=c5-vanish`."
    rows = []
    for layers, norms in VANISHING.items():
        seeds = found[str(layers)]
        ours = [f"{statistics.mean(layer):.2g} ± {statistics.stdev(layer):.1g}" for layer in zip(*seeds, strict=True)]
        rows.append([str(layers), ", ".join(f"{norm:.2g}" for norm in norms), ", ".join(ours)])
    head = ("hidden layers", "published ‖∂C/∂b‖, first layer first", f"ours, {len(found['2'])} draws")
    return _table(head, rows)
