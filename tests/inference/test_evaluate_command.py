import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Answer, composed, ok, run
from fast_run import FAST, read_json, train_fast
from sklearn import metrics as sklearn_metrics
from sklearn.utils.class_weight import compute_class_weight
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import cnnlab
from cnnlab.cli import evaluate
from cnnlab.components import Trust
from cnnlab.config.check import check_config
from cnnlab.data.normalization import Normalization
from cnnlab.data.source import Images
from cnnlab.inference.evaluate_command import _top_k
from cnnlab.metrics import report
from cnnlab.run.loaders import read_training_data
from cnnlab.runtime.errors import ConfigError


def measured(path: Path, split: str, step: int) -> dict[str, Any]:
    return read_json(path / f"evaluation-{split}-step-{step:08d}.json")


def best_step(path: Path) -> int:
    step = read_json(path / "summary.json")["best"]["step"]
    assert isinstance(step, int)
    return step


def ask(path: Path, *overrides: str) -> Answer:
    return run(evaluate, f"run={path}", *overrides)


def figures(result: dict[str, Any]) -> dict[str, float]:
    return {name: result[name] for name in ("loss", "accuracy")}


def same(values: dict[str, float]) -> Any:
    """The same images were right; the loss is summed image by image there, batch by batch here."""
    return {"accuracy": values["accuracy"], "loss": pytest.approx(values["loss"], rel=1e-6)}


