"""The files and tables of an evaluation."""

import csv
import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from screens import Terminal

from cnnlab.inference.reporting import (
    MOST_CLASSES,
    MOST_PROBABILITIES,
    ImagePredictions,
    Predictions,
    print_predictions,
    print_report,
    write_confusion,
    write_predictions,
)
from cnnlab.metrics import report
from cnnlab.run.files import RunDirectory

AWKWARD = ("[red]", "a,b", 'say "cheese"', "[/red]", "p(x)", "two\nlines")


def predictions(classes: int, count: int = 20) -> Predictions:
    generator = torch.Generator().manual_seed(0)
    output_NK = torch.randn(count, classes, generator=generator)
    target_N = torch.arange(count) % classes
    loss_N = torch.nn.functional.cross_entropy(output_NK, target_N, reduction="none")
    return Predictions(torch.arange(count) + 1000, target_N, output_NK, output_NK.softmax(1), loss_N)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def written(tmp_path: Path, made: Predictions, names: tuple[str, ...], **options: Any) -> list[dict[str, str]]:
    return rows(write_predictions(RunDirectory(tmp_path), "predictions.csv", made, names, **options))


def printed(capsys: pytest.CaptureFixture[str], names: tuple[str, ...], **changes: Any) -> str:
    made = predictions(len(names), 200)
    figures = report(made.output_NK, made.probability_NK, made.target_N, names, 2)
    result = {"split": "val", "tta": "none", "images": 200, "loss": 1.25, "accuracy": 0.5, "metrics": {}}
    print_report({**result, **figures, **changes}, 7)
    return capsys.readouterr().out


def test_a_line_holds_the_prediction_of_an_image(tmp_path: Path) -> None:
    output_NK = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    made = Predictions(
        torch.tensor([7, 3]), torch.tensor([2, 0]), output_NK, output_NK.softmax(1), torch.tensor([1.5, 0.25])
    )
    first, second = written(tmp_path, made, ("ant", "bee", "cat"))
    p_K = output_NK[0].softmax(0).tolist()
    assert first == {
        "index": "7",
        "label": "cat",
        "prediction": "bee",
        "probability": f"{p_K[1]:.9g}",
        "loss": "1.5",
        "rank": "2",
        "p(ant)": f"{p_K[0]:.9g}",
        "p(bee)": f"{p_K[1]:.9g}",
        "p(cat)": f"{p_K[2]:.9g}",
    }
    assert (second["index"], second["label"], second["prediction"], second["rank"]) == ("3", "ant", "ant", "1")


def test_numbers_read_back_as_the_same_float32(tmp_path: Path) -> None:
    made = predictions(5)
    made.loss_N[0] = -0.0
    found = written(tmp_path, made, tuple("abcde"))
    p_NK = torch.tensor([[float(row[f"p({name})"]) for name in "abcde"] for row in found])
    assert torch.equal(p_NK, made.probability_NK)
    assert torch.equal(torch.tensor([float(row["loss"]) for row in found]), made.loss_N)
    assert found[0]["loss"] == "0"


def test_paths_stand_beside_the_index_where_there_are_some(tmp_path: Path) -> None:
    paths = [f"cats, mostly/{n}.jpg" for n in range(2000)]
    found = written(tmp_path, predictions(3), ("a", "b", "c"), paths=paths)
    assert [row["path"] for row in found] == [paths[int(row["index"])] for row in found]
    assert list(found[0])[:3] == ["index", "path", "label"]


@pytest.mark.parametrize(
    ("classes", "columns"), [(MOST_PROBABILITIES, MOST_PROBABILITIES), (MOST_PROBABILITIES + 1, 0)]
)
def test_very_many_classes_leave_out_the_probabilities(tmp_path: Path, classes: int, columns: int) -> None:
    found = written(tmp_path, predictions(classes), tuple(f"class {k}" for k in range(classes)))
    assert len(found) == 20
    assert len(found[0]) == 6 + columns
    assert [row["label"] for row in found] == [f"class {k}" for k in range(20)]


def test_any_name_of_a_class_survives_the_files(tmp_path: Path) -> None:
    found = written(tmp_path, predictions(6), AWKWARD)
    assert [row["label"] for row in found[:6]] == list(AWKWARD)
    assert list(found[0])[6:] == [f"p({name})" for name in AWKWARD]
    matrix_KK = torch.arange(36).reshape(6, 6)
    table = rows(write_confusion(RunDirectory(tmp_path), "confusion.csv", matrix_KK, AWKWARD))
    assert [row.pop("label") for row in table] == list(AWKWARD)
    assert [[int(row[name]) for name in AWKWARD] for row in table] == matrix_KK.tolist()


def test_any_name_of_a_class_is_printed_as_it_is_in_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = printed(capsys, AWKWARD)
    assert all(part in out for name in AWKWARD for part in name.splitlines())
    assert "\x1b" not in out
    long = ("x" * 90, "hammerhead, " * 12, "cat")
    assert all(name in printed(capsys, long) for name in long)
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "80")
    printed(capsys, long)
    out = re.sub(r"\x1b\[[\d;]*m", "", screen.getvalue())
    assert max(map(len, out.splitlines())) <= 80
    assert "F1" in out
    assert "of the label's" in out


def test_a_path_is_cut_off_at_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [f"a/folder/with/a/long/name/image_{number:03}.png" for number in range(2)]
    for stream, shown in ((io.StringIO(), paths), (Terminal(), [f"…g/name/image_{n:03}.png" for n in range(2)])):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setenv("COLUMNS", "50")
        print_predictions(ImagePredictions(paths, torch.tensor([0, 1]), torch.eye(2)), ["cat", "dog"])
        assert [line.split()[0] for line in stream.getvalue().splitlines() if ".png" in line] == shown


def test_the_report_names_split_step_views_and_figures(capsys: pytest.CaptureFixture[str]) -> None:
    figures: dict[str, Any] = {"calibration_error": 0.0625, "top_k": {"2": 0.75}, "tta": "flip"}
    figures |= {"metrics": {"kappa": 0.125, "f1.a": 0.5, "area": 1.0}}  # without those of each class
    macro = {"precision": 0.125, "recall": 0.25, "f1": 0.375}
    first, second, third, *rest = printed(capsys, ("a", "b", "c"), macro=macro, **figures).splitlines()
    assert first == "val: accuracy 0.5000, loss 1.2500 on 200 images (step 7, test-time augmentation flip)"
    assert second == "top-2 accuracy 0.7500, expected calibration error 0.0625"
    assert third == "kappa 0.1250, area 1.0000"
    assert ["mean", "200", "0.1250", "0.2500", "0.3750"] in [line.split() for line in rest]
    assert any("most confused" in line for line in rest)
    assert "most confused" not in printed(capsys, ("a", "b", "c"), most_confused=[])


def test_of_many_classes_the_worst_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    count = MOST_CLASSES + 5
    names = tuple(f"class{k:02}" for k in range(count))
    rows = [
        {"class": name, "images": 4, "precision": 0.5, "recall": 0.5, "f1": k / 100} for k, name in enumerate(names)
    ]
    out = printed(capsys, names, per_class=rows[::-1], most_confused=[])
    shown = [line.split()[0] for line in out.splitlines() if line.startswith(" class") and "images" not in line]
    assert shown == list(names[:MOST_CLASSES])
    assert f"the {MOST_CLASSES} of {count} classes with the lowest F1" in out
