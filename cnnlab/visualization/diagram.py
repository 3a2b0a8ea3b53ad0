"""A network as an SVG: boxes with arrows from top to bottom, branches side by side.

It is written as text: to import Matplotlib takes longer than all that a small run does before its first step.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

INPUT = "input"  # the source that stands for what reaches a list of boxes
CHARACTER, LINE = 6, 13  # the width of a character, which is monospaced, and the height of a line
LONGEST = 28  # characters of a line
PADDING, GAP, ARROW, LANE = 6, 12, 16, 10  # in a box, between boxes of a row, between rows; a line that passes a row
STYLE = (
    "text{font:10px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#1f2328}"
    ".name{font-weight:bold}.shape{fill:#59636e}.line{fill:none;stroke:#59636e}"
    ".plain{fill:#fff;stroke:#8b949e}.weights{fill:#ddf4ff;stroke:#0969da}.join{fill:#fff1e5;stroke:#bc4c00}"
    ".frame{fill:#818b98;fill-opacity:.07;stroke:#b7bfc8}"
)
ARROWHEAD = (
    '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
    '<path d="M0 0L8 4L0 8z" fill="#59636e"/></marker></defs>'
)


@dataclass(frozen=True)
class Box:
    """A layer; `sources` are the keys of boxes before it in its list, or `input`.

    A container's boxes are `inside`, and its output is the last one's. `style` is `plain`, `weights` or `join`.
    """

    key: str
    name: str
    block: str
    shape: str
    sources: tuple[str, ...] = (INPUT,)
    inside: tuple["Box", ...] = ()
    style: str = "plain"
    detail: str = ""  # shown under the pointer


class Cell(NamedTuple):
    """Something laid out from (0, 0) on; lines enter and leave it in the middle."""

    width: float
    height: float
    parts: list[str]


class Place(NamedTuple):
    """Where a box or a line stands in a row that ends at `end`."""

    middle: float
    top: float
    bottom: float
    end: float


def network_svg(input_shape: str, boxes: Sequence[Box]) -> str:
    """The whole image, with `input_shape` at the top."""
    body = _column([Box(INPUT, INPUT, "", input_shape, ()), *boxes], "", 0)
    width, height = body.width + 2 * GAP, body.height + 2 * GAP
    size = f'width="{width:g}" height="{height:g}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {width:g} {height:g}">',
        f"<style>{STYLE}</style>{ARROWHEAD}",
        f'<rect {size} fill="#fff"/>',
        _moved(body, GAP, GAP),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _moved(cell: Cell, x: float, y: float) -> str:
    return "\n".join([f'<g transform="translate({x:g} {y:g})">', *cell.parts, "</g>"])


def _column(boxes: Sequence[Box], arriving: str, top: float) -> Cell:
    """Boxes in rows by their distance from the input, from `top` on; a line that skips a row has a place there."""
    shapes = {INPUT: arriving} | {box.key: box.shape for box in boxes}
    cells = {box.key: _cell(box, shapes[box.sources[0]] if len(box.sources) == 1 else "") for box in boxes}
    ranks = _ranks(boxes)
    rows = _rows(boxes, ranks)
    widths = _widths(rows, cells, ranks)
    whole = max(sum(sizes) + GAP * (len(sizes) - 1) for sizes in widths)
    places = {(INPUT, 0): Place(whole / 2, *[top - ARROW] * 3)}
    parts = []
    for rank, (row, sizes) in enumerate(zip(rows, widths, strict=True), 1):
        height = max(cells[key].height for key in row if ranks[key] == rank)
        left = (whole - sum(sizes) - GAP * (len(row) - 1)) / 2
        for key, size in zip(row, sizes, strict=True):
            bottom = top + height
            if ranks[key] == rank:
                parts.append(_moved(cells[key], left + (size - cells[key].width) / 2, top))
                bottom = top + cells[key].height
            places[key, rank] = Place(left + size / 2, top, bottom, top + height)
            left += size + GAP
        top += height + ARROW
    return Cell(whole, top - ARROW, [*_lines(boxes, ranks, places), *parts])


def _ranks(boxes: Sequence[Box]) -> dict[str, int]:
    """The number of each box's row, from 1; a row below all of its sources."""
    ranks = {INPUT: 0}
    for box in boxes:
        ranks[box.key] = 1 + max((ranks[source] for source in box.sources), default=0)
    return ranks


