"""Named metrics and the report of an evaluation, against NumPy and scikit-learn."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch import Tensor

from cnnlab.losses import CrossEntropy, probabilities
from cnnlab.metrics import (
    Measure,
    Meter,
    build_metrics,
    calibration_error,
    confusion_matrix,
    metric_classes,
    most_confused,
    rank_of_label,
    report,
)
from cnnlab.runtime.errors import Complaints

NAMES = ("ant", "bee", "cat", "dog", "eel")
# what a metric cannot be built without
NEEDED = {
    "f_beta_score": {"beta": 2.0},
    "precision_at_fixed_recall": {"min_recall": 0.5},
    "recall_at_fixed_precision": {"min_precision": 0.5},
    "sensitivity_at_specificity": {"min_specificity": 0.5},
    "specificity_at_sensitivity": {"min_sensitivity": 0.5},
}
NO_NUMBER = {"confusion_matrix", "roc", "precision_recall_curve", "stat_scores", *(n for n in NEEDED if "_at_" in n)}
LOWER_IS_BETTER = {"calibration_error", "eer", "hamming_distance", "hinge_loss"}


def predictions(
    count: int = 200, *, labels: int = 4, seed: int = 0, sure: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, their probabilities and labels of five classes: `bee` is never predicted, `eel` has no images."""
    generator = torch.Generator().manual_seed(seed)
    target_N = torch.randint(0, labels, (count,), generator=generator)
    output_NK = sure * (torch.randn(count, 5, generator=generator) + 1.5 * torch.eye(5)[target_N])
    output_NK[:, 1] = output_NK.amin(1) - 1
    return output_NK, output_NK.softmax(1), target_N


def built(specs: Any, classes: int = 5) -> list[Measure]:
    complaints = Complaints()
    measures = build_metrics(specs, "metrics", classes, complaints)
    assert complaints.messages == []
    return measures


def complaint(specs: Any) -> str:
    """The only complaint about the metrics."""
    complaints = Complaints()
    assert build_metrics(specs, "metrics", 5, complaints) == []
    (message,) = complaints.messages
    return message


def meter(**specs: Any) -> Meter:
    return Meter(built(specs), NAMES, lambda output_NK: probabilities(CrossEntropy(), output_NK), torch.device("cpu"))


def test_the_report_gives_the_figures_of_scikit_learn() -> None:
    output_NK, probability_NK, target_N = predictions()
    found = report(output_NK, probability_NK, target_N, NAMES, 2)
    expected = sklearn_metrics.precision_recall_fscore_support(
        target_N, output_NK.argmax(1), labels=range(5), zero_division=0.0
    )
    assert [row["class"] for row in found["per_class"]] == list(NAMES)
    for name, values_K in zip(("precision", "recall", "f1", "images"), expected, strict=True):
        assert [row[name] for row in found["per_class"]] == pytest.approx(values_K.tolist(), abs=1e-6), name
    macro = sklearn_metrics.precision_recall_fscore_support(
        target_N, output_NK.argmax(1), average="macro", zero_division=0.0
    )
    assert list(found["macro"].values()) == pytest.approx(macro[:3], abs=1e-6)
    hits = sklearn_metrics.top_k_accuracy_score(target_N, probability_NK, k=2, labels=range(5))
    assert found["top_k"] == {"2": pytest.approx(hits)}


def test_a_class_counts_in_the_mean_where_it_occurs_or_is_predicted() -> None:
    output_NK = torch.eye(3)[torch.tensor([0, 2, 2])]
    found = report(output_NK, output_NK.softmax(1), torch.tensor([0, 2, 2]), ("a", "b", "c"), 1)
    assert found["per_class"][1] == {"class": "b", "images": 0, "precision": 0, "recall": 0, "f1": 0}
    assert found["macro"] == {"precision": 1, "recall": 1, "f1": 1}
    output_NK = torch.eye(3)[torch.tensor([0, 0, 1])]
    found = report(output_NK, output_NK.softmax(1), torch.tensor([0, 0, 0]), ("a", "b", "c"), 1)
    assert found["macro"] == pytest.approx({"precision": 0.5, "recall": 1 / 3, "f1": 0.4})  # means over a and b


def binned(confidence_N: np.ndarray, correct_N: np.ndarray) -> float:
    """The expected calibration error as arXiv 1706.04599 writes it, bin by bin."""
    total = 0.0
    for b in range(15):
        last = b == 14
        inside_N = (confidence_N >= b / 15) & ((confidence_N < (b + 1) / 15) | last)
        if inside_N.any():
            total += inside_N.mean() * abs(correct_N[inside_N].mean() - confidence_N[inside_N].mean())
    return total


