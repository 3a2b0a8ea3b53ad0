"""So little of each part of an explanation that all of them are drawn in a moment."""

from typing import Any

import pytest

from cnnlab.inference import explain_command

FEW: dict[str, Any] = {
    "MOST_LAYERS": 1,
    "MOST_MISTAKES": 3,
    "MOST_EXPLAINED": 1,
    "MOST_EXCITING": 2,
    "MOST_CHANNELS": 2,
    "MOST_SILENCED": 3,
    "MOST_POINTS": 40,
    "MOST_ABLATED": 40,
    "STEPS": 2,
    "GRID": 8,
}


def explain_few(patch: pytest.MonkeyPatch) -> None:
    for name, value in FEW.items():
        patch.setattr(explain_command, name, value)
