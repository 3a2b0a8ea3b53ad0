"""`python evaluate.py 'compare=[RUN,RUN]'`: what differs between runs, in their settings and in what they predict."""

import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnnlab.components import Trust
from cnnlab.config.programs import command, trusting
from cnnlab.config.run_config import RunConfig, leaves
from cnnlab.config.saved_config import trusted_names
from cnnlab.data.source import Images
from cnnlab.engine.evaluation import VIEWS, collect
from cnnlab.engine.execution import allow_tf32, make_deterministic
from cnnlab.inference.saved_run import SavedRun
from cnnlab.losses import probabilities
from cnnlab.run.files import ENVIRONMENT, SUMMARY
from cnnlab.run.loaders import held_out_loader
from cnnlab.run.process_state import process_state_kept
from cnnlab.run.report import METRICS, History, results
from cnnlab.runtime.errors import ConfigError, TrainingError, first_line
from cnnlab.runtime.files import replace_file
from cnnlab.runtime.terminal import print_wrapped, printable, waiting
from cnnlab.visualization.charts import COLOURS, Line, line_chart
from cnnlab.visualization.page import charts, note, page, table, thumbnail, value_text

PAGE = "compare.html"
MOST_RUNS = len(COLOURS)
LETTERS = "ABCDEFG"
MOST_ROWS = 200  # of a table
MOST_GROUPS, MOST_IMAGES = 6, 12  # of disagreement, and of each group
LARGEST_SIDE = 256  # pixels of an image in the page
MOST_LETTERS = 40  # of a class's or a file's name below an image
NOT_COMPARED = ("run_dir", "resume", "trust", "name")
NOT_OF_INTEREST = ("data_digest", "test_digest")


@dataclass(frozen=True)
class Compared:
    """A run under its letter."""

    letter: str
    run: SavedRun
    summary: Mapping[str, Any]
    environment: Mapping[str, Any]
    values: Mapping[str, Any]  # of its config, by dotted key
    colour: str

    @property
    def path(self) -> Path:
        return self.run.directory.path


@dataclass(frozen=True)
class Predicted:
    """What each of R runs predicts for N images: classes (R, N) and their probabilities."""

    images: Images
    paths: Sequence[str] | None
    class_RN: Tensor
    probability_RN: Tensor

    @property
    def correct(self) -> Tensor:
        """(R, N), bool."""
        return self.class_RN == self.images.y_N

    @property
    def differs(self) -> Tensor:
        """(N,), true where not all runs predict the same."""
        return (self.class_RN != self.class_RN[0]).any(0)


def compare_runs(request: Mapping[str, Any]) -> None:
    """Writes `compare.html` into the folder that the runs have in common. Raises `ConfigError`."""
    paths = _paths(request["compare"])
    compared = [_open(path, number, request) for number, path in enumerate(paths)]
    _check_classes(compared)
    with process_state_kept():
        predicted = _predict(compared, str(request["split"]), str(request["tta"]))
    sections = [
        ("Results", _results(compared)),
        ("Settings that differ", _differences([one.values for one in compared], compared)),
        ("Curves", _curves(compared)),
        (f"Where they disagree on the {request['split']} split", _disagreement(compared, predicted)),
        ("Environments", _differences([one.environment for one in compared], compared)),
    ]
    names = table(("", "run"), [(one.letter, str(one.path)) for one in compared], 2)
    title = f"{len(compared)} runs of {compared[0].run.plan.name} compared"
    target = Path(os.path.commonpath([path.absolute().parent for path in paths])) / PAGE
    try:
        replace_file(target, page(title, names, sections).encode(errors="backslashreplace"))
    except OSError as error:
        raise TrainingError(f"{target} cannot be written: {first_line(error)}") from error
    for one in compared:
        print_wrapped(f"{one.letter}: {_line(one)}  {printable(one.path)}", one.path)
    if isinstance(predicted, Predicted):
        print_wrapped(_counted(compared, predicted))
    print_wrapped(f"written to {target}", target)


def _paths(given_runs: Any) -> list[Path]:
    """Raises `ConfigError` for anything but a list of two or more different directories."""
    if not isinstance(given_runs, list) or not 2 <= len(given_runs) <= MOST_RUNS:
        raise ConfigError(
            f"compare: expected a list of 2 to {MOST_RUNS} runs, as in 'compare=[runs/digits/A,runs/digits/B]', "
            f"received {given_runs!r}"
        )
    paths = [Path(str(one)) for one in given_runs]
    for first, second in combinations(paths, 2):
        if first.resolve() == second.resolve():
            raise ConfigError(f"compare: expected different runs, received {printable(second)} twice")
    return paths