@pytest.mark.parametrize("sure", [1.0, 100.0])
def test_the_calibration_error_is_that_of_fifteen_bins(sure: float) -> None:
    output_NK, probability_NK, target_N = predictions(sure=sure)
    confidence_N, correct_N = probability_NK.amax(1), output_NK.argmax(1) == target_N
    expected = binned(confidence_N.double().numpy(), correct_N.numpy())
    assert calibration_error(confidence_N, correct_N) == pytest.approx(expected, abs=1e-12)
    assert report(output_NK, probability_NK, target_N, NAMES, 1)["calibration_error"] == pytest.approx(expected)


def test_a_confidence_of_exactly_one_is_in_the_last_bin() -> None:
    # 0.95 and 1 share a bin: |(0 + 1)/2 − 0.975|
    assert calibration_error(torch.tensor([0.95, 1.0]), torch.tensor([False, True])) == pytest.approx(0.475)
    assert calibration_error(torch.full((4,), 0.75), torch.tensor([True, True, True, False])) == 0


def test_the_confusion_matrix_has_a_row_for_each_label() -> None:
    matrix_KK = confusion_matrix(torch.tensor([0, 2, 2, 1]), torch.tensor([0, 0, 0, 1]), 3)
    assert matrix_KK.tolist() == [[1, 0, 2], [0, 1, 0], [0, 0, 0]]


def test_the_rank_is_that_of_the_label_and_of_equal_outputs_the_lower_class_comes_first() -> None:
    assert rank_of_label(torch.tensor([[0.1, 0.6, 0.3]] * 3), torch.tensor([0, 1, 2])).tolist() == [3, 1, 2]
    output_NK = torch.tensor([[0.5, 0.0, 0.5, 0.5]] * 4)
    ranks_N = rank_of_label(output_NK, torch.arange(4))
    assert ranks_N.tolist() == [1, 4, 2, 3]
    assert (ranks_N == 1).tolist() == (output_NK.argmax(1) == torch.arange(4)).tolist()


def test_classes_whose_probabilities_are_all_exactly_one_are_distinguished() -> None:
    output_NK = torch.tensor([[30.0, 60.0, 90.0, -5.0, -5.0]])
    assert output_NK.sigmoid()[0, :3].tolist() == [1, 1, 1]
    found = report(output_NK, output_NK.sigmoid(), torch.tensor([2]), NAMES, 1)
    assert found["top_k"] == {"1": 1.0}
    assert found["per_class"][2]["f1"] == 1
    assert found["most_confused"] == []


def test_most_confused_begins_with_most_mistakes_and_leaves_out_none() -> None:
    matrix_KK = torch.tensor([[5, 3, 0], [1, 9, 0], [3, 0, 0]])
    assert most_confused(matrix_KK, ("a", "b", "c")) == [
        {"label": "a", "prediction": "b", "images": 3, "fraction": 0.375},
        {"label": "c", "prediction": "a", "images": 3, "fraction": 1.0},
        {"label": "b", "prediction": "a", "images": 1, "fraction": pytest.approx(0.1)},
    ]
    assert [pair["images"] for pair in most_confused(matrix_KK, ("a", "b", "c"), most=1)] == [3]
    assert matrix_KK.diagonal().tolist() == [5, 9, 0]


@pytest.mark.parametrize("name", sorted(metric_classes()))
def test_every_metric_of_one_number_can_be_built_by_its_name(name: str) -> None:
    specs = {"mine": {"type": name, **NEEDED.get(name, {})}}
    if name in NO_NUMBER:
        assert "returns a curve or a table: expected a metric of one number" in complaint(specs)
        return
    (measure,) = built(specs)
    names = measure.names(NAMES)
    assert names == ([f"mine.{of}" for of in NAMES] if measure.of_each_class else ["mine"])
    own = Meter([measure], NAMES, lambda probability_NK: probability_NK, torch.device("cpu"))
    _, probability_NK, target_N = predictions(labels=5)
    own.update(probability_NK, target_N)
    assert list(own.read()) == names
    assert bool(own.lower_is_better) is (name in LOWER_IS_BETTER)


