"""`data.size=auto`: the size that images are brought to, from the sizes of their files."""

import hashlib
from collections.abc import Sequence
from statistics import median

LOOKED_AT = 500  # images at most
SMALLEST = 16
LARGEST = 128
LONG = 2.0  # ratio of the sides from which the middle alone would leave most of an image out
LONGEST_RATIO = 4
STEP = 8


def sample(paths: Sequence[str], count: int) -> list[str]:
    """At most `count` of the paths, those with the smallest digests: the same whatever the order, and evenly drawn."""
    if len(paths) <= count:
        return sorted(paths)
    return sorted(paths, key=lambda path: hashlib.sha256(path.encode(errors="surrogateescape")).digest())[:count]


def auto_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """(H, W) for images of these sizes: a square by the median of the shorter sides.

    It is at least 16 and at most 128: more detail costs memory and time, and adds the less, the more there is. Where
    the usual image is at least twice as long as it is wide, or the reverse, the longer side is as much longer, up to
    four times.
    """
    shorter = median(min(size) for size in sizes)
    side = round(min(max(shorter, SMALLEST), LARGEST))
    ratio = median(width / height for height, width in sizes)
    if max(ratio, 1 / ratio) < LONG:
        return side, side
    longer = STEP * round(side * min(max(ratio, 1 / ratio), LONGEST_RATIO) / STEP)
    return (side, longer) if ratio > 1 else (longer, side)
