"""Where a run takes its starting weights from, as the config names it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cnnlab.runtime.errors import ArgumentError


@dataclass(frozen=True)
class InitFrom:
    """The keys under `model.init_from`. Raises `ArgumentError`.

    `path` is a run's directory, read at `checkpoint`, or a file of weights. `map` goes from a name's beginning there
    to its beginning here, both up to a dot; `*` (or nothing) is every name, and null leaves tensors out on both sides.
    `strict` wants each tensor here to come from there, and all there to be used. `sha256` is that of the file read.
    """

    path: str  # a run's directory, a .safetensors file, or a state dict in .pth or .pt
    checkpoint: str | int = "best"  # of a run: best, last or a step; averaged weights where it has them
    strict: bool = True  # false takes what fits by name and shape
    map: Mapping[str, Any] = field(default_factory=dict)  # beginnings of names there → here; null leaves a layer out
    sha256: str | None = None  # that the file of weights must have

    def __post_init__(self) -> None:
        for prefix, target in self.map.items():
            if not isinstance(prefix, str) or not isinstance(target, str | None):
                raise ArgumentError("map", f"expected names → names or null, received {prefix!r}: {target!r}")
        if self.sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", self.sha256):
            raise ArgumentError("sha256", f"expected 64 hexadecimal digits, received {self.sha256!r}")
