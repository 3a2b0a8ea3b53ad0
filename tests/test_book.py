"""The page of reproduced experiments shows what was measured, and no more."""

import json
import re
from pathlib import Path

import pytest
from book_page import BEST_OF, PAGE, names, page, read_results
from make_book import read_run

RUN = {"figure": 0.95, "val": 0.94, "monitor": "accuracy/val", "seconds": 90.0, "beside": {}}


def row(text: str, name: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_is_what_follows_from_the_results() -> None:
    assert PAGE.read_text() == page(read_results())


def test_every_result_belongs_to_an_experiment() -> None:
    assert set(read_results()) <= {*names(), "baselines"}


def test_a_row_gives_mean_sample_deviation_and_difference() -> None:
    text = page({"c1-30": {"0": {**RUN, "figure": 0.95}, "1": {**RUN, "figure": 0.96, "monitor": "accuracy/test"}}})
    assert row(text, "c1-30")[1:] == [
        "95.42",
        "95.50 ± 0.71 (95.00 … 96.00)",
        "+0.08",
        "the published run is among ours",
        "2",
        "validation",
        "1.5",
    ]
    below = row(page({"c1-30": {"0": {**RUN, "figure": 0.95}, "1": {**RUN, "figure": 0.94}}}), "c1-30")
    assert below[3:5] == ["−0.92", "the published run is above all 2 of ours"]


def test_chapters_stand_in_order_with_a_line_on_each_of_their_experiments() -> None:
    text = page(read_results())
    assert re.findall(r"^## Chapter (\d)", text, re.MULTILINE) == ["1", "3", "5", "6"]
    listed = re.findall(r"^- `(c[\w-]+)`: (.+)$", text, re.MULTILINE)
    assert [name for name, _ in listed] == names()
    assert all(what for _, what in listed)


@pytest.mark.parametrize("name", BEST_OF)
def test_the_best_of_three_is_the_one_with_the_best_validation(name: str) -> None:
    runs = {str(seed): {**RUN, "figure": figure, "val": val} for seed, figure, val in
            ((0, 0.97, 0.99), (1, 0.98, 0.96), (2, 0.96, 0.95))}  # fmt: skip
    assert row(page({name: runs}), name)[2] == "**97.00** best of 3 by validation; 97.00 ± 1.00 (96.00 … 98.00)"
    del runs["2"]
    assert row(page({name: runs}), name)[2] == "97.50 ± 0.71 (97.00 … 98.00)"


def test_what_has_no_run_is_named() -> None:
    untried = "".join(line for line in page({"c1-30": {"0": RUN}}).splitlines() if line.startswith("Not yet run"))
    assert "`c6-dropout`" in untried
    assert "`c1-30`" not in untried


def test_a_run_is_read_from_what_it_wrote(tmp_path: Path) -> None:
    best = {"monitor": "accuracy/test", "accuracy/val": 0.7, "accuracy/test": 0.8}
    summary = {"best": best, "test": {"accuracy": 0.8}, "train": {"seconds": 12.34}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    records = [{"split": split, "accuracy": value} for split, value in
               (("val", 0.1), ("test", 0.2), ("val", 0.7), ("test", 0.8))]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = read_run("c1-30", tmp_path)
    assert {**found, "beside": None} == {
        "figure": 0.8, "val": 0.7, "monitor": "accuracy/test", "seconds": 12.3, "beside": None
    }  # fmt: skip
    assert {figure: also["ours"] for figure, also in found["beside"].items()} == {
        "test, epoch 1": 0.2,
        "test, epoch 2": 0.8,
    }
