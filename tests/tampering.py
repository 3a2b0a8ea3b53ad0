"""Checkpoints changed by a stranger, who also makes the manifest agree."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cnnlab.engine.checkpoint import MANIFEST, STATE
from cnnlab.engine.state_file import read_state, write_state


def seal(folder: Path, body: Any) -> None:
    """Writes a manifest that agrees with itself."""
    own = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    text = json.dumps({"manifest": body, "sha256": own}, sort_keys=True, indent=1) + "\n"
    (folder / MANIFEST).write_text(text)


def reseal(folder: Path) -> None:
    """Writes the manifest that fits the files, as whoever tampers with them would."""
    body = json.loads((folder / MANIFEST).read_text())["manifest"]
    for path in folder.iterdir():
        if path.name != MANIFEST:
            data = path.read_bytes()
            body["files"][path.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    seal(folder, body)


def plant(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the state of a checkpoint, and seals it again."""
    state = read_state(folder / STATE)
    change(state)
    write_state(folder / STATE, state)
    reseal(folder)
