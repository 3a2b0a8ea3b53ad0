"""The page of reproduced experiments shows what was measured, and no more."""

import json
import re
from pathlib import Path

import pytest
from book_page import BEST_OF, CHAPTERS, PAGE, PRESETS, description, names, page, read_results
from make_book import read_run

RUN = {"figure": 0.95, "val": 0.94, "monitor": "accuracy/val", "seconds": 90.0, "beside": {}}


def row(text: str, name: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| `{name}`: ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_is_what_follows_from_the_results() -> None:
    assert PAGE.read_text() == page(read_results())


def test_every_result_belongs_to_an_experiment() -> None:
    assert set(read_results()) <= {*names(), "baselines"}


def test_every_experiment_stands_in_its_chapter() -> None:
    assert sorted(names()) == sorted(path.stem for path in PRESETS.glob("c*.yaml"))
    assert all(name.startswith(f"c{chapter}-") for chapter, members in CHAPTERS.items() for name in members)
    assert re.findall(r"^## Chapter (\d)", PAGE.read_text(), re.MULTILINE) == ["1", "3", "5", "6"]


def test_a_description_is_the_first_comment_of_the_preset() -> None:
    assert f"# {description('c6-fc')}\n" in (PRESETS / "c6-fc.yaml").read_text()
    assert [name for name in names() if not description(name).endswith(".")] == []


def test_a_row_gives_mean_sample_deviation_difference_range_and_cause() -> None:
    text = page({"c1-30": {"0": {**RUN, "figure": 0.95}, "1": {**RUN, "figure": 0.9566}}})
    title, published, ours, difference, remarks = row(text, "c1-30")
    assert title == f"`c1-30`: {description('c1-30')}"
    assert [published, ours, difference] == ["95.42", "95.33 ± 0.47", "−0.09"]
    assert remarks.startswith("2 runs of 1.5 min, 95.00 to 95.66; best epoch on the validation images. With weights ")


def test_runs_that_all_miss_what_is_published_on_one_side_are_marked() -> None:
    text = page({"c1-30": {str(seed): {**RUN, "figure": 0.95, "monitor": "accuracy/test"} for seed in range(2)}})
    assert "95.00 to 95.00, all below what is published; best epoch on the test images." in row(text, "c1-30")[4]


def test_a_figure_beside_stands_under_its_experiment() -> None:
    beside = {"test, epoch 1": {"published": 0.9129, "ours": 0.9}}
    lines = page({"c1-30": {"0": {**RUN, "beside": beside}}}).splitlines()
    (place,) = [number for number, line in enumerate(lines) if line.startswith("| `c1-30`")]
    assert lines[place + 1] == "| … test images, epoch 1 | 91.29 | 90.00 | −1.29 |  |"


@pytest.mark.parametrize("name", BEST_OF)
def test_the_best_of_three_is_the_one_with_the_best_validation(name: str) -> None:
    runs = {str(seed): {**RUN, "figure": figure, "val": val} for seed, figure, val in
            ((0, 0.97, 0.99), (1, 0.98, 0.96), (2, 0.96, 0.95))}  # fmt: skip
    assert row(page({name: runs}), name)[2] == "**97.00**, best of 3 by validation; 97.00 ± 1.00"
    del runs["2"]
    assert row(page({name: runs}), name)[2] == "97.50 ± 0.71"


def test_what_has_no_run_is_named() -> None:
    text = page({"c1-30": {"0": RUN}})
    assert row(text, "c6-dropout")[1:3] == ["99.60", "not yet run"]
    assert row(text, "c1-30")[2] == "95.00"


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
