"""A network as an SVG: read back as XML, with the place of every rectangle."""

from collections.abc import Iterator
from itertools import combinations
from xml.etree import ElementTree

from cnnlab.visualization.diagram import Box, network_svg

SVG = "{http://www.w3.org/2000/svg}"
Rectangle = tuple[float, float, float, float]  # left, top, right, bottom


def rectangles(element: ElementTree.Element, x: float = 0, y: float = 0) -> Iterator[tuple[str, Rectangle]]:
    """Each box by its first text, frames by their title, the background without one."""
    if "transform" in element.attrib:
        moved = element.attrib["transform"].removeprefix("translate(").removesuffix(")").split()
        x, y = x + float(moved[0]), y + float(moved[1])
    own = element.find(f"{SVG}rect")
    if own is not None:
        name = element.findtext(f"{SVG}text") or ""
        yield name, (x, y, x + float(own.attrib["width"]), y + float(own.attrib["height"]))
    for child in element:
        yield from rectangles(child, x, y)


def drawn(*boxes: Box) -> dict[str, Rectangle]:
    return dict(rectangles(ElementTree.fromstring(network_svg("3×8×8", boxes))))


def texts(*boxes: Box) -> list[str]:
    return [one.text or "" for one in ElementTree.fromstring(network_svg("3×8×8", boxes)).iter(f"{SVG}text")]


def conv(key: str, *sources: str, shape: str = "4×8×8") -> Box:
    return Box(key, key, "conv 3×3", shape, sources or ("input",), style="weights")


def apart(a: Rectangle, b: Rectangle) -> bool:
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_a_chain_stands_from_top_to_bottom_in_one_line() -> None:
    placed = drawn(conv("a"), conv("b", "a", shape="4×6×6"), conv("c", "b", shape="10"))
    tops = [placed[name][1] for name in ("input", "a", "b", "c")]
    assert tops == sorted(tops)
    assert len({(left + right) / 2 for left, _, right, _ in placed.values()}) == 1


def test_branches_stand_side_by_side_and_nothing_overlaps() -> None:
    wide = Box("wide", "wide", "", "4×8×8", inside=(conv("one"), conv("two", "one"), conv("three", "two")))
    fire = Box(
        "fire",
        "fire",
        "branches",
        "8×8×8",
        ("stem",),
        (conv("narrow"), wide, Box("", "concat", "concat", "8×8×8", ("narrow", "wide"))),
    )
    placed = drawn(conv("stem"), fire, Box("join", "join", "concat", "12×8×8", ("fire", "stem"), style="join"))
    background = placed.pop("")
    assert placed["narrow"][1] == placed["wide"][1]
    inner = [placed[name] for name in ("narrow", "one", "two", "three", "concat")]
    assert all(apart(*pair) for pair in combinations(inner, 2))
    fire_placed = placed.pop("fire: branches")
    for one in inner:
        assert fire_placed[0] < one[0] < one[2] < fire_placed[2]
        assert fire_placed[1] < one[1] < one[3] < fire_placed[3]
    assert all(one[0] > 0 and one[2] < background[2] and one[3] < background[3] for one in placed.values())


def test_a_line_that_skips_rows_passes_beside_their_boxes() -> None:
    boxes = conv("a"), conv("b", "a"), conv("c", "b"), Box("sum", "sum", "add", "4×8×8", ("c", "a"))
    placed = drawn(*boxes)
    root = ElementTree.fromstring(network_svg("3×8×8", boxes))
    lanes = [one.attrib["d"] for one in root.iter(f"{SVG}path") if "marker-end" not in one.attrib]
    lane_x = {float(path.rpartition(" ")[0].rpartition(" ")[2]) for path in lanes if "C" in path}
    (background,) = (one for name, one in placed.items() if not name)
    assert lane_x
    assert all(12 + x > max(placed[name][2] for name in "bc") for x in lane_x)  # 12 is the margin
    assert background[2] > 12 + max(lane_x)


def test_a_box_says_its_shape_where_that_changes_and_its_block_where_that_is_no_name() -> None:
    boxes = Box("relu", "relu", "relu", "3×8×8"), Box("act", "act", "relu", "3×8×8", ("relu",)), conv("c", "act")
    assert texts(*boxes) == ["input", "3×8×8", "relu", "act", "relu", "c", "conv 3×3", "4×8×8"]


def test_text_is_escaped_and_cut_to_a_line() -> None:
    label = "<script>&" + "x" * 50
    assert texts(Box("a", label, label, "1"))[2] == label[:27] + "…"
    assert "<script>" not in network_svg("1", [Box("a", label, "b", "1", detail=label)])
