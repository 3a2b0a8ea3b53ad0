"""An evaluation for people and programs: the tables in the terminal and the file of predictions."""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from torch import Tensor

from cnnlab.metrics import rank_of_label
from cnnlab.run.files import RunDirectory
from cnnlab.runtime.terminal import WIDEST, print_table, print_wrapped, printable, width

MOST_CLASSES = 25  # in the terminal; the files hold all of them
MOST_IMAGES = 10  # of an unlabelled folder, in the terminal
BESIDE = len("probability") + 8  # columns of the predictions' table beside its path and class
SHORTEST = 20  # columns of a path, where a class name takes all others
MOST_PROBABILITIES = 100  # classes up to which the file holds every probability


def cell(text: str) -> str:
    """A text for a CSV: one that a spreadsheet would take for a formula begins with an apostrophe."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


@dataclass(frozen=True)
class Predictions:
    """A network's outputs for each image, their probabilities, and the loss of each image."""

    index_N: Tensor
    target_N: Tensor
    output_NK: Tensor
    probability_NK: Tensor
    loss_N: Tensor

    @property
    def predicted(self) -> Tensor:
        """The class with the largest output, (N,)."""
        return self.output_NK.argmax(1)


def write_predictions(
    directory: RunDirectory,
    name: str,
    predictions: Predictions,
    class_names: Sequence[str],
    paths: Sequence[str] | None = None,
) -> Path:
    """One line per image: index, path where it has one, label, prediction, its probability, loss, the label's rank.

    `rank` is 1 where the label is the prediction, so `rank ≤ k` is a top-k hit. Up to 100 classes, each class's
    probability follows. Numbers are written so that they read back as the same float32.
    """
    every = class_names if len(class_names) <= MOST_PROBABILITIES else ()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    where = ["index"] if paths is None else ["index", "path"]
    writer.writerow([*where, "label", "prediction", "probability", "loss", "rank", *(f"p({name})" for name in every)])
    columns = zip(
        predictions.index_N.tolist(),
        predictions.target_N.tolist(),
        predictions.predicted.tolist(),
        predictions.probability_NK.amax(1).tolist(),
        predictions.loss_N.tolist(),
        rank_of_label(predictions.output_NK, predictions.target_N).tolist(),
        predictions.probability_NK.tolist() if every else [()] * len(predictions.index_N),
        strict=True,
    )
    for index, label, prediction, probability, loss, rank, probability_K in columns:
        where = [index] if paths is None else [index, cell(paths[index])]
        numbers = [f"{number + 0.0:.9g}" for number in (probability, loss)]  # + 0: no −0
        row = [*where, cell(class_names[label]), cell(class_names[prediction]), *numbers, rank]
        writer.writerow([*row, *(f"{number:.9g}" for number in probability_K)])
    return directory.write_text(name, text.getvalue())


@dataclass(frozen=True)
class ImagePredictions:
    """What was predicted for images without labels: the class with the largest output, and all probabilities."""

    paths: Sequence[str]
    predicted_N: Tensor
    probability_NK: Tensor

    def rows(self) -> Iterator[tuple[str, int, list[float]]]:
        """Path, predicted class and the classes' probabilities, image by image."""
        return zip(self.paths, self.predicted_N.tolist(), self.probability_NK.tolist(), strict=True)


def write_image_predictions(
    directory: RunDirectory, name: str, predictions: ImagePredictions, class_names: Sequence[str]
) -> Path:
    """One line per image: path, prediction, its probability; up to 100 classes, those of all."""
    every = class_names if len(class_names) <= MOST_PROBABILITIES else ()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "prediction", "probability", *(f"p({name})" for name in every)])
    for path, predicted, probability_K in predictions.rows():
        numbers = [probability_K[predicted], *(probability_K if every else ())]
        writer.writerow([cell(path), cell(class_names[predicted]), *(f"{number:.9g}" for number in numbers)])
    return directory.write_text(name, text.getvalue())


