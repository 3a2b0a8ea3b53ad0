"""`python evaluate.py run=RUN export=[onnx]`: the network in files for other programs, each read back and checked."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor

from cnnlab.data.source import Images
from cnnlab.inference.exported import (
    FILES,
    ExportedModel,
    Exporter,
    Forward,
    check_opset,
    check_packages,
    portable,
)
from cnnlab.inference.model_card import COLUMNS, Check, Written, model_card
from cnnlab.inference.predictor import Predictor
from cnnlab.inference.saved_run import SavedRun
from cnnlab.losses import probabilities
from cnnlab.run.files import EXPORTS
from cnnlab.runtime.checks import one_of
from cnnlab.runtime.errors import ConfigError, TrainingError, first_line, listing
from cnnlab.runtime.terminal import print_table, print_wrapped, print_written, waiting

CHECKED = 256  # images on which a file is compared with the run
CALIBRATION = 512  # images that the ranges of int8 activations are measured on
BATCH = 32
MOST_DIFFERENCE = 1e-4
REPEATS = {1: 20, BATCH: 5}  # timed passes by batch size
CARD = "README.md"


@dataclass(frozen=True)
class Export:
    """What a command requests: formats, and the opset of ONNX files."""

    formats: list[str]
    opset: int | None

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> "Export | None":
        """From the keys `export` and `opset`; None where nothing is exported. Raises `ConfigError`."""
        given, opset = request["export"], request["opset"]
        formats = [given] if isinstance(given, str) else given or []
        if not isinstance(formats, list):
            raise ConfigError(f"export: expected a list of {listing(FILES)}, received {given!r}")
        for name in formats:
            one_of("export", name, tuple(FILES))
        formats = list(dict.fromkeys(formats))
        onnx = [name for name in formats if name.startswith("onnx")]
        if opset is not None and not onnx:
            raise ConfigError(f"opset: it is that of ONNX files: expected export=[onnx] beside it, received {opset!r}")
        for key, unset in (("images", None), ("layers", []), ("tta", "none")):
            if formats and request[key] != unset:
                raise ConfigError(f"export: expected it without {key}, received {key}={request[key]}")
        check_packages(formats)
        if onnx:
            check_opset(opset)
        return cls(formats, opset) if formats else None


@dataclass(frozen=True)
class Data:
    """The run's images: of a split, and those that calibrate int8; where they are not here, the reason."""

    split: str
    tested: Images | None
    calibration: Images | None
    missing: str

    @classmethod
    def read(cls, run: SavedRun) -> "Data":
        """Raises `ConfigError` where there are images, and they are not those of the run."""
        plan = run.plan
        held_out = "val" if plan.data.has_validation(plan.spec) else "train"
        split = "test" if "test" in plan.spec.counts else held_out
        try:
            plan.source.describe()
            plan.source.check()
        except ConfigError as error:
            return cls(split, None, None, first_line(error))
        return cls(split, run.read(split), run.read(held_out), "")

    def compared(self, shape: tuple[int, ...]) -> Tensor:
        """The images that a file is compared on, (N, C, H, W) uint8; random ones where there are none."""
        if self.tested is None:
            return torch.randint(256, (CHECKED, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return spread(self.tested, CHECKED)


def spread(images: Images, count: int) -> Tensor:
    """So many of the images, from the first to the last: they may lie in the order of their classes."""
    return images.select(torch.linspace(0, len(images) - 1, min(count, len(images))).long()).x_NCHW


def export_run(run: SavedRun, export: Export) -> None:
    """Writes `exports/step-…` in the run's directory, and prints a table. Raises `ConfigError` or `TrainingError`."""
    name = f"{EXPORTS}/{run.checkpoint.folder.name}"
    final = run.directory.path / name
    if final.exists():
        raise ConfigError(f"export: {final} exists: expected a new folder; remove it, or export another checkpoint")
    with waiting("reading the data"):
        data = Data.read(run)
    if "onnx_int8" in export.formats and data.missing:
        raise ConfigError(f"export: onnx_int8 is calibrated on the run's images, which are not here: {data.missing}")
    with waiting("exporting"), torch.no_grad(), run.directory.new_folder(name) as folder:
        check, written = _write_all(run, export, data, folder)
        (folder / CARD).write_text(model_card(run, check, written), encoding="utf-8", errors="backslashreplace")
    print_wrapped(check.sentence)
    print_table(_table(written), markup=False)
    if check.int8:
        print_wrapped(check.int8)
    print_written(run.directory.path, [final / file for file in (*(one.file for one in written), CARD)])


def _write_all(run: SavedRun, export: Export, data: Data, folder: Path) -> tuple[Check, list[Written]]:
    predictor = portable(Predictor.of(run))
    x_NCHW = data.compared(run.plan.spec.input_shape)
    logits_NK = torch.cat([predictor(batch_NCHW) for batch_NCHW in x_NCHW.split(BATCH)])
    expected = logits_NK, probabilities(predictor.loss, logits_NK)
    model = ExportedModel.of(predictor, logits_NK)
    calibration_NCHW = spread(data.calibration, CALIBRATION) if data.calibration else None
    exporter = Exporter(run, model, export.opset, calibration_NCHW)
    forwards: dict[str, Forward] = {}
    written = []
    for name in export.formats:
        forwards[name] = exporter.write(name, folder / FILES[name])
        written.append(_checked(name, folder / FILES[name], forwards[name], x_NCHW, expected))
    int8 = None
    if data.tested and "onnx_int8" in forwards:
        int8 = _compare_accuracy(forwards["onnx_int8"], model, data.tested, data.split)
    source = f"images of the {data.split} split" if data.tested else f"random images, for want of data: {data.missing}"
    return Check(f"compared with the run on {len(x_NCHW):,} {source}", int8), written


def _checked(name: str, path: Path, forward: Forward, x_NCHW: Tensor, expected: tuple[Tensor, Tensor]) -> Written:
    """Raises `TrainingError` where a file, other than one of int8, computes something else than the run."""
    difference = largest_difference(forward, x_NCHW, expected)
    if name != "onnx_int8" and not difference <= MOST_DIFFERENCE:  # nor where it is nan
        raise TrainingError(
            f"export: {name} differs from the run by {difference:.1e}: expected at most {MOST_DIFFERENCE:.0e}; nothing "
            f"was written"
        )
    milliseconds = {count: _milliseconds(forward, x_NCHW[:1].expand(count, -1, -1, -1)) for count in REPEATS}
    return Written(name, path.name, path.stat().st_size, difference, milliseconds)


def largest_difference(forward: Forward, x_NCHW: Tensor, expected: tuple[Tensor, Tensor]) -> float:
    """That of logits or probabilities; of logits above 1, relative to the largest of them."""
    outputs = [forward(batch_NCHW) for batch_NCHW in x_NCHW.split(BATCH)]
    logits_NK, probability_NK = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    scale = max(1.0, float(expected[0].abs().max()))
    differences = (logits_NK - expected[0]).abs().max() / scale, (probability_NK - expected[1]).abs().max()
    return float(torch.stack(differences).max())


def _milliseconds(forward: Forward, images: Tensor) -> float:
    """The median time per image, after one pass that is not timed."""
    images = images.contiguous()
    forward(images)
    seconds = []
    for _ in range(REPEATS[len(images)]):
        begun = time.perf_counter()
        forward(images)
        seconds.append(time.perf_counter() - begun)
    return 1000 * median(seconds) / len(images)


def _compare_accuracy(int8: Forward, float32: Forward, images: Images, split: str) -> str:
    after, before = accuracy(int8, images), accuracy(float32, images)
    return (
        f"onnx_int8: accuracy {after:.4f} on the {split} split, {before:.4f} in float32 "
        f"({100 * (after - before):+.2f} points)"
    )


def accuracy(forward: Forward, images: Images) -> float:
    """The fraction of the images whose largest logit is their label's."""
    correct = 0
    for rows in torch.arange(len(images)).split(BATCH):
        batch = images.select(rows)
        correct += int((forward(batch.x_NCHW)[0].argmax(1) == batch.y_N).sum())
    return correct / len(images)


def _table(written: list[Written]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in COLUMNS:
        table.add_column(heading, justify="left" if heading in COLUMNS[:2] else "right")
    for one in written:
        table.add_row(*one.cells())
    return table
