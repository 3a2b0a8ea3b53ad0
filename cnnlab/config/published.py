"""A figure reported elsewhere for an experiment, printed beside what a run measured."""

from collections.abc import Mapping
from dataclasses import dataclass

from cnnlab.runtime.checks import number
from cnnlab.runtime.errors import ArgumentError


@dataclass(frozen=True)
class Published:
    """`value` of a `figure` such as accuracy/test, in the units of `summary.json`, and its `source`.

    Raises `ArgumentError`.
    """

    figure: str  # METRIC/val or METRIC/test, such as accuracy/test
    value: float  # in the units of summary.json
    source: str  # where it was published

    def __post_init__(self) -> None:
        metric, _, split = str(self.figure).partition("/")
        if not metric or split not in ("val", "test"):
            raise ArgumentError("figure", f"expected METRIC/val or METRIC/test, received {self.figure!r}")
        number("value", self.value)
        if not isinstance(self.source, str):
            raise ArgumentError("source", f"expected text, received {self.source!r}")

    def compare(self, measured: Mapping[str, float]) -> str | None:
        """The line to print, or None where the figure was not measured."""
        if self.figure not in measured:
            return None
        ours = measured[self.figure]
        return f"{self.figure} {ours:.4f}, published {self.value:.4f} ({self.source}): {ours - self.value:+.4f}"