def print_predictions(predictions: ImagePredictions, class_names: Sequence[str]) -> None:
    """Prints the first predictions one by one, and the number of images of each predicted class."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("image", no_wrap=True)
    table.add_column("prediction")
    table.add_column("probability", justify="right")
    shown = [(printable(path), printable(class_names[k]), p_K[k]) for path, k, p_K in _first(predictions)]
    room = (width() or WIDEST) - max(len(name) for name in ("prediction", *(name for _, name, _ in shown)))
    for path, name, probability in shown:
        table.add_row(_end(path, max(room - BESIDE, SHORTEST)), name, f"{probability:.4f}")
    print_table(table, markup=False)
    if len(predictions.paths) > MOST_IMAGES:
        print(f"and {len(predictions.paths) - MOST_IMAGES:,} more")
    counts = Counter(predictions.predicted_N.tolist()).most_common(MOST_CLASSES)
    listed = [f"{printable(class_names[predicted])} {count:,}" for predicted, count in counts]
    print_wrapped(f"predicted: {', '.join(listed)}", *listed)


def _first(predictions: ImagePredictions) -> Iterator[tuple[str, int, list[float]]]:
    return islice(predictions.rows(), MOST_IMAGES)


def _end(path: str, room: int) -> str:
    """The end of a path, in which the images of a folder differ."""
    return path if len(path) <= room else f"…{path[1 - room :]}"


def write_confusion(directory: RunDirectory, name: str, confusion_KK: Tensor, class_names: Sequence[str]) -> Path:
    """A line for each label, a column for each prediction."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label", *map(cell, class_names)])
    for label, counts_K in zip(class_names, confusion_KK.tolist(), strict=True):
        writer.writerow([cell(label), *counts_K])
    return directory.write_text(name, text.getvalue())


def print_report(result: Mapping[str, Any], step: int) -> None:
    """The figures of an evaluation, as `evaluate.py` prints them."""
    views = "" if result["tta"] == "none" else f", test-time augmentation {result['tta']}"
    checkpoint = f"(step {step}{views})"
    print_wrapped(
        f"{result['split']}: accuracy {result['accuracy']:.4f}, loss {result['loss']:.4f} on "
        f"{result['images']:,} images {checkpoint}",
        checkpoint,
    )
    [(k, fraction)] = result["top_k"].items()
    print_wrapped(f"top-{k} accuracy {fraction:.4f}, expected calibration error {result['calibration_error']:.4f}")
    shown = {name: value for name, value in result["metrics"].items() if "." not in name}
    if shown:
        print_wrapped(", ".join(f"{name} {value:.4f}" for name, value in shown.items()))
    print_table(_class_table(result), markup=False)
    if result["most_confused"]:
        print_table(_confused_table(result["most_confused"]), markup=False)


def _class_table(result: Mapping[str, Any]) -> Table:
    rows = result["per_class"]
    shown = rows if len(rows) <= MOST_CLASSES else sorted(rows, key=lambda row: row["f1"])[:MOST_CLASSES]
    title = None if shown is rows else f"the {MOST_CLASSES} of {len(rows)} classes with the lowest F1"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True, title=title, title_justify="left")
    macro = result["macro"]
    table.add_column("class", footer="mean")
    table.add_column("images", footer=f"{result['images']:,}", justify="right")
    for heading, name in (("precision", "precision"), ("recall", "recall"), ("F1", "f1")):
        table.add_column(heading, footer=f"{macro[name]:.4f}", justify="right")
    for row in shown:
        table.add_row(
            printable(row["class"]),
            f"{row['images']:,}",
            *(f"{row[name]:.4f}" for name in ("precision", "recall", "f1")),
        )
    return table


def _confused_table(pairs: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="most confused", title_justify="left")
    table.add_column("label → prediction")
    table.add_column("images", justify="right")
    table.add_column("of the label's", justify="right")
    for pair in pairs:
        table.add_row(
            printable(f"{pair['label']} → {pair['prediction']}"),
            f"{pair['images']:,}",
            f"{100 * pair['fraction']:.1f} %",
        )
    return table
