"""`metrics.jsonl`, and `gradients.jsonl` where updates are watched: one JSON object per line."""

import contextlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from cnnlab.engine.records import Descent, Metrics, Record, Started
from cnnlab.runtime.files import replace_file

NAME = "metrics.jsonl"
WATCHED = "gradients.jsonl"


class JSONLines:
    """Appends `{"step", "epoch", "split", "loss", "accuracy", …}`; a resumed run first cuts what came later.

    A watched update is a line of a file of its own, with the fields of `Descent`.
    """

    def __init__(self) -> None:
        self.files: dict[str, TextIO] = {}

    def log(self, record: Record) -> None:
        if isinstance(record, Started):
            self._open(record)
        elif isinstance(record, Metrics):
            line: dict[str, Any] = {"step": record.step, "epoch": record.epoch, "split": record.split}
            line |= {"final": True} if record.final else {}
            self._write(NAME, line | record.values)
        elif isinstance(record, Descent):
            self._write(WATCHED, asdict(record))

    def _open(self, record: Started) -> None:
        self.close()
        for name in (NAME, WATCHED):
            path = record.directory / name
            cut(path, record.step)
            if name == NAME or record.watched:
                self.files[name] = path.open("a", encoding="utf-8", newline="\n")

    def _write(self, name: str, line: dict[str, Any]) -> None:
        if name in self.files:
            self.files[name].write(json.dumps(_strict(line), allow_nan=False) + "\n")
            self.files[name].flush()  # out of this process: a kill loses no line

    def close(self) -> None:
        for file in self.files.values():
            file.close()


def _strict(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(value, dict):
        return {name: _strict(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_strict(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cut(path: Path, step: int) -> None:
    """Leaves the lines up to `step`; final ones and a last one that a kill cut short go too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):  # a line that a kill cut short is dropped
            entry = json.loads(line)
            if entry["step"] > step or entry.get("final"):
                continue
            kept.append(line + "\n")
    replace_file(path, "".join(kept).encode())