def _open(path: Path, number: int, request: Mapping[str, Any]) -> Compared:
    listed = ",".join(map(str, request["compare"]))
    trust = Trust(False, trusted_names(request["trust"]), trusting(f"{command('evaluate')} 'compare=[{listed}]'"))
    try:
        run = SavedRun.open(path, str(request["checkpoint"]), request["device"], trust, request["data"])
    except ConfigError as error:
        raise ConfigError(f"compare: {str(error).removeprefix('run: ')}") from error
    values = {key: value for key, value in leaves(RunConfig.read(path).values) if key not in NOT_COMPARED}
    environment = {k: v for k, v in run.directory.read_json(ENVIRONMENT).items() if k not in NOT_OF_INTEREST}
    return Compared(LETTERS[number], run, run.directory.read_json(SUMMARY), environment, values, COLOURS[number])


def _check_classes(compared: Sequence[Compared]) -> None:
    first, *others = compared
    for other in others:
        mine, its = (one.run.plan.spec.class_names for one in (first, other))
        if mine != its:
            raise ConfigError(
                f"compare: expected runs of the same data; {printable(first.path)} has {_few(mine)}, "
                f"{printable(other.path)} has {_few(its)}"
            )


def _few(class_names: Sequence[str]) -> str:
    shown = ", ".join(map(printable, class_names[:3]))
    return f"{len(class_names):,} classes ({shown}{', …' if len(class_names) > 3 else ''})"


def _results(compared: Sequence[Compared]) -> str:
    columns = [dict(results(one.summary)) for one in compared]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(column.get(name) or "–" for column in columns)] for name in names]
    statuses = [str(one.summary.get("status", "–")) for one in compared]
    return table(("", *(one.letter for one in compared)), [["status", *statuses], *rows])


def _differences(values: Sequence[Mapping[str, Any]], compared: Sequence[Compared]) -> str:
    """A row for each key that has not the same value in all of them."""
    keys = list(dict.fromkeys(key for one in values for key in one))
    texts = {key: [value_text(one[key]) if key in one else "–" for one in values] for key in keys}
    rows = [[key, *cells] for key, cells in texts.items() if len(set(cells)) > 1]
    if not rows:
        return note("None.")
    more = note(f"and {len(rows) - MOST_ROWS:,} more") if len(rows) > MOST_ROWS else ""
    return table(("", *(one.letter for one in compared)), rows[:MOST_ROWS], len(compared) + 1) + more


def _curves(compared: Sequence[Compared]) -> str:
    lines: dict[str, list[Line]] = {"loss": [], "accuracy": [], "lr": []}
    for one in compared:
        history, steps = History.read(one.path / METRICS), one.run.plan.steps_per_epoch
        for name in ("loss", "accuracy"):
            train, val = (history.points(split, name, steps) for split in ("train", "val"))
            lines[name] += [Line(f"{one.letter} training", train, one.colour, dashed=True)] if train else []
            lines[name] += [Line(f"{one.letter} validation", val, one.colour)] if val else []
        lines["lr"].append(Line(one.letter, history.points("train", "lr", steps), one.colour))
    drawn = [
        line_chart("Loss", "epoch", lines["loss"]),
        line_chart("Accuracy", "epoch", lines["accuracy"], top=1.0),
        line_chart("Learning rate", "epoch", lines["lr"], linear=True),
    ]
    return charts(drawn) + note("Solid lines are validation, dashed ones training.")


def _predict(compared: Sequence[Compared], split: str, tta: str) -> Predicted | str:
    """All runs' predictions for one split, or a sentence on why there are none."""
    try:
        with waiting("reading the data"):
            read = [one.run.read(split) for one in compared]
    except ConfigError as error:
        return f"Not shown: {error}"
    listed = [_listed(one.run, split) for one in compared]
    if not all(_same(read[0], listed[0], images, paths) for images, paths in zip(read, listed, strict=True)):
        return f"Not shown: the images or labels of their {split} splits are not the same."
    with waiting("predicting"):
        outputs = [_outputs(one.run, images, tta) for one, images in zip(compared, read, strict=True)]
    best = [probability_NK.max(1) for probability_NK in outputs]
    return Predicted(
        read[0], listed[0], torch.stack([one.indices for one in best]), torch.stack([one.values for one in best])
    )


def _listed(run: SavedRun, split: str) -> list[str] | None:
    carved = split == "val" and "val" not in run.plan.spec.counts
    return run.plan.source.paths("train" if carved else split)


def _same(mine: Images, my_paths: Sequence[str] | None, its: Images, its_paths: Sequence[str] | None) -> bool:
    """The same pixels, or the same files, which another run may have read at another size."""
    if not (torch.equal(mine.y_N, its.y_N) and torch.equal(mine.index_N, its.index_N)):
        return False
    return my_paths == its_paths if my_paths is not None else mine.digest() == its.digest()


