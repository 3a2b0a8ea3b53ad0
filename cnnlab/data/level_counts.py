"""How often each of the 256 levels occurs in the images of a split, for their mean and sd."""

import contextlib
import json
from pathlib import Path

import torch
from torch import Tensor

from cnnlab.data.source import Images
from cnnlab.runtime.files import read_regular, replace_file

LEVELS = 256
LARGEST = 1 << 16  # bytes of a file of counts


def level_counts(images: Images | Tensor) -> Tensor:
    """int64 (C, 256) of uint8 images (N, C, H, W): exact, so that neither their order nor chunks move a bit of a mean.

    Those of a cache's file are kept beside it, since a pass over a million images takes half a minute.
    """
    if isinstance(images, Tensor):
        return _counted(images)
    if images.file is None:
        return _counted_by_chunks(images)
    kept = images.file.path.with_name(f"{images.digest()[:32]}.levels")
    counts_C256 = _read(kept, images)
    if counts_C256 is None:
        counts_C256 = _counted_by_chunks(images)
        content = json.dumps({"digest": images.digest(), "counts": counts_C256.tolist()})
        with contextlib.suppress(OSError):  # a full disk, or another process that writes the same: the next run counts
            replace_file(kept, content.encode())
    return counts_C256


def _counted_by_chunks(images: Images) -> Tensor:
    counts_C256 = torch.zeros(images.shape[0], LEVELS, dtype=torch.int64)
    for x_NCHW in images.chunks():
        counts_C256 += _counted(x_NCHW)
    return counts_C256


def _counted(x_NCHW: Tensor) -> Tensor:
    return torch.stack([torch.bincount(x_NHW.flatten(), minlength=LEVELS) for x_NHW in x_NCHW.unbind(1)])


def _read(path: Path, images: Images) -> Tensor | None:
    """The counts that are kept for these images; None where there are none, or they do not add up to the pixels."""
    channels, height, width = images.shape
    try:
        found = json.loads(read_regular(path, LARGEST))
        counts_C256 = torch.tensor(found["counts"], dtype=torch.int64)
        digest = found["digest"]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError):
        return None
    pixels = len(images) * height * width
    whole = digest == images.digest() and counts_C256.shape == (channels, LEVELS)
    return counts_C256 if whole and bool((counts_C256.sum(1) == pixels).all()) else None
