"""`report.html`: one page of a run that needs neither a network nor the data, made of the run's own files."""

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cnnlab.config.programs import command, given
from cnnlab.config.run_plan import RunPlan
from cnnlab.config.saved_config import load_saved_overrides
from cnnlab.run.files import CONFIG, DIAGRAM, ENVIRONMENT, FIGURES, MODEL, OVERRIDES, SUMMARY, RunDirectory
from cnnlab.run.loaders import describe_splits
from cnnlab.runtime.errors import ConfigError
from cnnlab.runtime.files import read_regular
from cnnlab.visualization.charts import BLACK, TRAIN, VALIDATION, Line, bar_chart, line_chart, reliability_chart
from cnnlab.visualization.confusion import pixels
from cnnlab.visualization.curves import curves_figure
from cnnlab.visualization.page import charts, code, facts, image, note, page, table, text, value_text

REPORT, CURVES, METRICS = "report.html", "curves.png", "metrics.jsonl"
MANY = 40  # validations from which on their points are not marked
MOST_CLASSES = 30  # of each table and chart
MOST_FIGURES = 60
LARGEST_FIGURE, LARGEST_FIGURES = 8 << 20, 24 << 20  # bytes, of one and of all
LARGEST_TEXT = 1 << 18  # of the layer table and the config; an ordinary one has a few KiB
LARGEST_METRICS = 1 << 28
LR = "learning rate"
SPLITS = {"train": "training", "val": "validation", "test": "test"}
# what stands before the step in the name of a figure, and what the figure shows
FIGURE_TITLES = (
    (r"confusion-(?P<a>train|val|test)", "Confusion matrix of the {a} split: labels in rows, predictions in columns"),
    (r"filters-(?P<a>.+)", "The filters of {a}"),
    (r"maps-(?P<a>.+)-(?P<b>train|val|test)-(?P<c>\d+)", "What {a} responds to in image {c} of the {b} split"),
    (r"maximised-(?P<a>.+)", "Images that maximise the units of {a}"),
    (r"lr-?find.*", "Loss while the learning rate rises"),
    (r"explain/worst-mistakes-(?P<a>train|val|test)", "The mistakes with the largest loss, {a} split"),
    (r"explain/why-mistakes-(?P<a>train|val|test)", "What speaks for the wrong predictions and the labels, {a} split"),
    (r"explain/why-correct-(?P<a>train|val|test)", "What speaks for the correct predictions, {a} split"),
    (r"explain/ablation-(?P<a>.+)-(?P<b>train|val|test)", "What classes lose without a channel of {a}, {b} split"),
    (
        r"explain/exciting-(?P<a>.+)-(?P<b>train|val|test)",
        "Images that excite the channels of {a} most, {b} split",
    ),
    (
        r"explain/embedding-pca-(?P<a>train|val|test)",
        "Images as the network sees them: principal components, {a} split",
    ),
    (r"explain/embedding-tsne-(?P<a>train|val|test)", "Images as the network sees them: t-SNE, {a} split"),
    (r"explain/reliability-(?P<a>train|val|test)", "Whether the network is as sure as it is right, {a} split"),
    (r"explain/made-for-(?P<a>.+)-(?P<b>train|val|test)", "Images made to excite the channels of {a}"),
    (r"explain/boundary-(?P<a>train|val|test)", "The predicted class for each pair of pixels, {a} split"),
)
_STEP = re.compile(r"-step-0*(\d+)(?:-([a-z_]+))?$")


@dataclass(frozen=True)
class History:
    """What `metrics.jsonl` holds: for each split its records, in the order of their steps."""

    records: Mapping[str, Sequence[Mapping[str, Any]]]

    @classmethod
    def read(cls, path: Path) -> "History":
        """A line that is no record, such as one that a kill cut short, is left out; so is a file that is not there."""
        records: dict[str, list[Mapping[str, Any]]] = {}
        with suppress(OSError):
            for line in read_regular(path, LARGEST_METRICS).decode(errors="replace").splitlines():
                with suppress(ValueError, RecursionError):
                    record = json.loads(line)
                    if isinstance(record, dict) and isinstance(record.get("step"), int):
                        records.setdefault(str(record.get("split")), []).append(record)
        return cls(records)

    def points(self, split: str, name: str, steps_per_epoch: int) -> list[tuple[float, float | None]]:
        """(epoch, value) of each record that has the value; None for one that was not finite."""
        return [
            (record["step"] / steps_per_epoch, record[name] if isinstance(record[name], int | float) else None)
            for record in self.records.get(split, ())
            if name in record
        ]


