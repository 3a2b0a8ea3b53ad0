"""Makes of `results/*.json` the tables in `results/README.md`, the plots and the table in README.md."""

import json
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from measuring import REPOSITORY
from suites import BENCHMARKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = REPOSITORY / "benchmarks" / "results"
RESULTS_ON_CUDA = RESULTS / "cuda"
README = REPOSITORY / "README.md"
BEGIN, END = "<!-- written by benchmarks/report.py -->\n", "<!-- end -->"
# benchmark → its panel's title and the label of what grows
GROWTH = {
    "growth_batch": ("CNN 16-32-64, larger batches", "images in a batch"),
    "growth_width": ("wider CNN, batches of 128", "channels of the first convolution"),
    "growth_depth": ("deeper CNN, batches of 128", "convolutions added to three"),
}
LOOKS = [("#595959", "^", ":"), ("#FF800E", "s", "--"), ("#006BA4", "o", "-")]  # for colour-blind readers, too

# figure → its column's name, and how it is written
COLUMNS = {
    "train_seconds": ("training", "{:.1f} s"),
    "command_seconds": ("whole command", "{:.1f} s"),
    "peak_mb": ("peak memory", "{:,.0f} MB"),
    "step_us": ("a step", "{:,.0f} µs"),
    "busy": ("GPU busy", "{:.1%}"),
    "accuracy": ("test accuracy", "{:.2%}"),
    "seconds_to_99": ("training until 99 % of validation", "{:.1f} s"),
    "seconds_to_99.3": ("until 99.3 %", "{:.1f} s"),
    "first_epoch_seconds": ("first epoch", "{:.1f} s"),
    "later_epoch_seconds": ("a later epoch", "{:.2f} s"),
    "next_run_seconds": ("first epoch of another run", "{:.1f} s"),
    "overhead_seconds": ("a job beyond its training", "{:.2f} s"),
    "first_overhead_seconds": ("the first job", "{:.2f} s"),
    "images_per_second": ("images/s", "{:,.0f}"),
}
# README's rows: what is measured, by which benchmark, which figure; and its columns, by the contestants' names
HEADLINES = [
    ("CNN 16-32-64, an epoch of MNIST", "cnn", "train_seconds"),
    ("… the whole command", "cnn", "command_seconds"),
    ("MLP 64-128-64, an epoch of MNIST", "mlp", "train_seconds"),
    ("784-30-10 sigmoid, a step of 10 images", "tiny", "step_us"),
]
OTHERS = ("by hand, channels_last", "Lightning", "Keras 3", "cnnlab")

Result = dict[str, Any]


def write_report() -> None:
    """Writes everything anew."""
    for folder in (RESULTS, RESULTS_ON_CUDA):
        results = read_results(folder)
        if results:
            (folder / "README.md").write_text(report(results))
        if any(name in results for name in GROWTH):
            growth_figure(results).savefig(folder / "growth.png", dpi=150, metadata={"Software": None})
    README.write_text(with_table(README.read_text(), speed_tables()))


def folder_of(machine: Mapping[str, Any]) -> Path:
    """Where the results of such a machine are."""
    return RESULTS_ON_CUDA if machine.get("gpu") else RESULTS


def speed_tables() -> str:
    """README's table, and a line on where and how often each of its halves was measured."""
    halves = {"CPU": read_results(RESULTS), "GPU": read_results(RESULTS_ON_CUDA)}
    measured = {
        device: results for device, results in halves.items() if any(name in results for _, name, _ in HEADLINES)
    }
    rows = [
        ["", "by hand", *OTHERS],
        *(row for device, results in measured.items() for row in speed_rows(device, results)),
    ]
    origins = [f"{device}: {origin(results)}" for device, results in measured.items()]
    return markdown(rows) + "\n" + "\n".join(origins) + "\n"


def read_results(folder: Path) -> dict[str, Result]:
    paths = {name: folder / f"{name}.json" for name in BENCHMARKS}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}


def report(results: Mapping[str, Result]) -> str:
    """`results/README.md`."""
    parts = [
        "# Results\n",
        "`make bench ARGS=--write` wrote this. Contestants take turns, each time in a fresh process. A figure is "
        "the median of the repetitions; a ratio, in brackets, the median of the quotients with the first row's "
        "figure in the same round. All of a benchmark have equally many parameters and steps, but for accuracy. "
        "Peak memory is of the largest process. Output goes to a file. The whole command of cnnlab's also "
        "validates, saves checkpoints and writes TensorBoard's curves; Lightning's saves and writes "
        "curves.\n",
    ]
    for name, result in results.items():
        parts += [f"## {name}\n", f"{result['title']}. {circumstances(result)}.\n", table(result)]
    if any(name in results for name in GROWTH):
        parts.append(
            "![Training speed in images per second against the batch size, the width and the depth of a CNN, "
            "for loops by hand and cnnlab](growth.png)\n"
        )
    return "\n".join(parts)


