"""The page of known networks, and README's drawing, are those of the YAML."""

from known_networks import KNOWN
from make_networks import DIAGRAM, PAGE, described, origin, page, readme_diagram

ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| `")
]


def test_the_page_has_a_row_for_each_network() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(ROWS)
    assert [row[:3] for row in ROWS] == [described(known) for known in KNOWN]
    assert [row[6] for row in ROWS] == [origin(known) for known in KNOWN]


def test_the_largest_difference_is_that_of_rounding() -> None:
    assert max(float(row[5]) for row in ROWS) <= 1e-9


def test_the_drawing_of_the_readme_is_that_of_its_network() -> None:
    assert DIAGRAM.read_text(encoding="utf-8") == readme_diagram()