def write_report(directory: RunDirectory, plan: RunPlan, class_counts: Sequence[int]) -> Path:
    """Writes the page anew. Raises `TrainingError` where the disk refuses, `ConfigError` for damaged files.

    `class_counts` are of the training images.
    """
    summary = directory.read_json(SUMMARY)
    evaluations = _evaluations(directory)
    figures = sorted(path for path in (directory.path / FIGURES).rglob("*.png") if path.is_file())
    confusion = [path for path in figures if path.name.startswith("confusion-")]
    sections = [
        ("Curves", _curves(directory, plan, summary)),
        ("Evaluation", _evaluation(evaluations, directory)),
        ("Confusion", _figures(directory, confusion)),
        ("Images", _figures(directory, [path for path in figures if path not in confusion])),
        ("Network", _network(directory)),
        ("Data", _data(plan, class_counts)),
        ("Command", _command(directory)),
        ("Environment", _environment(directory)),
        ("Config", code(_text_of(directory, CONFIG))),
    ]
    title = f"{plan.name}: {directory.path.absolute().name}"
    return directory.write_text(REPORT, page(title, _introduction(summary), sections))


def _introduction(summary: Mapping[str, Any]) -> str:
    sentence = f"Status: {summary['status']}." if "status" in summary else "Status: killed, or still training."
    if summary.get("error"):
        sentence += f" {summary['error']}"
    return note(sentence) + facts(results(summary))