def circumstances(result: Result) -> str:
    machine, versions = result["machine"], result["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{place_of(machine)}, {machine['memory_gb']} GB, load "
        f"{machine['load']} before; {packages}; repeated {result['repeats']} times"
    )


def table(result: Result) -> str:
    points = [entry["at"] for entry in result["contestants"]]
    head = [*([] if points[0] is None else ["at"]), "", *(COLUMNS[figure][0] for figure in result["figures"])]
    rows = [
        [
            *([] if entry["at"] is None else [str(entry["at"])]),
            entry["name"],
            *(cell(entry, figure, first=entry["at"] not in points[:place]) for figure in result["figures"]),
        ]
        for place, entry in enumerate(result["contestants"])
    ]
    return markdown([head, *rows])


def cell(entry: Mapping[str, Any], figure: str, *, first: bool) -> str:
    """A figure with its ratio; accuracy as the mean with the standard deviation over the repetitions."""
    if figure not in entry["median"]:
        return "–"
    shown = COLUMNS[figure][1].format(entry["median"][figure])
    if figure == "accuracy":
        values = [100 * run[figure] for run in entry["runs"]]
        return f"{fmean(values):.2f} %" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")
    return shown if first or figure not in entry["ratio"] else f"{shown} ({entry['ratio'][figure]:.2f} ×)"


def speed_rows(device: str, results: Mapping[str, Result]) -> list[list[str]]:
    """README's rows: how many times the first contestant's figure each of the others needs, at its best."""
    rows = []
    for label, name, figure in HEADLINES:
        if name not in results:
            continue
        first, *others = results[name]["contestants"]
        value = COLUMNS[figure][1].format(first["median"][figure])
        rows.append([f"{label}, {device}", value, *(best_ratio(others, other, figure) for other in OTHERS)])
    return rows


def best_ratio(entries: Sequence[Mapping[str, Any]], name: str, figure: str) -> str:
    """The lowest ratio of the variants of a contestant, such as Lightning with workers and without."""
    ratios = [
        entry["ratio"][figure] for entry in entries if entry["name"].startswith(name) and figure in entry["ratio"]
    ]
    text = f"{min(ratios):.2f} ×" if ratios else "–"
    return f"**{text}**" if name == "cnnlab" and ratios else text


def origin(results: Mapping[str, Result]) -> str:
    """On what and how often it was measured."""
    measured = [results[name] for _, name, _ in HEADLINES if name in results]
    places = dict.fromkeys(place_of(result["machine"]) for result in measured)
    return f"{' and '.join(places)}; medians of {spread([result['repeats'] for result in measured])} rounds."


def place_of(machine: Mapping[str, Any]) -> str:
    cores, threads = machine["cores"], machine["threads"]
    named = f"{machine['cpu']}, {cores} core{'s' * (cores != 1)}, {threads} thread{'s' * (threads != 1)}"
    return f"{machine['gpu']} with {named}" if machine.get("gpu") else named


def spread(values: list[float]) -> str:
    return " to ".join(str(value) for value in sorted({min(values), max(values)}))


def markdown(rows: list[list[str]]) -> str:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body]) + "\n"


def with_table(readme: str, new: str) -> str:
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}{new}{END}{rest.partition(END)[2]}"


def growth_figure(results: Mapping[str, Result]) -> "Figure":
    """Images/s of each contestant, a panel for each axis; the area is from the slowest to the fastest repetition."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

    shown = {name: texts for name, texts in GROWTH.items() if name in results}
    figure = Figure(figsize=(6.4, 0.6 + 2.6 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), squeeze=False)[:, 0]
    for panel, (name, (title, label)) in zip(axes, shown.items(), strict=True):
        entries = results[name]["contestants"]
        contestants = dict.fromkeys(entry["name"] for entry in entries)
        for contestant, (color, marker, linestyle) in zip(contestants, cycle(LOOKS), strict=False):
            own = [entry for entry in entries if entry["name"] == contestant]
            points = [entry["at"] for entry in own]
            rates = [[run["images_per_second"] for run in entry["runs"]] for entry in own]
            medians = [entry["median"]["images_per_second"] for entry in own]
            panel.plot(points, medians, color=color, marker=marker, linestyle=linestyle, label=contestant)
            panel.fill_between(points, [min(r) for r in rates], [max(r) for r in rates], color=color, alpha=0.15, lw=0)
        panel.set(xscale="log", yscale="log", title=title, xlabel=label, ylabel="images/s")
        panel.set_xticks(points, [str(point) for point in points])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.grid(alpha=0.3)
    figure.align_ylabels()
    figure.suptitle("training speed: median, and from the slowest to the fastest repetition", fontsize=11)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


if __name__ == "__main__":
    write_report()
