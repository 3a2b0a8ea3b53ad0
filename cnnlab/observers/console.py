"""The terminal: a progress bar with the latest figures, or plain lines where none can be drawn."""

import shutil
import time

import rich.console
from rich.console import RenderableType
from rich.constrain import Constrain
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from cnnlab.engine.records import Finished, Metrics, Notice, Record, Started
from cnnlab.runtime.checks import number
from cnnlab.runtime.terminal import is_live, stop_waiting, wrapped

SHOWN_FIRST = ("loss", "accuracy")
NARROW = 75  # columns; below, the bar would have no place beside the images per second


class _Bar(Progress):
    """Leaves room for the `^C` that a terminal echoes: on a full line it would begin another, below the bar."""

    def get_renderable(self) -> RenderableType:
        return Constrain(super().get_renderable(), shutil.get_terminal_size().columns - len("^C") - 1)


class Console:
    """Shows loss, accuracy, images/s and the time left; one line for each measurement of a held-out split.

    Without a terminal that redraws its lines, training figures come as a line at most every `interval` seconds.
    """

    def __init__(self, interval: float = 10.0) -> None:
        self.interval = number("interval", interval, 0)
        self.console = rich.console.Console(highlight=False, soft_wrap=True)
        self.progress: Progress | None = None
        self.epochs: int | None = None
        self.total_steps: int | None = None
        self.printed = time.monotonic()

    def log(self, record: Record) -> None:
        if isinstance(record, Started):
            self._start(record)
        elif isinstance(record, Metrics):
            self._measure(record)
        elif isinstance(record, Notice):
            self.console.print(self._wrapped(record.text), style="yellow", markup=False)
        elif isinstance(record, Finished):
            self.close()

    def _start(self, record: Started) -> None:
        self.close()
        self.epochs, self.total_steps = record.epochs, record.total_steps
        resumed = f", resuming after step {record.step}" if record.step else ""
        self.console.print(self._wrapped(f"run: {record.directory}{resumed}", record.directory), markup=False)
        if is_live(self.console.file):
            stop_waiting()
            self.progress = _Bar(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(compact=True),
                console=self.console,
                expand=True,
            )
            self.task = self.progress.add_task(
                self._epoch(1), total=record.total_steps, completed=record.step, figures="starting"
            )
            self.progress.start()

    def _measure(self, record: Metrics) -> None:
        if record.split != "train":
            self._line(record)
        elif self.progress:
            values = record.values
            rate = f"  {values['images_per_second']:,.0f} images/s" if self.console.width >= NARROW else ""
            self.progress.update(
                self.task,
                completed=record.step,
                description=self._epoch(record.epoch),
                figures=f"loss {values['loss']:.4f}  accuracy {values['accuracy']:.4f}{rate}",
            )
        elif time.monotonic() - self.printed >= self.interval:
            self._line(record)

    def _line(self, record: Metrics) -> None:
        step = _of(record.step, self.total_steps)
        rate = record.values.get("images_per_second")
        more = [] if record.split == "train" else [n for n in record.values if n not in SHOWN_FIRST and "." not in n]
        line = (
            f"{self._epoch(record.epoch)}  step {step}  {record.split:<5}  "
            f"loss {record.values['loss']:.4f}  accuracy {record.values['accuracy']:.4f}"
            + "".join(f"  {name} {record.values[name]:.4f}" for name in more)
            + (f"  {rate:,.0f} images/s" if rate else "")
        )
        self.console.print(self._wrapped(line))
        self.printed = time.monotonic()

    def _wrapped(self, text: str, *unbroken: object) -> str:
        return wrapped(text, self.console.file, unbroken)

    def _epoch(self, epoch: int) -> str:
        return f"epoch {_of(epoch, self.epochs)}"

    def close(self) -> None:
        if self.progress:
            self.progress.stop()
            self.progress = None


def _of(number: int, total: int | None) -> str:
    """Such as ` 39/200`, as wide as any number up to the total."""
    return f"{number:>{len(str(total))}}/{total}" if total else str(number)
