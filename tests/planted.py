"""Checkpoints as somebody else might hand them over: changed, and sealed again."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cnnlab.engine.checkpoint import MANIFEST, STATE
from cnnlab.engine.state_file import read_state, write_state

Change = Callable[[dict[str, Any]], object]


def seal(folder: Path, body: Any) -> None:
    """Writes a manifest that agrees with itself."""
    own = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    text = json.dumps({"manifest": body, "sha256": own}, sort_keys=True, indent=1) + "\n"
    (folder / MANIFEST).write_text(text)


def reseal(folder: Path) -> None:
    """Writes the manifest that fits the files, as whoever changed them would."""

    def update(body: dict[str, Any]) -> None:
        for path in folder.iterdir():
            if path.name != MANIFEST:
                data = path.read_bytes()
                body["files"][path.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    plant_manifest(folder, update)


def plant_manifest(folder: Path, change: Change) -> None:
    """Changes a manifest, which agrees with itself."""
    body = json.loads((folder / MANIFEST).read_text())["manifest"]
    change(body)
    seal(folder, body)


def plant_state(folder: Path, change: Change) -> None:
    """Changes the state of a checkpoint; its manifest agrees with it."""
    state = read_state(folder / STATE)
    change(state)
    write_state(folder / STATE, state)
    reseal(folder)


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
