import json
import re
import shutil
from math import comb
from pathlib import Path

import pytest
from commands import Answer, ok, run
from fast_run import read_json, train_fast

from cnnlab.cli import evaluate
from cnnlab.data.source import Images
from cnnlab.inference.compare_command import mcnemar


def compare(*paths: Path, more: tuple[str, ...] = ()) -> Answer:
    return run(evaluate, f"compare=[{','.join(map(str, paths))}]", *more)


@pytest.fixture(scope="module")
def two(completed_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A copy of the completed run and one of another learning rate and seed. Leave them as they are."""
    folder = tmp_path_factory.mktemp("two")
    first = Path(shutil.copytree(completed_run, folder / "first"))
    ok(train_fast(f"run_dir={folder / 'second'}", "optimizer.lr=0.2", "seed=3"))
    return first, folder / "second"


@pytest.fixture(scope="module")
def page(two: tuple[Path, Path]) -> str:
    answer = ok(compare(*two))
    target = two[0].parent / "compare.html"
    assert f"written to {target}" in answer.out
    return target.read_text(encoding="utf-8")


def rows(page: str, heading: str) -> dict[str, list[str]]:
    section = page.partition(f"<h2>{heading}</h2>")[2].partition("</section>")[0]
    found = re.findall(r"<tr>(.*?)</tr>", section.replace("<wbr>", ""))
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in found]
    return {row[0]: row[1:] for row in cells if row}


def test_settings_and_results_stand_beside_each_other(two: tuple[Path, Path], page: str) -> None:
    assert rows(page, "Settings that differ") == {"seed": ["0", "3"], "optimizer.lr": ["0.05", "0.2"]}
    tests = [f"{100 * read_json(path / 'summary.json')['test']['accuracy']:.2f} %" for path in two]
    assert rows(page, "Results")["test accuracy"] == tests
    assert page.count("A validation</text>") == page.count("B training</text>") == 2  # loss and accuracy


def test_every_disagreement_is_counted_and_the_surest_are_shown(two: tuple[Path, Path], page: str) -> None:
    labels = []
    for path in two:
        ok(run(evaluate, f"run={path}"))
        (file,) = path.glob("predictions-*.csv")
        lines = [line.split(",") for line in file.read_text(encoding="utf-8").splitlines()[1:]]
        labels.append({line[0]: (line[1], line[2]) for line in lines})
    mine, its = labels
    differ = [index for index in mine if mine[index] != its[index]]
    assert f"They disagree on {len(differ)} of 360 images." in page
    alone = sum(mine[index][0] == mine[index][1] for index in differ)
    assert f"A alone is correct on {alone}," in page
    shown = re.findall(r"<figcaption>image (\d+)<br>label (\d)<br>A: (\d) \([\d.]+\)<br>B: (\d)", page)
    assert len(shown) >= min(len(differ), 12)
    for index, label, first, second in shown:
        assert (label, first) == mine[index]
        assert (label, second) == its[index]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("[first]", "compare: expected a list of 2 to 7 runs"),
        ("first", "compare: expected a list of 2 to 7 runs"),
        ("[first,first]", "compare: expected different runs, received first twice"),
        ("[first,nowhere]", "compare: expected a run's directory with a config.yaml, received 'nowhere'"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    two: tuple[Path, Path], given: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(two[0].parent)
    answer = run(evaluate, f"compare={given}")
    assert answer.code == 2
    assert answer.err.startswith(f"error: {message}")


def test_another_meaning_beside_it_is_refused(two: tuple[Path, Path]) -> None:
    answer = compare(*two, more=(f"run={two[0]}",))
    assert answer.err.startswith("error: compare: expected it without run, received ")


def test_runs_of_other_classes_are_refused(two: tuple[Path, Path], in_tmp_path: Path) -> None:
    ok(
        train_fast(
            "run_dir=other", "data=shapes", "data.train_count=160", "data.test_count=32", "data.validation.count=32"
        )
    )
    answer = compare(two[0], Path("other"))
    assert answer.code == 2
    assert "expected runs of the same data" in answer.err


def test_without_the_data_the_page_has_all_else(two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Images, "digest", lambda self: "0" * 64)
    (two[0] / "summary.json").write_text(
        json.dumps(read_json(two[0] / "summary.json") | {"status": "interrupted"}), encoding="utf-8"
    )
    ok(compare(*two))
    page = (two[0].parent / "compare.html").read_text(encoding="utf-8")
    assert "Not shown: data: the test images or labels are not those that the run measured" in page
    assert rows(page, "Settings that differ")["optimizer.lr"] == ["0.05", "0.2"]
    assert rows(page, "Results")["status"] == ["interrupted", "completed"]


@pytest.mark.parametrize(("first", "second"), [(0, 0), (5, 2), (3, 3), (40, 12)])
def test_the_probability_of_chance_is_the_binomial_tail(first: int, second: int) -> None:
    count, fewer = first + second, min(first, second)
    expected = min(1.0, 2 * sum(comb(count, k) for k in range(fewer + 1)) / 2**count)
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)
