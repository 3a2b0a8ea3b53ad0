"""Names of directories and columns that say what was chosen: `lr0.01_mlp`."""

import re
from collections.abc import Collection, Mapping

from cnnlab.config.compose import GROUPS

LONGEST_SLUG = 40


def slug(values: Mapping[str, str]) -> str:
    """What varies, as a part of a file's name: `lr0.01_mlp`, numbers with three digits."""
    names = short_names(values)
    parts = [("" if key in GROUPS else names[key]) + _short(value) for key, value in values.items()]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts))[:LONGEST_SLUG].strip("-_")


def short_names(keys: Collection[str]) -> dict[str, str]:
    """Each key's last words, as few as tell it from the others: `conv1.out_channels`."""

    def last(key: str, words: int) -> str:
        return ".".join(key.split(".")[-words:])

    found = {}
    for key in keys:
        words = 1
        while words <= key.count(".") and sum(last(other, words) == last(key, words) for other in keys) > 1:
            words += 1
        found[key] = last(key, words)
    return found


def _short(value: str) -> str:
    try:
        return value if value.isdecimal() else f"{float(value):.3g}".replace("+", "")
    except ValueError:
        return value
