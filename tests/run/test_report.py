import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from commands import ok, run
from fast_run import read_json

from cnnlab.cli import evaluate
from cnnlab.components import Trust
from cnnlab.inference.saved_run import SavedRun
from cnnlab.run.files import RunDirectory
from cnnlab.run.report import History, figure_title, panels, write_report
from cnnlab.visualization.page import page, text

HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m\u202e"


class Page(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.shown = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.shown += data


def report(path: Path) -> str:
    return (path / "report.html").read_text(encoding="utf-8")


def test_training_writes_a_page_with_its_curves_network_data_command_and_config(completed_run: Path) -> None:
    content = report(completed_run)
    shown = Page(content)
    headings = re.findall(r"<h2>(.*?)</h2>", content)
    assert headings == ["Curves", "Evaluation", "Network", "Data", "Command", "Environment", "Config"]
    assert content.count("<svg") == 4  # loss, accuracy, learning rate, classes
    accuracy = read_json(completed_run / "summary.json")["test"]["accuracy"]
    assert f"{100 * accuracy:.2f} %test accuracy" in shown.shown
    assert "train 1,257" in shown.shown
    assert "train.py experiment=debug/fast" in shown.shown
    assert (completed_run / "model.txt").read_text(encoding="utf-8").splitlines()[-1] in shown.shown
    assert "deterministic" in shown.shown
    assert "drop_last: true" in shown.shown or "drop_last: false" in shown.shown


def test_the_page_loads_nothing_and_runs_nothing(completed_run: Path) -> None:
    elements = Page(report(completed_run)).elements
    sources = [value for _, given in elements for name, value in given.items() if name in ("src", "href")]
    assert sources
    assert all(str(source).startswith(("data:image/", "#")) for source in sources)
    assert "script" not in {tag for tag, _ in elements}
    (policy,) = [given["content"] for _, given in elements if given.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy).startswith("default-src 'none'")


def test_an_evaluation_adds_figures_calibration_and_curves(finished: Path) -> None:
    answer = ok(run(evaluate, f"run={finished}"))
    assert f"{finished}/report.html" in answer.out
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    (result,) = [read_json(path) for path in finished.glob("evaluation-*.json")]
    shown = Page(report(finished)).shown
    assert "Confusion matrix of the test split" in shown
    assert "Calibration: accuracy over confidence" in shown
    assert "".join(map(str, ("0", result["per_class"][0]["images"]))) in shown
    bins = result["calibration"]
    assert sum(one["images"] for one in bins) == 360
    assert sum(one["accuracy"] * one["images"] for one in bins) == pytest.approx(result["accuracy"] * 360)


def test_a_run_without_its_data_gets_its_page_before_the_refusal(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (finished / "report.html").unlink()
    summary = read_json(finished / "summary.json")
    (finished / "summary.json").write_text(json.dumps(summary | {"status": "interrupted"}), encoding="utf-8")
    monkeypatch.setattr("cnnlab.data.source.Images.digest", lambda self: "0" * 64)
    answer = run(evaluate, f"run={finished}")
    assert answer.code == 2
    assert answer.err.startswith("error: data: ")
    assert "Status: interrupted." in Page(report(finished)).shown


def test_names_from_elsewhere_are_text() -> None:
    content = page(HOSTILE, f"<p>{text(HOSTILE)}</p>", [(HOSTILE, text(HOSTILE))])
    found = Page(content)
    assert "img" not in {tag for tag, _ in found.elements}
    assert "<img src=x onerror=alert(1)>\\x1b[31m\\u202e" in found.shown
    assert "\x1b" not in content


def rewrite(path: Path, class_names: tuple[str, ...] | None = None) -> Page:
    """The page of a run written anew; with other names of classes, as if its data had those."""
    saved = SavedRun.open(path, "best", "cpu", Trust(), {})
    plan = (
        saved.plan
        if class_names is None
        else replace(saved.plan, spec=replace(saved.plan.spec, class_names=class_names))
    )
    counts = list(range(1, 1 + len(plan.spec.class_names)))
    return Page(write_report(RunDirectory(path), plan, counts).read_text(encoding="utf-8"))


def test_of_a_thousand_classes_a_part_is_shown_with_a_note(finished: Path) -> None:
    ok(run(evaluate, f"run={finished}"))
    (evaluation,) = finished.glob("evaluation-*.json")
    result = read_json(evaluation)
    row = result["per_class"][0]
    result["per_class"] = [row | {"class": f"class{number}", "f1": number / 1000} for number in range(1000)]
    evaluation.write_text(json.dumps(result), encoding="utf-8")
    shown = rewrite(finished, tuple(f"class{number}" for number in range(1000))).shown
    assert "The 30 of 1,000 classes with the lowest F1." in shown
    assert "Of 1,000 classes the 25 with most images and the 5 with fewest." in shown
    assert "class29" in shown
    assert "class500" not in shown


def test_a_planted_figure_or_evaluation_does_no_harm(finished: Path) -> None:
    ok(run(evaluate, f"run={finished}"))
    (evaluation,) = finished.glob("evaluation-*.json")
    result = read_json(evaluation)
    result["per_class"][0]["class"] = HOSTILE
    (finished / "evaluation-odd.json").write_text(json.dumps(result), encoding="utf-8")
    (finished / "evaluation-other.json").write_text('{"split": 3}', encoding="utf-8")
    shutil.copy(next((finished / "figures").iterdir()), finished / "figures" / "<b onclick=x>.png")
    content = rewrite(finished)
    assert "b" not in {tag for tag, given in content.elements if given}
    assert "<b onclick=x>" in content.shown
    assert "onerror=alert(1)>\\x1b[31m" in content.shown
    assert "evaluation-other.json is not as this version writes it" in content.shown


def test_a_line_cut_short_and_values_that_are_not_finite_leave_gaps(tmp_path: Path) -> None:
    lines = [
        '{"step": 4, "epoch": 1, "split": "train", "loss": 2.0, "lr": 0.1}',
        '{"step": 8, "epoch": 1, "split": "train", "loss": null, "lr": 0.1}',
        '{"step": 8, "epoch": 1, "split": "val", "loss": 1.5}',
        '{"step": 12, "spl',
        "[1]",
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (loss, curves), (lr, _) = panels(History.read(tmp_path / "metrics.jsonl"), 8)
    assert (loss, lr) == ("loss", "learning rate")
    assert [(one.name, list(one.points)) for one in curves] == [
        ("training", [(0.5, 2.0), (1.0, None)]),
        ("validation", [(1.0, 1.5)]),
    ]
    assert panels(History.read(tmp_path / "none"), 8) == []


@pytest.mark.parametrize(
    ("name", "title"),
    [
        (
            "confusion-val-step-00000042-flip.png",
            "Confusion matrix of the val split: labels in rows, predictions in columns (step 42, test-time "
            "augmentation flip)",
        ),
        ("maps-relu2-test-7-step-00000003.png", "What relu2 responds to in image 7 of the test split (step 3)"),
        (
            "explain/exciting-relu2-test-step-00000003.png",
            "Images that excite the channels of relu2 most, test split (step 3)",
        ),
        ("explain/grad_cam-conv1.png", "explain: grad cam conv1"),
    ],
)
def test_a_figure_is_named_by_what_it_shows(name: str, title: str) -> None:
    assert figure_title(Path(name)) == title