def results(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures of a `summary.json` that it has, each with its name."""
    best, train, test = (_mapping(summary.get(name)) for name in ("best", "train", "test"))
    shown = [("test accuracy", _percent(test.get("accuracy"))), ("test loss", _number(test.get("loss")))]
    shown += [("best validation accuracy", _percent(best.get("accuracy/val")))]
    shown += [("validation loss there", _number(best.get("loss/val"))), ("best epoch", _number(best.get("epoch")))]
    shown += [("epochs", _number(summary.get("epoch"))), ("steps", _number(summary.get("step")))]
    shown += [("training time", _duration(train.get("seconds")))]
    shown += [("images per second", _number(train.get("images_per_second"), 0))]
    shown += [("parameters", _number(summary.get("parameters"))), ("MACs per image", _number(summary.get("macs")))]
    return [(name, value) for name, value in shown if value]


def panels(history: History, steps_per_epoch: int) -> list[tuple[str, list[Line]]]:
    """Loss, accuracy and learning rate over epochs: the label of each and its curves, those without a point left out.

    A resumed run's records are those that its checkpoint followed.
    """

    def lines(name: str) -> list[Line]:
        train, val = (history.points(split, name, steps_per_epoch) for split in ("train", "val"))
        found = [Line("training", train, TRAIN), Line("validation", val, VALIDATION, marked=len(val) < MANY)]
        return [line for line in found if line.points]

    lr = [Line("lr", points, BLACK)] if (points := history.points("train", "lr", steps_per_epoch)) else []
    found = [("loss", lines("loss")), ("accuracy", lines("accuracy")), (LR, lr)]
    return [(label, curves) for label, curves in found if curves]


def write_curves(directory: RunDirectory, plan: RunPlan) -> Path | None:
    """Draws `curves.png`; None where nothing was recorded."""
    shown = panels(History.read(directory.path / METRICS), plan.steps_per_epoch)
    if not shown:
        return None
    return directory.write_image(CURVES, pixels(curves_figure(directory.path.absolute().name, shown)))


def _curves(directory: RunDirectory, plan: RunPlan, summary: Mapping[str, Any]) -> str:
    shown = panels(History.read(directory.path / METRICS), plan.steps_per_epoch)
    step = _mapping(summary.get("best")).get("step")
    mark = (step / plan.steps_per_epoch, "best") if isinstance(step, int) else None
    drawn = [
        line_chart(
            label.capitalize(),
            "epoch",
            lines,
            top=1.0 if label == "accuracy" else None,
            linear=label == LR,
            mark=mark if label != LR else None,
        )
        for label, lines in shown
    ]
    explained = (
        "Training figures are means over the steps since the last one, in training mode (dropout, augmentation)."
    )
    return charts(drawn) + note(explained) if drawn else note("Nothing was recorded.")


def _evaluations(directory: RunDirectory) -> list[tuple[str, Mapping[str, Any]]]:
    names = sorted(path.name for path in directory.path.glob("evaluation-*.json") if path.is_file())
    return [(name, directory.read_json(name)) for name in names]


def _evaluation(evaluations: Sequence[tuple[str, Mapping[str, Any]]], directory: RunDirectory) -> str:
    if not evaluations:
        line = f"{command('evaluate')} {given('run', directory.path)}"
        return note("Not evaluated yet: each class, calibration and confusion are here after") + code(line)
    return "\n".join(_tolerant(partial(_one_evaluation, result), name) for name, result in evaluations)


def _one_evaluation(result: Mapping[str, Any]) -> str:
    split, step = SPLITS[result["split"]], int(result["checkpoint"].rpartition("-")[2])
    views = "" if result["tta"] == "none" else f", test-time augmentation {result['tta']}"
    top_k = [(f"top-{k} accuracy", _percent(value)) for k, value in result["top_k"].items()]
    shown = [
        ("accuracy", _percent(result["accuracy"])),
        ("loss", _number(result["loss"])),
        *top_k,
        ("expected calibration error", _number(result["calibration_error"])),
        *((name, _number(value)) for name, value in list(result["metrics"].items())[:MOST_CLASSES]),
        ("images", _number(result["images"])),
    ]
    rows = result["per_class"]
    worst = rows if len(rows) <= MOST_CLASSES else sorted(rows, key=lambda row: row["f1"])[:MOST_CLASSES]
    names = ("precision", "recall", "f1")
    classes = table(
        ("class", "images", "precision", "recall", "F1"),
        [[row["class"], f"{row['images']:,}", *(f"{row[name]:.4f}" for name in names)] for row in worst],
    )
    cut = "" if worst is rows else note(f"The {MOST_CLASSES} of {len(rows):,} classes with the lowest F1.")
    pairs = [
        [pair["label"], pair["prediction"], f"{pair['images']:,}", f"{100 * pair['fraction']:.1f} %"]
        for pair in result["most_confused"]
    ]
    confused = table(("label", "prediction", "images", "of the label's"), pairs, 2) if pairs else note("No mistakes.")
    bins = [(one["images"], one["confidence"], one["accuracy"]) for one in result.get("calibration", ())]
    reliability = charts([reliability_chart("Calibration", bins)])
    return "\n".join(
        [
            f"<h3>The {split} split at step {step:,}{views}</h3>",
            facts([(name, value) for name, value in shown if value]),
            reliability,
            "<h3>Each class</h3>",
            classes,
            cut,
            "<h3>Most often confused</h3>",
            confused,
        ]
    )


def _tolerant(draw: Callable[[], str], name: str) -> str:
    """What was edited by hand or is of another version is named, not drawn."""
    try:
        return draw()
    except (KeyError, TypeError, ValueError, AttributeError):
        return note(f"{name} is not as this version writes it, and is not shown.")


def _figures(directory: RunDirectory, paths: Sequence[Path]) -> str:
    shown: list[str] = []
    left_out: list[str] = []
    size = 0
    for path in paths:
        with suppress(OSError):
            content = read_regular(path, LARGEST_FIGURE)
            size += len(content)
            if len(shown) < MOST_FIGURES and size <= LARGEST_FIGURES:
                shown.append(image(content, figure_title(path.relative_to(directory.path / FIGURES))))
                continue
        left_out.append(path.relative_to(directory.path).as_posix())
    if left_out:
        shown.append(note(f"Too many or too large for this page: {', '.join(left_out[:MOST_FIGURES])}"))
    return "\n".join(shown)


def figure_title(path: Path) -> str:
    """What the figure of that name shows; of an unknown one its name in words, folders first."""
    stem, after = path.stem, ""
    if found := _STEP.search(stem):
        views = f", test-time augmentation {found[2]}" if found[2] else ""
        stem, after = stem[: found.start()], f" (step {int(found[1]):,}{views})"
    for pattern, title in FIGURE_TITLES:
        if match := re.fullmatch(pattern, (path.parent / stem).as_posix()):
            return title.format(**match.groupdict()) + after
    words = " ".join(re.split(r"[-_]+", stem))
    return ": ".join([*path.parent.parts, words]).strip() + after


def _network(directory: RunDirectory) -> str:
    parts = []
    with suppress(OSError):
        content = read_regular(directory.path / DIAGRAM, LARGEST_FIGURE)
        parts.append(image(content, "The network, from input to output", "svg+xml"))
    return "\n".join([*parts, "<h3>Layers</h3>", code(_text_of(directory, MODEL))])


def _data(plan: RunPlan, class_counts: Sequence[int]) -> str:
    channels, height, width = plan.spec.input_shape
    names, most = plan.spec.class_names, MOST_CLASSES
    shown = list(zip(names, map(float, class_counts), strict=False))
    if len(shown) > most:
        ordered = sorted(shown, key=lambda one: -one[1])
        shown = [*ordered[: most - 5], *ordered[-5:]]
    cut = note(f"Of {len(names):,} classes the {most - 5} with most images and the 5 with fewest.")
    return "\n".join(
        [
            f"<p>{channels} × {height} × {width} pixels (channels × height × width), {len(names):,} classes; "
            f"{text(describe_splits(plan))}.</p>",
            charts([bar_chart("Training images of each class", "images", shown)]),
            cut if len(names) > most else "",
        ]
    )


def command_line(directory: RunDirectory) -> str:
    """The command that began the run, for a shell. Raises `ConfigError` for damaged overrides."""
    return shlex.join([*command("train").split(" "), *load_saved_overrides(directory.path / OVERRIDES)])


def _command(directory: RunDirectory) -> str:
    try:
        return code(command_line(directory))
    except ConfigError as error:
        return note(str(error))


def _environment(directory: RunDirectory) -> str:
    rows = [(name, value_text(value)) for name, value in directory.read_json(ENVIRONMENT).items()]
    return table(("", ""), rows, numbers_from=2) if rows else ""


def _text_of(directory: RunDirectory, name: str) -> str:
    try:
        content = read_regular(directory.path / name, LARGEST_METRICS)
    except OSError:
        return f"{name} is not there"
    cut = content[:LARGEST_TEXT].decode(errors="replace").rstrip("\n")
    return cut if len(content) <= LARGEST_TEXT else f"{cut}\n… the rest is in {name}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _percent(value: Any) -> str:
    return f"{100 * value:.2f} %" if isinstance(value, int | float) else ""


def _number(value: Any, digits: int = 4) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
