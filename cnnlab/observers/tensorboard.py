"""TensorBoard: curves, hyper-parameters and the layer table in one event file."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from cnnlab.engine.records import Descent, Examined, Finished, Metrics, Record, Snapshot, Started, TrainingImages
from cnnlab.runtime.terminal import printable
from cnnlab.visualization.mosaics import filters_mosaic, maps_mosaic, mosaic, pixels_of

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
# what stands under each tag, for who reads a run without the documentation
TAGS = {
    "loss/train, accuracy/train": "means over the training steps since the point before, in training mode (dropout, "
    "augmentation)",
    "loss/val, accuracy/val": "the validation split in evaluation mode, with averaged weights where there are any",
    "loss/test, accuracy/test": "the test split at the end, with the best checkpoint",
    "best/…": "what the best checkpoint reached",
    "lr": "the learning rate of the optimizer's first group",
    "gradient_norm": "the L2 norm of the gradient before it is clipped",
    "images_per_second": "training speed, validation left out",
    "images/training": "the first batch as the network saw it",
    "images/mistakes_val": "the validation images with the largest loss among the wrong ones",
    "filters/…": "the first convolution's kernels on one scale: blue below 0, red above",
    "maps/…": "what each channel of a layer puts out for the first validation image",
    "precision_recall_val/…": "each class against all others, under PR Curves",
    "weights/…, gradients/…": "histograms of each layer's parameters and of the loss's gradient",
    "activations/…": "histograms of each layer's output for some validation images",
    "confusion/…": "of an evaluation: labels in rows, predictions in columns",
}
SHARED = ("loss", "accuracy")  # measured on several splits, which are part of the tag
VALIDATION = "val"  # the folder of the validation split's curves
HISTOGRAM = 10_000  # about as many values of a tensor, evenly spaced: more would draw the same
BINS = 30  # as TensorBoard draws
SPACE = 4_000_000  # bytes of a run's events from which on only the last step is drawn
MOST_MAPS = 8  # layers whose maps are drawn, evenly spaced
MOST_PR_CURVES = 20


class TensorBoard:
    """Writes `loss/train`, `loss/val`, `lr`, … with train and validation overlaid under Custom Scalars."""

    def __init__(self) -> None:
        self.writer: SummaryWriter | None = None
        self.val_writer: SummaryWriter | None = None  # a run of its own for TensorBoard, which gives it another colour
        self.step = 0
        self.started: Started | None = None
        self._excepthook = threading.excepthook

    def log(self, record: Record) -> None:
        if isinstance(record, Started):
            self._start(record)
        elif isinstance(record, Metrics) and self.writer:
            self.step = record.step
            writer = self.val_writer if record.split == "val" and self.val_writer else self.writer
            for name, value in record.values.items():
                if name != "seconds":  # what training alone measures, such as lr, needs no split in its tag
                    tag = f"{name}/{record.split}" if name in SHARED or record.split != "train" else name
                    writer.add_scalar(tag, value, record.step)
            writer.flush()  # out of this process: a kill loses no point
        elif isinstance(record, Descent) and self.writer:
            for tag, value in _scalars(record).items():
                self.writer.add_scalar(tag, value, record.step)
            self.writer.add_text("contributions", _contributions(record), record.step)
            self.writer.flush()
        elif isinstance(record, TrainingImages | Examined | Snapshot) and self.writer and self._has_room(record.step):
            self._draw(record)
            self.writer.flush()
        elif isinstance(record, Finished) and self.writer:
            self._finish(record)

    def _start(self, record: Started) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        # always a purge_step: without one on the first run, readers show the points of a resumed run twice
        purge_step = record.step + 1 if record.step else 0
        self.close()
        self.started = record
        _wait_for_a_later_name(record.directory)
        self.writer = SummaryWriter(str(record.directory), purge_step=purge_step)
        self.val_writer = SummaryWriter(str(record.directory / VALIDATION), purge_step=purge_step)
        threading.excepthook = self._report
        if record.step:
            return
        self.writer.add_custom_scalars(LAYOUT | WATCHED if record.watched else LAYOUT)
        for tag, text in _texts(record).items():
            self.writer.add_text(tag, text, 0)
        self._write_graph(record)
        # without a description of the columns, which would be this run's, HParams shows those of all runs together,
        # what differs first
        _, start, _ = hparams({name: _plain(value) for name, value in record.hyperparameters.items()}, {})
        self._write(start)
        self.writer.flush()

    def _has_room(self, step: int) -> bool:
        """False once images and histograms have filled their part of the space; those of the last step always fit."""
        assert self.started
        files = self.started.directory.glob("events.out.tfevents.*")
        return step == self.started.total_steps or sum(file.stat().st_size for file in files) < SPACE

    def _draw(self, record: TrainingImages | Examined | Snapshot) -> None:
        assert self.writer
        assert self.started
        for tag, image_HWC in _images(record, self.started).items():
            self.writer.add_image(tag, image_HWC, record.step, dataformats="HWC")
        if isinstance(record, Snapshot):
            _histograms(self.writer, record)
        elif isinstance(record, Examined):
            _curves(self.writer, record, self.started.class_names)

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

    def _write_graph(self, record: Started) -> None:
        """The layers under Graphs: `add_graph` would trace the network, by a way of torch's that is deprecated."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.graph_pb2 import GraphDef
        from tensorboard.compat.proto.versions_pb2 import VersionDef

        if not record.layers:
            return
        graph = GraphDef(versions=VersionDef(producer=22))
        for layer in record.layers:
            node = graph.node.add(name=_node(layer.path), op=layer.block or "images", input=map(_node, layer.sources))
            shape = node.attr["_output_shapes"].list.shape.add()
            for size in (-1, *layer.output_shape):  # −1 stands for the batch
                shape.dim.add(size=size)
            node.attr["parameters"].i = layer.parameters
        assert self.writer
        assert self.writer.file_writer is not None
        self.writer.file_writer.add_event(Event(graph_def=graph.SerializeToString()))

    def close(self) -> None:
        try:
            for writer in (self.writer, self.val_writer):
                if writer:
                    writer.close()
        finally:
            threading.excepthook = self._excepthook

    def _report(self, arguments: threading.ExceptHookArgs) -> None:
        """Leaves out the traceback of the writer's thread: what it met is raised again at the next record."""
        if type(arguments.thread).__name__ != "_AsyncWriterThread":
            self._excepthook(arguments)


