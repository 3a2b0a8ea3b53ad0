"""`metrics.jsonl`: one JSON object per line."""

import contextlib
import json
from pathlib import Path
from typing import Any, TextIO

from cnnlab.engine.records import Metrics, Record, Started

NAME = "metrics.jsonl"


class JSONLines:
    """Appends `{"step", "epoch", "split", "loss", "accuracy", …}`; a resumed run first cuts what came later."""

    def __init__(self) -> None:
        self.file: TextIO | None = None

    def log(self, record: Record) -> None:
        if isinstance(record, Started):
            path = record.directory / NAME
            cut(path, record.step)
            self.file = path.open("a")
        elif isinstance(record, Metrics) and self.file:
            line: dict[str, Any] = {"step": record.step, "epoch": record.epoch, "split": record.split}
            line |= {"final": True} if record.final else {}
            self.file.write(json.dumps(line | record.values) + "\n")
            self.file.flush()  # out of this process: a kill loses no line

    def close(self) -> None:
        if self.file:
            self.file.close()


def cut(path: Path, step: int) -> None:
    """Leaves the lines up to `step`; final ones and a last one that a kill cut short go too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):  # a line that a kill cut short goes
            entry = json.loads(line)
            if entry["step"] > step or entry.get("final"):
                continue
            kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)
