"""The text of `docs/book.md`: its template, what the presets say and publish, and what `docs/book.json` holds."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from laboratory.shown import signed

REPOSITORY = Path(__file__).resolve().parents[1]
PRESETS = REPOSITORY / "configs" / "experiment" / "book"
RESULTS = REPOSITORY / "docs" / "book.json"
PAGE = REPOSITORY / "docs" / "book.md"
CHAPTERS = {
    1: ("c1-30", "c1-100", "c1-slow", "c1-fast"),
    3: ("c3-ce30", "c3-ce100", "c3-overfit", "c3-reg1k", "c3-full", "c3-regfull", "c3-98", "c3-init30-large",
        "c3-init30-small"),
    5: ("c5-vanish",),
    6: ("c6-fc", "c6-conv1", "c6-conv2", "c6-relu", "c6-expanded", "c6-fc2", "c6-dropout", "c6-ensemble"),
}  # fmt: skip
BEST_OF = {"c6-fc": 3, "c6-conv1": 3, "c6-conv2": 3, "c6-relu": 3}  # runs of which the book took the best
VANISHING = {2: (0.066, 0.309), 3: (0.012, 0.060, 0.283), 4: (0.0030, 0.017, 0.070, 0.285)}  # by hidden layers
LARGE_WEIGHTS = "With weights from N(0, 1) much depends on the draw, and one run is published."
CAUSES = {  # of differences from what is published
    "c1-30": LARGE_WEIGHTS,
    "c1-100": "An output neuron may saturate in the first steps and never come back; each that does costs a digit, ten "
    "points. The book reports a large variance, too.",
    "c1-slow": "After so little learning, much still depends on the first weights.",
    "c3-ce30": LARGE_WEIGHTS,
    "c3-full": LARGE_WEIGHTS,
    "c3-regfull": LARGE_WEIGHTS,
    "c3-init30-large": LARGE_WEIGHTS,
}

HEAD = ("experiment", "published (%)", "ours (%)", "difference", "runs and remarks")

Results = dict[str, Any]  # experiment → seed → what a run's row needs; and what was measured without a run


def names() -> list[str]:
    """The experiments, in the order of the page."""
    return [name for chapter in CHAPTERS.values() for name in chapter]


def read_results() -> Results:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}


def page(results: Results) -> str:
    """The text of `docs/book.md`."""
    text = (REPOSITORY / "docs" / "book.template.md").read_text(encoding="utf-8")
    for mark, value in {
        **{f"chapter {chapter}": _chapter(chapter, results) for chapter in (1, 3, 6)},
        "baselines": _baselines(results.get("baselines")),
        "c5-vanish": description("c5-vanish"),
        "vanishing": _vanishing(results.get("c5-vanish")),
    }.items():
        text = text.replace(f"<!-- {mark} -->", value)
    return text


def description(name: str) -> str:
    """What the experiment is: the first comment of its preset."""
    _package, *lines = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("# ") for line in takewhile(lambda line: line.startswith("#"), lines))


def _chapter(chapter: int, results: Results) -> str:
    rows = []
    for name in CHAPTERS[chapter]:
        published = yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))["published"]
        found = results.get(name)
        if not found:
            rows.append([_title(name), f"{100 * published['value']:.2f}", "not yet run", "", ""])
        elif name == "c6-ensemble":
            rows.append(_ensemble_row(published["value"], found))
        else:
            rows += [_row(name, published, list(found.values())), *_rows_beside(list(found.values()))]
    return _table(HEAD, rows)


def _row(name: str, published: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    ours = [run["figure"] for run in runs]
    figure = statistics.mean(ours)
    shown = _mean(ours)
    if len(runs) >= BEST_OF.get(name, len(runs) + 1):
        figure = max(runs, key=lambda run: run["val"])["figure"]
        shown = f"**{100 * figure:.2f}**, best of {len(runs)} by validation; {shown}"
    return [
        _title(name),
        f"{100 * published['value']:.2f}",
        shown,
        signed(100 * (figure - published["value"])),
        _remarks(name, published, runs),
    ]


def _title(name: str) -> str:
    return f"`{name}`: {description(name)}"


def _remarks(name: str, published: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str:
    """How many runs of how many minutes, their range, the chosen epoch, and why they differ from what is published."""
    ours = [run["figure"] for run in runs]
    minutes = f"{statistics.mean(run['seconds'] for run in runs) / 60:.1f} min"
    made = f"1 run of {minutes}"
    if len(runs) > 1:
        made = f"{len(runs)} runs of {minutes}, {100 * min(ours):.2f} to {100 * max(ours):.2f}"
        if not min(ours) <= published["value"] <= max(ours):
            made += f", all {'below' if published['value'] > max(ours) else 'above'} what is published"
    chosen = _chosen_by(runs[0]["monitor"], published["figure"])
    return f"{made}; {chosen}. {CAUSES.get(name, '')}".strip()


def _chosen_by(monitor: str | None, figure: str) -> str:
    if monitor is None:
        return "last epoch" + (", on the validation images" if figure.endswith("/val") else "")
    return f"best epoch on the {'test' if monitor.endswith('/test') else 'validation'} images"


def _rows_beside(runs: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """What else is published of the experiment above."""
    for figure, found in runs[0]["beside"].items():
        values = [run["beside"][figure]["ours"] for run in runs]
        split, _, epoch = figure.partition(", ")
        images = {"test": "test images", "val": "validation images"}.get(split, split)
        yield [
            f"… {images}{epoch and ', '}{epoch}",
            f"{100 * found['published']:.2f}",
            _mean(values),
            signed(100 * (statistics.mean(values) - found["published"])),
            "",
        ]


def _ensemble_row(published: float, found: Mapping[str, Any]) -> list[str]:
    return [
        _title("c6-ensemble"),
        f"{100 * published:.2f}",
        f"{100 * found['accuracy']:.2f}",
        signed(100 * (found["accuracy"] - published)),
        f"{found['votes']} votes, {found['seconds'] / 60:.1f} min in all; best epoch on the validation images.",
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
        ours = [f"{statistics.mean(layer):#.2g} ± {statistics.stdev(layer):.1g}" for layer in zip(*seeds, strict=True)]
        rows.append([str(layers), ", ".join(f"{norm:#.2g}" for norm in norms), ", ".join(ours)])
    head = ("hidden layers", "published ‖∂C/∂b‖, first layer first", f"ours, {len(found['2'])} draws")
    return _table(head, rows)