def _outputs(run: SavedRun, images: Images, tta: str) -> Tensor:
    """(N, K) probabilities of the best checkpoint."""
    plan = run.plan
    make_deterministic(plan.deterministic)
    allow_tf32(plan.execution.precision == "tf32")
    with closing(held_out_loader(plan, images, run.normalization)) as loader:
        output_NK = collect(run.network(), loader, plan.execution, VIEWS[tta]).output_NK
    return probabilities(plan.loss.cpu(), output_NK)


def _disagreement(compared: Sequence[Compared], predicted: Predicted | str) -> str:
    if isinstance(predicted, str):
        return note(predicted)
    parts = [note(_counted(compared, predicted))]
    correct_RN = predicted.correct
    differ_N = predicted.differs
    pattern_N = (correct_RN.long() << torch.arange(len(compared))[:, None]).sum(0)
    groups = sorted(
        ((int((differ_N & (pattern_N == one)).sum()), int(one)) for one in pattern_N[differ_N].unique()), reverse=True
    )
    for count, pattern in groups[:MOST_GROUPS]:
        parts.append(f"<h3>{_heading(compared, pattern, count)}</h3>")
        rows = (differ_N & (pattern_N == pattern)).nonzero()[:, 0]
        # the surest first: there the runs contradict each other most
        rows = rows[predicted.probability_RN[:, rows].sum(0).argsort(descending=True, stable=True)][:MOST_IMAGES]
        shown = "".join(_thumbnails(compared, predicted, rows))
        parts.append(f'<div class="pixels">{shown}</div>')
        if count > MOST_IMAGES:
            parts.append(note(f"The {MOST_IMAGES} of which they are surest."))
    return "\n".join(parts)


def _heading(compared: Sequence[Compared], pattern: int, count: int) -> str:
    right = [one.letter for number, one in enumerate(compared) if pattern >> number & 1]
    wrong = [one.letter for one in compared if one.letter not in right]
    words = [f"{' and '.join(right)} correct"] if right else []
    words += [f"{' and '.join(wrong)} wrong"] if wrong else []
    return f"{', '.join(words)}: {count:,} image{'s' if count > 1 else ''}"


def _thumbnails(compared: Sequence[Compared], predicted: Predicted, rows: Tensor) -> Iterator[str]:
    names = compared[0].run.plan.spec.class_names
    chosen = predicted.images.select(rows)
    for place, x_CHW in enumerate(chosen.x_NCHW):
        row, index = int(rows[place]), int(chosen.index_N[place])
        where = f"image {index}" if predicted.paths is None else predicted.paths[index]
        lines = [_end(where), f"label {_end(names[int(chosen.y_N[place])])}"]
        for number, one in enumerate(compared):
            label, probability = int(predicted.class_RN[number, row]), float(predicted.probability_RN[number, row])
            lines.append(f"{one.letter}: {_end(names[label])} ({probability:.2f})")
        yield thumbnail(_png(x_CHW), lines)


def _end(name: str) -> str:
    return name if len(name) <= MOST_LETTERS else f"…{name[1 - MOST_LETTERS :]}"


def _png(x_CHW: Tensor) -> bytes:
    from PIL import Image

    pixels_HWC = x_CHW.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels_HWC[:, :, 0] if pixels_HWC.shape[2] in (1, 2) else pixels_HWC)
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _counted(compared: Sequence[Compared], predicted: Predicted) -> str:
    """How often they disagree; of two runs, whether the difference may be chance."""
    differ = int(predicted.differs.sum())
    sentence = f"They disagree on {differ:,} of {len(predicted.images):,} images."
    if len(compared) == 2:
        first_N, second_N = predicted.correct
        mine, its = int((first_N & ~second_N).sum()), int((second_N & ~first_N).sum())
        sentence += (
            f" A alone is correct on {mine:,}, B alone on {its:,}: by chance alone a difference as large has "
            f"probability {mcnemar(mine, its):.2g} (exact McNemar test)."
        )
    return sentence


def mcnemar(first: int, second: int) -> float:
    """The exact two-sided test of equal accuracy from the images on which one run alone is correct."""
    count, fewer = first + second, min(first, second)
    log_half = count * math.log(0.5)
    tail = sum(
        math.exp(math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) + log_half)
        for k in range(fewer + 1)
    )
    return min(1.0, 2 * tail)


def _line(one: Compared) -> str:
    shown = dict(results(one.summary))
    names = [name for name in shown if "accuracy" in name][:2]
    return ", ".join(f"{name} {shown[name]}" for name in names) or str(one.summary.get("status", "no figures"))
