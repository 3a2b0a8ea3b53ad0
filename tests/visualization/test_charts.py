import itertools
import re
import xml.etree.ElementTree as ET

import pytest

from cnnlab.visualization.charts import Line, bar_chart, line_chart, reliability_chart


def texts(svg: str) -> list[str]:
    return [str(one.text) for one in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def path(svg: str, colour: str) -> list[tuple[str, float, float]]:
    (found,) = re.findall(rf'class="curve" stroke="{colour}"[^>]* d="([^"]*)"', svg)
    return [(pen, float(x), float(y)) for pen, x, y in re.findall(r"([ML])([\d.]+) ([\d.]+)", found)]


def test_points_lie_where_the_axes_say() -> None:
    svg = line_chart("Accuracy", "epoch", [Line("a", [(0, 0.0), (5, 0.5), (10, 1.0)], "#123")], top=1.0)
    (_, x0, y0), (_, x1, y1), (_, x2, y2) = path(svg, "#123")
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert y0 - y1 == pytest.approx(y1 - y2)
    assert texts(svg)[:6] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]


def test_a_loss_over_decades_has_a_logarithmic_axis_and_says_so() -> None:
    svg = line_chart("Loss", "epoch", [Line("a", [(1, 1.0), (2, 0.1), (3, 0.01)], "#123")])
    heights = [y for _, _, y in path(svg, "#123")]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1])
    assert "Loss (logarithmic)" in texts(svg)
    assert texts(svg)[:3] == ["0.01", "0.1", "1"]


def test_a_value_that_is_missing_interrupts_the_curve() -> None:
    svg = line_chart("Loss", "epoch", [Line("a", [(1, 1.0), (2, None), (3, float("nan")), (4, 2.0)], "#123")])
    assert [pen for pen, _, _ in path(svg, "#123")] == ["M", "M"]
    assert line_chart("Loss", "epoch", [Line("a", [(1, None)], "#123")]) == ""


def test_names_at_the_ends_of_curves_do_not_cover_each_other() -> None:
    lines = [Line(f"run {number}", [(0, 1.0), (1, 1.0 + number / 1e6)], f"#00{number}") for number in range(8)]
    svg = line_chart("Loss", "epoch", lines)
    heights = sorted(float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>run \d', svg))
    assert len(heights) == 8
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 15


def test_a_long_curve_keeps_its_last_point_and_a_single_point_is_drawn() -> None:
    many = line_chart("Loss", "epoch", [Line("a", [(x, float(x % 7)) for x in range(10_000)], "#123")])
    assert len(path(many, "#123")) <= 400
    one = line_chart("Loss", "epoch", [Line("a", [(2, 0.5)], "#123", marked=True)])
    assert "<circle" in one


def test_bars_are_as_long_as_their_numbers() -> None:
    svg = bar_chart("Images", "images", [("<b>", 10.0), ("cat", 5.0)])
    first, second = (float(width) for width in re.findall(r'<rect[^>]* width="([\d.]+)"', svg))
    assert first == pytest.approx(2 * second, abs=0.1)
    assert "<b>" in texts(svg)


def test_a_bin_lies_at_its_confidence_and_accuracy() -> None:
    svg = reliability_chart("Calibration", [(10, 0.5, 0.5), (0, 0.0, 0.0), (30, 1.0, 1.0)])
    (x0, y0), (x1, y1) = ((float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg))
    ends = re.findall(r'd="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)" stroke', svg)[0]
    assert (x1, y1) == (float(ends[2]), float(ends[3]))
    assert abs(2 * x0 - float(ends[0]) - x1) < 0.2
    assert abs(2 * y0 - float(ends[1]) - y1) < 0.2
    assert reliability_chart("Calibration", []) == ""
