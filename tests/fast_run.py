"""A run of six steps, which takes about a second."""

import json
from pathlib import Path
from typing import Any

from commands import Answer, run

from cnnlab.cli import train

FAST = "experiment=debug/fast"


def train_fast(*overrides: str) -> Answer:
    return run(train, FAST, *overrides)


def read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content
