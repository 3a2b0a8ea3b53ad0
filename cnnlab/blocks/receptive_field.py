"""Which pixels of the image one unit sees, with offsets, so that branches of a network can be united.

A window of kernel k, stride s, padding p and dilation d makes [first, last] of unit 0 into
[first − p·j, last + ((k − 1)·d − p)·j] and the jump j into j·s; see Araujo, Norris and Sim, "Computing Receptive Fields
of Convolutional Neural Networks", Distill 2019.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reach:
    """Along one axis, unit i sees the pixels `first + i·jump` … `last + i·jump`, or all of them where `whole`."""

    first: int = 0
    last: int = 0
    jump: int = 1
    whole: bool = False

    def __str__(self) -> str:
        return "whole" if self.whole else str(self.last - self.first + 1)

    def windowed(self, kernel: int, stride: int, padding: int, dilation: int) -> "Reach":
        """The reach after a window; `padding` is that before unit 0."""
        if self.whole:
            return self
        last = self.last + ((kernel - 1) * dilation - padding) * self.jump
        return Reach(self.first - padding * self.jump, last, self.jump * stride)

    def union(self, other: "Reach") -> "Reach | None":
        """The smallest reach around both; None for different jumps, where it would change from unit to unit."""
        if self.whole or other.whole:
            return ALL
        if self.jump != other.jump:
            return None
        return Reach(min(self.first, other.first), max(self.last, other.last), self.jump)


ALL = Reach(whole=True)


@dataclass(frozen=True)
class ReceptiveField:
    """What a unit sees of the image's rows and columns."""

    rows: Reach = Reach()
    columns: Reach = Reach()

    def __str__(self) -> str:
        """`3×5` pixels (height × width), `1×whole` for a row, `whole` for the image."""
        return "whole" if self == WHOLE else f"{self.rows}×{self.columns}"


START = ReceptiveField()
WHOLE = ReceptiveField(ALL, ALL)
Field = ReceptiveField | None  # None is unknown


# how a block's units see: from the fields of its inputs to that of its output


def local(field: Field) -> Field:
    """Each unit sees what one unit of the input does."""
    return field


def whole(*fields: Field) -> Field:
    """Each unit sees every unit of the input."""
    return WHOLE


def unknown(*fields: Field) -> Field:
    """Unknown, unless every unit of the input sees the whole image already."""
    return WHOLE if all(field == WHOLE for field in fields) else None


def row(field: Field) -> Field:
    """Each unit sees every unit of its row."""
    return field and ReceptiveField(field.rows, ALL)


def column(field: Field) -> Field:
    """Each unit sees every unit of its column."""
    return field and ReceptiveField(ALL, field.columns)


def union(*fields: Field) -> Field:
    """Each unit sees what the units at its place see in any of the inputs, as in an addition."""
    if WHOLE in fields:
        return WHOLE
    first, *others = fields
    for other in others:
        if first is None or other is None:
            return None
        rows, columns = first.rows.union(other.rows), first.columns.union(other.columns)
        first = ReceptiveField(rows, columns) if rows and columns else None
    return first