def test_a_meter_measures_batches_as_the_whole() -> None:
    output_NK, _, target_N = predictions(labels=5)
    measured = meter(f1="f1_score", kappa="cohen_kappa", area="auroc", recall={"type": "recall", "average": "none"})
    for part in torch.arange(200).split([1, 99, 64, 36]):
        measured.update(output_NK[part], target_N[part])
    predicted_N = output_NK.argmax(1)
    recall_K = sklearn_metrics.recall_score(target_N, predicted_N, average=None)
    expected = {
        "f1": sklearn_metrics.f1_score(target_N, predicted_N, average="macro"),
        "kappa": sklearn_metrics.cohen_kappa_score(target_N, predicted_N),
        "area": sklearn_metrics.roc_auc_score(target_N, output_NK.double().softmax(1), multi_class="ovr"),
        **{f"recall.{name}": value for name, value in zip(NAMES, recall_K, strict=True)},
    }
    found = measured.read()
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("kind", "uses_them"), [("f1_score", False), ("calibration_error", True)])
def test_whole_numbers_are_counted_without_deterministic_algorithms(
    kind: str, uses_them: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With them torchmetrics needs N · K² numbers for a confusion matrix; sums of fractions need them."""
    measured = meter(one=kind)
    ((_, metric),) = measured.metrics
    update, seen = metric.update, []

    def noted(*arguments: Tensor) -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())
        update(*arguments)

    monkeypatch.setattr(metric, "update", noted)
    output_NK, _, target_N = predictions(labels=5)
    measured.update(output_NK, target_N)
    plain = measured.read()
    torch.use_deterministic_algorithms(True)
    try:
        measured.update(output_NK, target_N)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen == [False, uses_them]
    assert measured.read() == plain


def test_a_meter_starts_anew_once_it_was_read_and_takes_class_probabilities() -> None:
    measured = meter(right={"type": "accuracy", "average": "micro"})
    measured.update(torch.eye(5), 0.6 * torch.eye(5) + 0.1)
    assert measured.read() == {"right": 1}
    measured.update(torch.eye(5), torch.tensor([0, 1, 2, 0, 0]))
    assert measured.read() == {"right": pytest.approx(0.6)}


def test_metrics_of_each_class_have_its_name_and_the_direction_of_their_kind() -> None:
    (measure,) = built({"f1": {"type": "f1_score", "average": "none"}, "left_out": None}, classes=2)
    assert measure.names(["cat/dog", "a.b"]) == ["f1.cat_dog", "f1.a.b"]  # a slash would part it from its split
    measured = meter(wrong={"type": "hamming_distance", "average": None}, right={"type": "recall", "average": None})
    assert set(measured.lower_is_better) == {f"wrong.{name}" for name in NAMES}


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ({"f1": "f1_scor"}, "metrics.f1: there is no metric 'f1_scor'; did you mean 'f1_score'?"),
        ({"f1": {"type": "f1_score", "averge": "macro"}}, "metrics.f1.averge: there is no such key; did you mean"),
        ({"f1": {"type": "f1_score", "average": "makro"}}, "metrics.f1.average: expected one of micro, macro"),
        ({"f1": {"type": "f1_score", "num_classes": 3}}, "metrics.f1.num_classes: "),
        ({"f1": {"type": "f1_score", "top_k": 6}}, "metrics.f1: "),
        ({"f1": {"average": "macro"}}, "metrics.f1: expected a mapping with a 'type'"),
        ({"f1": 5}, "metrics.f1: expected a name or a mapping with a 'type', received 5"),
        ({"f": "f_beta_score"}, "metrics.f.beta: f_beta_score needs it, and it is missing"),
        ({"roc": "roc"}, "metrics.roc: MulticlassROC returns a curve or a table"),
        ({"F1": "f1_score"}, "metrics.F1: expected a name of small letters"),
        ({"loss": "f1_score"}, "metrics.loss: "),  # a record has it already
        ({"seconds": "f1_score"}, "metrics.seconds: "),
        # more would take all memory
        ({"a": {"type": "auroc", "thresholds": 10**11}}, "metrics.a.thresholds: expected at most 100,000, received 1"),
        ({"a": {"type": "calibration_error", "n_bins": 10**30}}, "metrics.a.n_bins: expected at most 100,000"),
        ("f1_score", "metrics: expected a mapping of name → metric, received 'f1_score'"),
    ],
)
def test_a_metric_that_cannot_be_had_is_complained_of(specs: Any, message: str) -> None:
    assert complaint(specs).startswith(message)


def test_every_mistake_is_reported() -> None:
    complaints = Complaints()
    build_metrics({"a": "f1_scor", "b": {"type": "recall", "x": 1, "y": 2}}, "metrics", 5, complaints)
    assert [message.split(":")[0] for message in complaints.messages] == ["metrics.a", "metrics.b.x", "metrics.b.y"]
