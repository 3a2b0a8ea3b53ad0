"""What a run measured, from its `metrics.jsonl`, as columns."""

import json
import math
from pathlib import Path
from typing import Any

from cnnlab.run.files import RunDirectory
from cnnlab.runtime.checks import one_of
from cnnlab.runtime.errors import ConfigError, first_line
from cnnlab.runtime.files import read_regular

METRICS = "metrics.jsonl"
LARGEST = 1 << 30  # bytes
SPLITS = ("train", "val", "test")
KEYS = ("step", "epoch", "split")
SHARED = ("loss", "accuracy")  # measured on several splits; what training alone measures needs no split in its name


def read_history(run: Path, split: str | None) -> dict[str, list[Any]]:
    """Columns of one length, a row a step: `step`, `epoch`, and the measurements of `split`, or of all splits.

    Raises `ConfigError` for what is no run, and for a file that no run wrote.
    """
    one_of("split", split, (None, *SPLITS))
    directory = RunDirectory.open(run, "run")
    rows: dict[int, dict[str, Any]] = {}
    for line in _lines(directory.path / METRICS):
        if split is None or line["split"] == split:
            row = rows.setdefault(line["step"], {})
            row |= {"step": line["step"], "epoch": line["epoch"], **_measured(line)}
    names = dict.fromkeys(("step", "epoch", *(name for row in rows.values() for name in row)))
    return {name: [rows[step].get(name, math.nan) for step in sorted(rows)] for name in names}


def _measured(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line by the tags of TensorBoard, such as `loss/val` and `lr`; null was no finite number."""
    split = line["split"]
    return {
        f"{name}/{split}" if name in SHARED or split != "train" else name: math.nan if value is None else value
        for name, value in line.items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        if name not in KEYS
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects in the file; a last line that a kill cut short is none."""
    try:
        text = read_regular(path, LARGEST).decode()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected lines of JSON as a run writes them, but {first_line(error)}") from error
    found = []
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            content = json.loads(line)
            found.append(
                {**content, "step": int(content["step"]), "epoch": content["epoch"], "split": content["split"]}
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(f"{path}: line {number}: expected a measurement as a run writes it") from error
    return found
