"""The text of `docs/book.md`: its template, the presets' published figures and what `docs/book.json` holds."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
PRESETS = REPOSITORY / "configs" / "experiment" / "book"
RESULTS = REPOSITORY / "docs" / "book.json"
PAGE = REPOSITORY / "docs" / "book.md"
BEST_OF = {"c6-fc": 3, "c6-conv1": 3, "c6-conv2": 3, "c6-relu": 3}  # runs of which the book took the best
VANISHING = {2: (0.066, 0.309), 3: (0.012, 0.060, 0.283), 4: (0.0030, 0.017, 0.070, 0.285)}  # by hidden layers

HEAD = ("experiment", "published", "ours (%)", "difference", "what explains it", "runs", "chosen by", "minutes")
CHAPTERS = {
    "1": "quadratic cost, sigmoid neurons",
    "3": "cross-entropy, regularisation, first weights",
    "5": "vanishing gradients",
    "6": "convolutions",
}
# what explains a difference, where it is known; of others, where the published run lies among ours
CAUSES = {
    "c1-100": "an output neuron that saturates in the first steps never recovers, and costs a digit: ten points. The "
    "book reports a large variance, too",
    "c1-fast": "both guess",
    "c1-slow": "how far so small a learning rate gets depends on where it starts",
}

Results = dict[str, Any]  # experiment → seed → what a run's row needs; and what was measured without a run


def names() -> list[str]:
    """The experiments, in the order of the page."""
    return [path.stem for path in sorted(PRESETS.glob("c*.yaml"))]


def read_results() -> Results:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}


def page(results: Results) -> str:
    """The text of `docs/book.md`."""
    text = (REPOSITORY / "docs" / "book.template.md").read_text(encoding="utf-8")
    for mark, value in {
        **{f"chapter {chapter}": _chapter(chapter, results) for chapter in CHAPTERS},
        "baselines": _baselines(results.get("baselines")),
        "vanishing": _vanishing(results.get("c5-vanish")),
    }.items():
        text = text.replace(f"<!-- {mark} -->", value)
    return text


def _chapter(chapter: str, results: Results) -> str:
    """What each experiment of a chapter is, and a table of what came out."""
    own = [name for name in names() if name.startswith(f"c{chapter}-")]
    rows, beside = [], []
    for name in own:
        published, runs = _preset(name).get("published"), list(results.get(name, {}).values())
        if not runs or published is None:  # c5-vanish has a table of its own
            continue
        if name == "c6-ensemble":
            rows.append(_ensemble_row(published["value"], results[name]))
        else:
            rows.append(_row(name, published, runs))
            beside += _rows_beside(name, runs)
    parts = ["\n".join(f"- `{name}`: {_what(name)}" for name in own)]
    parts += [_table(HEAD, rows)] if rows else []
    parts += [_table(("experiment", "figure", "published", "ours (%)"), beside)] if beside else []
    untried = [f"`{name}`" for name in own if not results.get(name)]
    return "\n\n".join([*parts, *([f"Not yet run: {', '.join(untried)}."] if untried else [])])


def _preset(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))
    return content


def _what(name: str) -> str:
    """What an experiment is: the comment at the beginning of its preset."""
    lines = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines[1:]))
    return comment[:1].lower() + comment[1:] if comment[:2].istitle() else comment


def _row(name: str, published: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    ours = [run["figure"] for run in runs]
    figure = statistics.mean(ours)
    shown = _mean(ours)
    if len(runs) >= BEST_OF.get(name, len(runs) + 1):
        figure = max(runs, key=lambda run: run["val"])["figure"]
        shown = f"**{100 * figure:.2f}** best of {len(runs)} by validation; {shown}"
    minutes = statistics.mean(run["seconds"] for run in runs) / 60
    spread = f" ({100 * min(ours):.2f} … {100 * max(ours):.2f})" if len(ours) > 1 else ""
    return [
        f"`{name}`",
        f"{100 * published['value']:.2f}",
        shown + spread,
        _signed(figure - published["value"]),
        CAUSES.get(name) or _place(published["value"], ours),
        str(len(runs)),
        _chosen_by(runs[0]["monitor"], published["figure"]),
        f"{minutes:.1f}",
    ]


def _signed(difference: float) -> str:
    return f"{100 * difference:+.2f}".replace("-", "−")


def _place(published: float, ours: Sequence[float]) -> str:
    """Where the published run lies among ours."""
    if len(ours) < 2:
        return "one run each"
    if published > max(ours):
        return f"the published run is above all {len(ours)} of ours"
    if published < min(ours):
        return f"the published run is below all {len(ours)} of ours"
    return "the published run is among ours"


def _chosen_by(monitor: str | None, figure: str) -> str:
    if monitor is None:
        return "last epoch" + (" (validation images)" if figure.endswith("/val") else "")
    return "test peak" if monitor.endswith("/test") else "validation"


def _rows_beside(name: str, runs: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    for figure, found in runs[0]["beside"].items():
        values = [run["beside"][figure]["ours"] for run in runs]
        yield [f"`{name}`", figure, f"{100 * found['published']:.2f}", _mean(values)]


def _ensemble_row(published: float, found: Mapping[str, Any]) -> list[str]:
    return [
        "`c6-ensemble`",
        f"{100 * published:.2f}",
        f"{100 * found['accuracy']:.2f}",
        _signed(found["accuracy"] - published),
        "one vote each",
        f"{found['votes']} votes",
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