def _rows(boxes: Sequence[Box], ranks: Mapping[str, int]) -> list[list[str]]:
    """For each row the keys of its boxes and of the sources whose lines pass it, each below what it comes from."""
    last: dict[str, int] = {}
    for box in boxes:
        last |= {source: max(ranks[box.key], last.get(source, 0)) for source in box.sources}
    rows: list[list[str]] = []
    above = {INPUT: 0}
    for rank in range(1, max(ranks.values()) + 1):
        coming = {box.key: box.sources for box in boxes if ranks[box.key] == rank}
        coming |= {source: (source,) for source, end in last.items() if ranks[source] < rank < end}
        middles = {key: sum(above[one] for one in ones) / max(1, len(ones)) for key, ones in coming.items()}
        rows.append(sorted(middles, key=middles.__getitem__))
        above = {key: number for number, key in enumerate(rows[-1])}
    return rows


def _widths(rows: Sequence[Sequence[str]], cells: Mapping[str, Cell], ranks: Mapping[str, int]) -> list[list[float]]:
    """The widths in each row: the same in rows that follow each other with as many places."""
    widths: list[list[float]] = []
    for rank, row in enumerate(rows, 1):
        own = [cells[key].width if ranks[key] == rank else LANE for key in row]
        if widths and 1 < len(own) == len(widths[-1]):
            shared = widths[-1]  # one list for all of these rows
            shared[:] = map(max, shared, own)
            own = shared
        widths.append(own)
    return widths


def _lines(boxes: Sequence[Box], ranks: Mapping[str, int], places: Mapping[tuple[str, int], Place]) -> Iterator[str]:
    passed: set[tuple[str, int]] = set()
    for box in boxes:
        for source in box.sources:
            for rank in range(ranks[source], ranks[box.key] - 1):
                if (source, rank) not in passed:
                    passed.add((source, rank))
                    lane = places[source, rank + 1]
                    yield f'<path class="line" d="{_line(places[source, rank], lane)}V{lane.end:g}"/>'
            start = places[source, ranks[box.key] - 1]
            path = _line(start, places[box.key, ranks[box.key]])
            yield f'<path class="line" marker-end="url(#arrow)" d="{path}"/>'


def _line(start: Place, end: Place) -> str:
    """Down to the end of the row, and from there to the top of what stands in the next."""
    bend = (start.end + end.top) / 2
    straight = f"M{start.middle:g} {start.bottom:g}V"
    if start.middle == end.middle:
        return f"{straight}{end.top:g}"
    return f"{straight}{start.end:g}C{start.middle:g} {bend:g} {end.middle:g} {bend:g} {end.middle:g} {end.top:g}"


def _cell(box: Box, arriving: str) -> Cell:
    """A box with its name, its block, and its output shape where that is another than what arrives."""
    if box.inside:
        return _frame(box, arriving)
    lines = {"name": box.name, "block": box.block if box.block != box.name else ""}
    lines["shape"] = box.shape if box.shape != arriving else ""
    lines = {style: _cut(text) for style, text in lines.items() if text}
    width = CHARACTER * max(map(len, lines.values())) + 2 * PADDING
    height = LINE * len(lines) + PADDING
    texts = [
        f'<text class="{style}" x="{width / 2:g}" y="{LINE * number + 13:g}" text-anchor="middle">{escape(text)}</text>'
        for number, (style, text) in enumerate(lines.items())
    ]
    return Cell(width, height, [_rectangle(box.style, width, height, box.detail), *texts])


def _frame(box: Box, arriving: str) -> Cell:
    """A container around its boxes."""
    title = _cut(box.name if box.name == box.block or not box.block else f"{box.name}: {box.block}")
    inner = _column(box.inside, arriving, LINE + ARROW)
    width = max(inner.width, CHARACTER * len(title)) + 2 * PADDING
    height = inner.height + PADDING
    middle = width / 2
    parts = [
        _rectangle("frame", width, height, box.detail),
        f'<text class="shape" x="{PADDING}" y="12">{escape(title)}</text>',
        _moved(inner, (width - inner.width) / 2, 0),
        f'<path class="line" d="M{middle:g} {inner.height:g}V{height:g}"/>',
    ]
    return Cell(width, height, parts)


def _rectangle(style: str, width: float, height: float, detail: str) -> str:
    title = f"<title>{escape(detail)}</title>" if detail else ""
    return f'<rect class="{style}" width="{width:g}" height="{height:g}" rx="4">{title}</rect>'


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
