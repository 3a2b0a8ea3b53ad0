"""TensorBoard: curves, hyper-parameters and the layer table in one event file."""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cnnlab.engine.records import Descent, Finished, Metrics, Record, Snapshot, Started
from cnnlab.visualization.tiles import filters_image

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LAYOUT = {
    "curves": {
        "loss": ["Multiline", ["loss/train", "loss/val"]],
        "accuracy": ["Multiline", ["accuracy/train", "accuracy/val"]],
    }
}
# where updates are watched; a tag is a regular expression
WATCHED = {
    "gradient descent": {
        "ΔC of the batch: predicted by ∇C·Δv, and actual": [
            "Multiline",
            ["descent/predicted_change", "descent/loss_change"],
        ],
        "more correct predictions after the update": ["Multiline", ["descent/correct_change"]],
        "‖∇C‖ by layer": ["Multiline", ["gradients/.*"]],
        "‖Δv‖ / ‖v‖ by layer": ["Multiline", ["updates/.*"]],
        "fractions of activations": ["Multiline", ["activations/.*"]],
    }
}
SHARED = ("loss", "accuracy")  # measured on several splits, which are part of the tag
HISTOGRAM = 10_000  # about as many values of a tensor, evenly spaced: more would draw the same
BINS = 30  # as TensorBoard draws


class TensorBoard:
    """Writes `loss/train`, `loss/val`, `lr`, … with train and validation overlaid under Custom Scalars."""

    def __init__(self) -> None:
        self.writer: SummaryWriter | None = None
        self.step = 0
        self._excepthook = threading.excepthook

    def log(self, record: Record) -> None:
        if isinstance(record, Started):
            self._start(record)
        elif isinstance(record, Metrics) and self.writer:
            self.step = record.step
            for name, value in record.values.items():
                if name != "seconds":  # what training alone measures, such as lr, needs no split in its tag
                    tag = f"{name}/{record.split}" if name in SHARED or record.split != "train" else name
                    self.writer.add_scalar(tag, value, record.step)
            self.writer.flush()  # out of this process: a kill loses no point
        elif isinstance(record, Descent) and self.writer:
            for tag, value in _scalars(record).items():
                self.writer.add_scalar(tag, value, record.step)
            self.writer.add_text("contributions", _contributions(record), record.step)
            self.writer.flush()
        elif isinstance(record, Snapshot) and self.writer:
            _draw(self.writer, record)
            self.writer.flush()
        elif isinstance(record, Finished) and self.writer:
            self._finish(record)

    def _start(self, record: Started) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        # always a purge_step: without one on the first run, readers show the points of a resumed run twice
        purge_step = record.step + 1 if record.step else 0
        self.close()
        _wait_for_a_later_name(record.directory)
        self.writer = SummaryWriter(str(record.directory), purge_step=purge_step)
        threading.excepthook = self._report
        if record.step:
            return
        self.writer.add_custom_scalars(LAYOUT | WATCHED if record.watched else LAYOUT)
        self.writer.add_text("model", f"```\n{record.model_table}\n```", 0)
        # without a description of the columns, which would be this run's, HParams shows those of all runs together,
        # what differs first
        _, start, _ = hparams({name: _plain(value) for name, value in record.hyperparameters.items()}, {})
        self._write(start)
        self.writer.flush()

    def _finish(self, record: Finished) -> None:
        from torch.utils.tensorboard.summary import hparams

        assert self.writer
        for tag, value in record.metrics.items():  # HParams shows a tag's last value, which need not be the best
            self.writer.add_scalar(f"best/{tag}", value, self.step)
        _, _, end = hparams({}, {})
        self._write(end)

    def _write(self, summary: Any) -> None:
        """Into the run's own event file: `add_hparams` would make a second run beside it."""
        assert self.writer
        assert self.writer.file_writer is not None
        self.writer.file_writer.add_summary(summary)

    def close(self) -> None:
        try:
            if self.writer:
                self.writer.close()
        finally:
            threading.excepthook = self._excepthook

    def _report(self, arguments: threading.ExceptHookArgs) -> None:
        """Leaves out the traceback of the writer's thread: what it met is raised again at the next record."""
        if type(arguments.thread).__name__ != "_AsyncWriterThread":
            self._excepthook(arguments)


def _scalars(record: Descent) -> dict[str, float]:
    """A watched update's numbers by their tags, of which the first word is the group."""
    names = ("loss", "loss_change", "predicted_change", "correct", "correct_change")
    fractions = {"zero": record.zero, "dead": record.dead, "saturated": record.saturated}
    return {
        **{f"descent/{name}": value for name, value in vars(record).items() if name in names},
        **{f"gradients/{layer}": norm for layer, norm in record.gradient_norm.items()},
        **{f"updates/{layer}": ratio for layer, ratio in record.update_ratio.items()},
        **{f"activations/{layer}/{name}": x for name, of_layer in fractions.items() for layer, x in of_layer.items()},
    }


def _draw(writer: "SummaryWriter", record: Snapshot) -> None:
    """The first convolution's filters; histograms of each layer's weights, their gradients and the layer's output."""
    for group in ("weights", "gradients", "activations"):
        for name, values in getattr(record, group).items():
            shown = values.flatten()[:: 1 + values.numel() // HISTOGRAM].float().cpu()
            if values.dim() > 1 and shown.isfinite().all():  # a bias has too few values
                writer.add_histogram(f"{group}/{name}", shown.numpy(), record.step, bins=BINS)
    kernels = next(((name, values) for name, values in record.weights.items() if values.dim() == 4), None)
    if kernels:
        name, weight_OIHW = kernels
        writer.add_image(f"filters/{name}", filters_image(weight_OIHW), record.step, dataformats="HWC")


def _contributions(record: Descent) -> str:
    rows = [f"| {c.name} | {c.weight:.4g} | {c.gradient:.4g} | {c.value:.4g} |" for c in record.contributions]
    return "\n".join(["| weight | w | ∂C/∂w | w·∂C/∂w |", "|---|---|---|---|", *rows])


def _wait_for_a_later_name(directory: Path) -> None:
    """Readers take event files by name, and names of one second go by a counter as text: `.10` before `.9`."""
    while list(directory.glob(f"events.out.tfevents.{int(time.time())}.*")):
        time.sleep(0.05)


def write_images(directory: Path, images: Mapping[str, np.ndarray], step: int) -> None:
    """Adds uint8 images (H, W, 3), by their tags, to a run's curves, in one event file beside the others."""
    from torch.utils.tensorboard import SummaryWriter

    _wait_for_a_later_name(directory)
    writer = SummaryWriter(str(directory))
    for tag, image_HWC in images.items():
        writer.add_image(tag, image_HWC, step, dataformats="HWC")
    writer.close()


def _plain(value: Any) -> Any:
    """TensorBoard takes numbers and strings; it would show a bool as a number."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
