"""Checkpoints as somebody else might hand them over: changed, and sealed again."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cnnlab.engine.checkpoint import MANIFEST, STATE, _sealed
from cnnlab.engine.state_file import read_state, write_state

Change = Callable[[dict[str, Any]], object]


def plant_state(folder: Path, change: Change) -> None:
    """Changes the state of a checkpoint; its manifest agrees with it."""
    state = read_state(folder / STATE)
    change(state)
    write_state(folder / STATE, state)

    def update(body: dict[str, Any]) -> None:
        content = (folder / STATE).read_bytes()
        body["files"][STATE] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    plant_manifest(folder, update)


def plant_manifest(folder: Path, change: Change) -> None:
    """Changes a manifest, which agrees with itself."""
    body = json.loads((folder / MANIFEST).read_text())["manifest"]
    change(body)
    (folder / MANIFEST).write_text(_sealed(body))


def setting(path: str, value: Any) -> Change:
    """Sets the value at keys joined by `/`, of dicts and lists; deletes it where the value is `...`."""

    def change(state: Any) -> None:
        *above, last = path.split("/")
        for key in above:
            state = state[key if isinstance(state, dict) else int(key)]
        if value is ...:
            del state[last]
        else:
            state[last if isinstance(state, dict) else int(last)] = value

    return change