def _node(path: str) -> str:
    """A name as TensorBoard's graph takes it, in which a slash opens a group."""
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "_./-") else "_" for letter in path)


def _texts(record: Started) -> dict[str, str]:
    """By their tags, in Markdown."""
    fenced = {"1_command": record.command, "3_layers": record.model_table, "4_config": record.config}
    texts = {tag: f"```\n{text.rstrip()}\n```" for tag, text in fenced.items() if text}
    rows = [f"| `{tag}` | {meaning} |" for tag, meaning in TAGS.items()]
    texts["2_what_the_tags_mean"] = "\n".join(["| tag | what it shows |", "|---|---|", *rows])
    return texts


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


def _images(record: TrainingImages | Examined | Snapshot, started: Started) -> dict[str, np.ndarray]:
    """By their tags, uint8 (H, W, 3)."""
    names = started.class_names

    def name(label: int) -> str:
        return names[label] if label < len(names) else str(label)

    def shown(x_CHW: Tensor) -> np.ndarray:
        return pixels_of(x_CHW, started.mean_C, started.sd_C)

    if isinstance(record, TrainingImages):
        labels = [_label(one, name) for one in record.target]
        title = f"the first {len(labels)} training images, as augmented, with their labels"
        return {"images/training": mosaic(title, [shown(x_CHW) for x_CHW in record.x_NCHW], labels)}
    if isinstance(record, Examined):
        if not record.mistakes:
            return {}
        captions = [
            [
                f"no. {one.index}",
                f"is {name(one.label)}",
                f"not {name(one.prediction)}",
                f"{one.probability:.2f} sure",
            ]
            for one in record.mistakes
        ]
        which = f"the {len(captions)} worst mistakes, largest loss first," if len(captions) > 1 else "the only mistake"
        title = f"{which} on {record.images:,} {record.split} images"
        return {
            f"images/mistakes_{record.split}": mosaic(title, [shown(one.x_CHW) for one in record.mistakes], captions)
        }
    drawn = {}
    kernels = next(((name, values) for name, values in record.weights.items() if values.dim() == 4), None)
    if kernels:
        drawn[f"filters/{kernels[0]}"] = filters_mosaic(*kernels)
    maps = {layer: output for layer, output in record.activations.items() if output.dim() == 4 and output.shape[2] > 1}
    if record.x_NCHW is not None:
        every = -(-len(maps) // MOST_MAPS)
        for layer in list(maps)[:: max(1, every)]:
            drawn[f"maps/{layer}"] = maps_mosaic(layer, shown(record.x_NCHW[0]), maps[layer][0])
    return drawn


def _label(target: Tensor, name: Callable[[int], str]) -> list[str]:
    """The class, or of a mixed image its two largest fractions."""
    if target.dim() == 0:
        return [name(int(target))]
    fractions, classes = target.topk(min(2, len(target)))
    return [
        f"{name(label)} {100 * fraction:.0f} %"
        for fraction, label in zip(fractions.tolist(), classes.tolist(), strict=True)
        if fraction > 0
    ]


def _histograms(writer: "SummaryWriter", record: Snapshot) -> None:
    """Of each layer's weights, their gradients and the layer's output."""
    for group in ("weights", "gradients", "activations"):
        for name, values in getattr(record, group).items():
            shown = values.flatten()[:: 1 + values.numel() // HISTOGRAM].float().cpu()
            if values.dim() > 1 and shown.isfinite().all():  # a bias has too few values
                writer.add_histogram(f"{group}/{name}", shown.numpy(), record.step, bins=BINS)


def _curves(writer: "SummaryWriter", record: Examined, class_names: Sequence[str]) -> None:
    """Precision over recall for each class against all others."""
    if record.positives is None or record.negatives is None:
        return
    named = list(zip(class_names, record.positives, record.negatives, strict=False))
    for name, positive_T, negative_T in named[:MOST_PR_CURVES]:
        if not int(positive_T.sum()):
            continue
        # at or above each threshold
        true_T, false_T = (counts_T.flip(0).cumsum(0).flip(0).double() for counts_T in (positive_T, negative_T))
        writer.add_pr_curve_raw(
            f"precision_recall_{record.split}/{printable(name)}",
            true_T,
            false_T,
            false_T[0] - false_T,
            true_T[0] - true_T,
            true_T / (true_T + false_T).clamp(min=1e-9),
            true_T / true_T[0],
            record.step,
            num_thresholds=len(true_T),
        )


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
