"""Curves, bars and a reliability diagram as SVG text, for pages that are read on a phone and on paper.

They are written as text, as `diagram.py` is: Matplotlib takes longer to import than the report of a run may take.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from cnnlab.runtime.terminal import printable

BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW, BLACK = (  # Okabe and Ito's, which colour-blind people tell apart
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#222222",
)
TRAIN, VALIDATION = BLUE, ORANGE  # wherever both are drawn
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW, BLACK)  # of several runs
WIDTH, HEIGHT = 480, 300
LEFT, TOP, BOTTOM = 58, 30, 44  # around the axes
CHARACTER, LINE = 7.2, 15  # of a label, at most
MOST_POINTS = 400  # of a line: more than the pixels that it takes
LONGEST = 24  # characters of a label beside a line
DECADES = 1.5  # of positive values, from which on an axis is logarithmic
STYLE = (
    "text{font:13px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;fill:#222}"
    ".title{font-weight:600}.grid{stroke:#e3e6ea}.axis{stroke:#6b737c}.curve{fill:none;stroke-width:2}"
)


@dataclass(frozen=True)
class Line:
    """A named curve through (x, y); a y that is None or not finite interrupts it."""

    name: str
    points: Sequence[tuple[float, float | None]]
    colour: str
    dashed: bool = False
    marked: bool = False  # a dot at each point


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels; `ticks` are values with their text."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool
    ticks: Sequence[tuple[float, str]]

    def __call__(self, value: float) -> float:
        low, high, at = (
            (math.log10(v) for v in (self.low, self.high, value))
            if self.logarithmic
            else (
                self.low,
                self.high,
                value,
            )
        )
        return self.start + (at - low) / (high - low) * (self.end - self.start)


def line_chart(
    title: str,
    x_label: str,
    lines: Sequence[Line],
    *,
    top: float | None = None,
    linear: bool = False,
    mark: tuple[float, str] | None = None,
) -> str:
    """Curves with their names at their right ends, as an SVG; empty without a point.

    The y axis of positive values over more than 1.5 decades is logarithmic, unless `linear` or a `top` is given.
    `mark` is a vertical line at an x, with its name.
    """
    lines = [Line(one.name, _thinned(_drawable(one.points)), one.colour, one.dashed, one.marked) for one in lines]
    values = [y for one in lines for _, y in one.points if y is not None]
    if not values:
        return ""
    xs = [x for one in lines for x, _ in one.points]
    logarithmic = not linear and top is None and min(values) > 0 and math.log10(max(values) / min(values)) > DECADES
    right = WIDTH - 12 - CHARACTER * max(len(_cut(one.name)) for one in lines)
    x_axis = _linear(min(0.0, *xs) if min(xs) < 0.2 * max(xs) else min(xs), max(xs), LEFT, right, 5)
    y_axis = _y_axis(values, logarithmic, top)
    parts = [*_frame(x_axis, y_axis, f"{title} (logarithmic)" if logarithmic else title, x_label)]
    if mark and x_axis.low <= mark[0] <= x_axis.high:
        x = x_axis(mark[0])
        parts.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#6b737c" stroke-dasharray="2 3"/>')
        anchor = "end" if x > (LEFT + right) / 2 else "start"
        parts.append(_text(x + (-5 if anchor == "end" else 5), TOP + 12, mark[1], anchor, "#6b737c"))
    for one in lines:
        parts += _curve(one, x_axis, y_axis)
    parts += _names(lines, x_axis, y_axis)
    return _svg(title, parts)


def reliability_chart(title: str, bins: Sequence[tuple[int, float, float]]) -> str:
    """Accuracy over confidence: each of `bins` is (images, mean confidence, accuracy); the diagonal is calibrated."""
    shown = [(images, confidence, accuracy) for images, confidence, accuracy in bins if images]
    if not shown:
        return ""
    most, side = max(images for images, _, _ in shown), HEIGHT - BOTTOM - TOP
    x_axis, y_axis = _linear(0, 1, LEFT, LEFT + 1.45 * side, 5), _linear(0, 1, HEIGHT - BOTTOM, TOP, 5)
    parts = [*_frame(x_axis, y_axis, f"{title}: accuracy over confidence", "probability of the prediction")]
    parts.append(
        f'<path d="M{x_axis(0):.1f} {y_axis(0):.1f}L{x_axis(1):.1f} {y_axis(1):.1f}" stroke="#6b737c" '
        f'stroke-dasharray="5 4"/>'
    )
    for images, confidence, accuracy in shown:
        radius = 3 + 7 * math.sqrt(images / most)
        parts.append(
            f'<circle cx="{x_axis(confidence):.1f}" cy="{y_axis(accuracy):.1f}" r="{radius:.1f}" fill="{BLUE}" '
            f'fill-opacity=".75"><title>{images:,} images: confidence {confidence:.3f}, accuracy {accuracy:.3f}'
            f"</title></circle>"
        )
    x = x_axis(1) + 12
    parts.append(_text(x, y_axis(1) + 4, "dashed:", "start", "#6b737c"))
    parts.append(_text(x, y_axis(1) + 4 + LINE, "calibrated", "start", "#6b737c"))
    parts.append(_text(x, y_axis(0) - LINE, "area of a dot:", "start", BLUE))
    parts.append(_text(x, y_axis(0), "its images", "start", BLUE))
    return _svg(title, parts)


def bar_chart(title: str, label: str, bars: Sequence[tuple[str, float]]) -> str:
    """Horizontal bars, each with its name on the left and its whole number at its end."""
    if not bars:
        return ""
    names = [_cut(name) for name, _ in bars]
    left = 16 + CHARACTER * max(map(len, names))
    right = WIDTH - 16 - CHARACTER * max(len(f"{value:,.0f}") for _, value in bars)
    most, step = max(max(value for _, value in bars), 1e-12), 20
    parts = [_text(8, 18, title, "start", BLACK, 'class="title"')]
    for number, (name, (_, value)) in enumerate(zip(names, bars, strict=True)):
        y, width = TOP + number * step, (right - left) * value / most
        parts.append(_text(left - 8, y + 13, name, "end", BLACK))
        parts.append(f'<rect x="{left:.1f}" y="{y + 2}" width="{width:.1f}" height="{step - 5}" fill="{BLUE}"/>')
        parts.append(_text(left + width + 5, y + 13, f"{value:,.0f}", "start", BLACK))
    height = TOP + len(bars) * step + 22
    parts.append(_text(left, height - 6, label, "start", "#6b737c"))
    return _svg(title, parts, height)


def _drawable(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    return [(x, y if y is not None and math.isfinite(y) else None) for x, y in points if math.isfinite(x)]


def _thinned(points: list[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """At most so many points, evenly spaced, the last among them."""
    every = -(-len(points) // MOST_POINTS)
    return points[::-1][:: max(1, every)][::-1]


def _y_axis(values: Sequence[float], logarithmic: bool, top: float | None) -> Axis:
    start, end = HEIGHT - BOTTOM, TOP
    if logarithmic:
        first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        every = max(1, math.ceil((last - first) / 6))
        ticks = [(10.0**power, f"{10.0**power:g}") for power in range(first, last + 1, every)]
        return Axis(10.0**first, 10.0**last, start, end, True, ticks)
    low, high = min(values), max(values) if top is None else top
    if top is None:
        low = 0.0 if 0 <= low < 0.5 * high else low
    return _linear(low, max(high, *values), start, end, 5)


def _linear(low: float, high: float, start: float, end: float, count: int) -> Axis:
    """From a round number to another; a single value is in the middle."""
    if high <= low:
        low, high = low - max(abs(low), 1) * 0.5, high + max(abs(high), 1) * 0.5
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    texts = [
        f"{number * step + 0.0:,.{decimals}f}" if decimals < 5 else f"{number * step:g}"
        for number in range(first, last + 1)
    ]
    ticks = [(number * step, text) for number, text in zip(range(first, last + 1), texts, strict=True)]
    return Axis(first * step, last * step, start, end, False, ticks)


def _frame(x_axis: Axis, y_axis: Axis, title: str, x_label: str) -> Iterator[str]:
    bottom = HEIGHT - BOTTOM
    for value, text in y_axis.ticks:
        y = y_axis(value)
        yield f'<path class="grid" d="M{x_axis.start} {y:.1f}H{x_axis.end:.1f}"/>'
        yield _text(x_axis.start - 6, y + 4, text, "end", "#444")
    for value, text in x_axis.ticks:
        x = x_axis(value)
        yield f'<path class="axis" d="M{x:.1f} {bottom}v4"/>'
        yield _text(x, bottom + 18, text, "middle", "#444")
    yield f'<path class="axis" fill="none" d="M{x_axis.start} {TOP}V{bottom}H{x_axis.end:.1f}"/>'
    yield _text(8, 18, title, "start", BLACK, 'class="title"')
    yield _text((x_axis.start + x_axis.end) / 2, HEIGHT - 8, x_label, "middle", "#444")


def _curve(line: Line, x_axis: Axis, y_axis: Axis) -> Iterator[str]:
    path, pen = [], "M"
    for x, y in line.points:
        if y is None:
            pen = "M"
            continue
        path.append(f"{pen}{x_axis(x):.1f} {y_axis(y):.1f}")
        pen = "L"
        if line.marked:
            yield f'<circle cx="{x_axis(x):.1f}" cy="{y_axis(y):.1f}" r="2.5" fill="{line.colour}"/>'
    dashes = ' stroke-dasharray="6 4"' if line.dashed else ""
    yield f'<path class="curve" stroke="{line.colour}"{dashes} d="{"".join(path)}"/>'


def _names(lines: Sequence[Line], x_axis: Axis, y_axis: Axis) -> Iterator[str]:
    """Each name beside the end of its curve, moved until none lies on another."""
    ends = [
        (y_axis(last), one)
        for one in lines
        if (last := next((y for _, y in reversed(one.points) if y is not None), None)) is not None
    ]
    ends.sort(key=lambda end: end[0])
    lowest = HEIGHT - BOTTOM - LINE * (len(ends) - 1)
    places: list[float] = []
    for number, (y, _) in enumerate(ends):
        y = min(max(y, TOP + 4), lowest + LINE * number)
        places.append(max(y, places[-1] + LINE) if places else y)
    for y, (_, one) in zip(places, ends, strict=True):
        yield _text(x_axis.end + 6, y + 4, _cut(one.name), "start", one.colour)


def _text(x: float, y: float, text: str, anchor: str, colour: str, more: str = "") -> str:
    shown = escape(printable(text))
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="fill:{colour}" {more}>{shown}</text>'


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _svg(title: str, parts: Sequence[str], height: float = HEIGHT) -> str:
    size = f'viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(printable(title))}">',
            f"<style>{STYLE}</style>",
            *parts,
            "</svg>",
        ]
    )