@pytest.fixture(scope="module")
def evaluated(completed_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """A copy of the completed run whose test split was evaluated, with nothing measured anew of the training images."""
    path = Path(shutil.copytree(completed_run, tmp_path_factory.mktemp("evaluated") / "run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Normalization, "fit", lambda *arguments: pytest.fail("measured anew"))
        answer = ask(path)
    assert answer.code == 0, answer.err
    return path, answer


def test_the_test_split_gives_what_the_run_measured(evaluated: tuple[Path, Answer]) -> None:
    path, answer = evaluated
    test = read_json(path / "summary.json")["test"]
    assert figures(measured(path, "test", best_step(path))) == same(test)
    assert f"test: accuracy {test['accuracy']:.4f}, loss {test['loss']:.4f} on 360 images" in answer.out
    assert f"step {best_step(path)}" in answer.out


def test_an_evaluation_changes_no_file_of_the_run_and_lists_what_it_wrote(
    evaluated: tuple[Path, Answer], completed_run: Path
) -> None:
    path, answer = evaluated

    def contents(run: Path) -> dict[Path, bytes]:
        return {file.relative_to(run): file.read_bytes() for file in run.rglob("*") if file.is_file()}

    before, after = contents(completed_run), contents(path)
    rewritten = Path("report.html")
    del before[rewritten]
    assert {name: after[name] for name in before} == before
    new = [str(name) for name in after.keys() - before.keys()]
    listed = [line.removeprefix("written to").strip() for line in answer.out.splitlines() if f"{path}/" in line]
    events = [name for name in new if name.startswith("events.out.tfevents")]
    assert len(events) == 1
    assert sorted([*listed, str(path / events[0])]) == sorted(str(path / name) for name in new)
    assert len(listed) == 6


def test_the_validation_split_gives_what_the_best_had(finished: Path) -> None:
    assert ask(finished, "split=val").code == 0
    best = read_json(finished / "summary.json")["best"]
    result = measured(finished, "val", best["step"])
    assert figures(result) == same({"accuracy": best["accuracy/val"], "loss": best["loss/val"]})


def test_averaged_weights_are_evaluated_where_validation_used_them(in_tmp_path: Path) -> None:
    train_fast("run_dir=run", "trainer.ema=0.9")
    path = in_tmp_path / "run"
    assert ask(path, "split=val", "checkpoint=last").code == 0
    result = measured(path, "val", 6)
    assert figures(result) == same(figures(validations(path)[-1]))


def assert_refused(answer: Answer, message: str) -> None:
    assert answer.code == 2
    assert answer.err.startswith(f"error: {message}")


def test_a_key_that_the_command_removed_is_missed(finished: Path) -> None:
    assert_refused(ask(finished, "~split"), "split: it is missing; expected all of run, split, ")


def test_a_run_without_a_validation_split_has_none_to_evaluate(in_tmp_path: Path) -> None:
    train_fast("run_dir=run", "data.validation.count=0", "trainer.monitor=null")
    assert_refused(ask(in_tmp_path / "run", "split=val"), "split: the run has no validation split")


def test_a_damaged_or_missing_checkpoint_is_refused(finished: Path) -> None:
    weights = finished / "checkpoints" / f"step-{best_step(finished):08d}" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    answer = ask(finished)
    assert_refused(answer, "checkpoint: ")
    assert "model.safetensors is damaged" in answer.err
    shutil.rmtree(finished / "checkpoints")
    assert_refused(ask(finished), "checkpoint: ")
    assert not list(finished.glob("evaluation-*"))


def test_changed_data_is_reported(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Images, "digest", lambda self: "0" * 64)
    assert_refused(ask(finished, "split=train"), "data: ")


def test_the_training_images_are_evaluated_as_they_are(in_tmp_path: Path) -> None:
    settings = ("data.limit=200", "+data.augment.noise={type: shift, pixels: 2}")
    assert train_fast("run_dir=run", *settings).code == 0
    path = in_tmp_path / "run"
    assert ask(path, "split=train").code == 0
    result = measured(path, "train", best_step(path))
    images = read_training_data(check_config(composed(FAST, *settings), Trust())).train
    predicted = [one.label for one in cnnlab.load(path).predict(images.x_NCHW)]
    right = [label == str(y) for label, y in zip(predicted, images.y_N.tolist(), strict=True)]
    assert (result["split"], result["images"], len(right)) == ("train", 200, 200)
    assert result["accuracy"] == np.mean(right)
    assert_agrees(path, f"train-step-{best_step(path):08d}", 5)


class Predicted:
    """`predictions-….csv` as arrays; classes by their place among `names`."""

    def __init__(self, path: Path) -> None:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        self.names = [column[2:-1] for column in rows[0] if column.startswith("p(")]
        place = {name: k for k, name in enumerate(self.names)}
        self.index_N = np.array([int(row["index"]) for row in rows])
        self.label_N = np.array([place[row["label"]] for row in rows])
        self.prediction_N = np.array([place[row["prediction"]] for row in rows])
        self.confidence_N = np.array([float(row["probability"]) for row in rows])
        self.loss_N = np.array([float(row["loss"]) for row in rows])
        self.rank_N = np.array([int(row["rank"]) for row in rows])
        self.p_NK = np.array([[float(row[f"p({name})"]) for name in self.names] for row in rows])

    def figures(self, top_k: int) -> dict[str, Any]:
        """What the evaluation should measure, from the file alone."""
        p_NK, label_N = torch.tensor(self.p_NK), torch.tensor(self.label_N)
        accuracy = np.mean(self.label_N == self.prediction_N)
        whole = {"images": len(self.label_N), "loss": self.loss_N.mean(), "accuracy": accuracy}
        return whole | report(p_NK, p_NK, label_N, self.names, top_k)


def near(value: Any) -> Any:
    """The same structure with numbers within 1e-6."""
    if isinstance(value, dict):
        return {key: near(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [near(inner) for inner in value]
    return value if isinstance(value, str) else pytest.approx(value, abs=1e-6)


def assert_agrees(path: Path, name: str, top_k: int) -> Predicted:
    """Every figure of an evaluation follows from its predictions."""
    result = read_json(path / f"evaluation-{name}.json")
    predicted = Predicted(path / f"predictions-{name}.csv")
    expected = predicted.figures(top_k)
    assert {key: result[key] for key in expected} == near(expected)
    assert predicted.p_NK.argmax(1).tolist() == predicted.prediction_N.tolist()
    assert predicted.p_NK.max(1).tolist() == predicted.confidence_N.tolist()
    own_N1 = predicted.p_NK[np.arange(len(predicted.label_N)), predicted.label_N][:, None]
    assert ((predicted.p_NK > own_N1).sum(1) + 1).tolist() == predicted.rank_N.tolist()
    with (path / f"confusion-{name}.csv").open(newline="") as file:
        head, *table = list(csv.reader(file))
    assert head == ["label", *predicted.names]
    assert [line[0] for line in table] == predicted.names
    assert [[int(count) for count in line[1:]] for line in table] == sklearn_metrics.confusion_matrix(
        predicted.label_N, predicted.prediction_N
    ).tolist()
    return predicted


def test_every_figure_follows_from_the_predictions(finished: Path) -> None:
    ask(finished, "split=val", "top_k=2", "tta=flip_shift")
    predicted = assert_agrees(finished, f"val-step-{best_step(finished):08d}-flip_shift", 2)
    assert len(set(predicted.index_N)) == 180


def test_each_kind_of_evaluation_has_files_of_its_own(evaluated: tuple[Path, Answer], in_tmp_path: Path) -> None:
    path = Path(shutil.copytree(evaluated[0], in_tmp_path / "run"))
    for overrides in (("tta=shift", "top_k=10"), ("split=val",), ("checkpoint=3",)):
        assert ask(path, *overrides).code == 0
    test = f"test-step-{best_step(path):08d}"
    names = {test, f"{test}-shift", f"val-step-{best_step(path):08d}", "test-step-00000003"}
    assert {file.stem.removeprefix("evaluation-") for file in path.glob("evaluation-*.json")} == names
    assert {file.stem.removeprefix("predictions-") for file in path.glob("predictions-*.csv")} == names
    assert {file.stem.removeprefix("confusion-") for file in path.glob("confusion-*.csv")} == names
    assert {file.stem.removeprefix("confusion-") for file in (path / "figures").iterdir()} == names
    assert measured(path, "test", 3)["checkpoint"] == "step-00000003"
    # the averaged outputs decide where there are several views
    plain, shifted = (Predicted(path / f"predictions-{test}{end}.csv") for end in ("", "-shift"))
    assert plain.index_N.tolist() == shifted.index_N.tolist()
    assert np.abs(plain.p_NK - shifted.p_NK).max() > 1e-3
    result = read_json(path / f"evaluation-{test}-shift.json")
    assert result["accuracy"] == (shifted.prediction_N == shifted.label_N).mean()
    assert result["top_k"] == {"10": 1.0}  # as many guesses as classes are always right


@pytest.mark.parametrize("top_k", [0, 11, 1.5, True, "all"])
def test_a_top_k_that_the_classes_do_not_allow_is_refused(top_k: Any) -> None:
    with pytest.raises(ConfigError, match="top_k: expected a whole number from 1 to 10, received "):
        _top_k(top_k, 10)


def test_saturated_outputs_are_correct_as_often_as_in_training(in_tmp_path: Path) -> None:
    """Inputs of 0…255 make logits of hundreds, and sigmoids of exactly 0 and 1 for several classes."""
    train_fast("run_dir=run", "model=linear", "data.normalize=none", "loss=bce", "optimizer.lr=0.5")
    path = in_tmp_path / "run"
    ask(path)
    step = best_step(path)
    p_NK = Predicted(path / f"predictions-test-step-{step:08d}.csv").p_NK
    assert ((p_NK == p_NK.max(1, keepdims=True)).sum(1) > 1).any()
    assert figures(measured(path, "test", step)) == same(read_json(path / "summary.json")["test"])


def validations(path: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["split"] == "val"]


@pytest.fixture(scope="module")
def with_metrics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("metrics") / "run"
    right, wrong = ("{type: accuracy, average: micro}", "{type: hamming_distance, average: micro}")
    recall = "{type: recall, average: none}"
    metrics = f"{{right: {right}, wrong: {wrong}, true_negatives: specificity, recall: {recall}}}"
    options = ("trainer.validate_every_steps=1", "optimizer.lr=0.2", "trainer.monitor=wrong/val")
    answer = ok(train_fast(f"run_dir={path}", f"+metrics={metrics}", *options))
    assert "right " in answer.out
    assert "recall." not in answer.out
    return path


def test_named_metrics_are_measured_at_every_validation(with_metrics: Path) -> None:
    log = validations(with_metrics)
    assert len(log) == 6
    for entry in log:
        assert entry["right"] == pytest.approx(entry["accuracy"], abs=1e-6)
        assert entry["wrong"] == pytest.approx(1 - entry["accuracy"], abs=1e-6)
        assert len([name for name in entry if name.startswith("recall.")]) == 10


def test_named_metrics_stand_in_the_summary_and_in_the_curves(with_metrics: Path) -> None:
    summary = read_json(with_metrics / "summary.json")
    assert summary["best"]["right/val"] == pytest.approx(summary["best"]["accuracy/val"], abs=1e-6)
    assert summary["test"]["right"] == pytest.approx(summary["test"]["accuracy"], abs=1e-6)
    events = EventAccumulator(str(with_metrics / "val"))
    events.Reload()
    logged = [event.value for event in events.Scalars("wrong/val")]
    assert logged == pytest.approx([entry["wrong"] for entry in validations(with_metrics)])
    assert "recall.3/val" in events.Tags()["scalars"]


def test_an_evaluation_gives_the_named_metrics_of_the_run(with_metrics: Path, in_tmp_path: Path) -> None:
    path = Path(shutil.copytree(with_metrics, in_tmp_path / "run"))
    answer = ask(path, "split=val")
    best = read_json(path / "summary.json")["best"]
    result = measured(path, "val", best["step"])["metrics"]
    assert result == near({name: best[f"{name}/val"] for name in result})
    assert list(result)[:3] == ["right", "wrong", "true_negatives"]
    assert result["recall.3"] == near(measured(path, "val", best["step"])["per_class"][3]["recall"])
    assert f"right {result['right']:.4f}, wrong {result['wrong']:.4f}, true_negatives" in answer.out


def test_a_named_metric_decides_which_checkpoint_is_best(with_metrics: Path) -> None:
    values = {entry["step"]: entry["wrong"] for entry in validations(with_metrics)}
    assert values[best_step(with_metrics)] == min(values.values()) < max(values.values())


def test_a_balanced_loss_is_evaluated_with_the_counts_of_training(in_tmp_path: Path) -> None:
    settings = ("loss=focal", "loss.weight=balanced", "data.limit=200")
    assert train_fast("run_dir=run", *settings).code == 0
    path = in_tmp_path / "run"
    ask(path)
    result = measured(path, "test", best_step(path))
    assert figures(result) == same(read_json(path / "summary.json")["test"])

    trained_on = read_training_data(check_config(composed(FAST, *settings), Trust())).train.y_N.numpy()
    assert len(trained_on) == 200
    weight_K = compute_class_weight("balanced", classes=np.arange(10), y=trained_on)
    predicted = Predicted(path / f"predictions-test-step-{best_step(path):08d}.csv")
    p_N = predicted.p_NK[np.arange(len(predicted.label_N)), predicted.label_N]
    by_hand_N = -weight_K[predicted.label_N] * (1 - p_N) ** 2 * np.log(p_N)
    np.testing.assert_allclose(predicted.loss_N, by_hand_N, rtol=1e-4)
    assert result["loss"] == pytest.approx(by_hand_N.mean(), rel=1e-5)


def test_a_balanced_loss_needs_every_class_among_the_training_images(in_tmp_path: Path) -> None:
    answer = train_fast("loss.weight=balanced", "data.limit=12", "data.batch_size=4")
    assert_refused(answer, "loss.weight: balanced needs images of every class, and class ")


def test_torchs_own_loss_is_evaluated(in_tmp_path: Path) -> None:
    ok(train_fast("run_dir=run", "loss={type: torch.nn.MultiMarginLoss, margin: 0.5}"))
    path = in_tmp_path / "run"
    ask(path)
    assert figures(measured(path, "test", best_step(path))) == same(read_json(path / "summary.json")["test"])
    assert_agrees(path, f"test-step-{best_step(path):08d}", 5)
