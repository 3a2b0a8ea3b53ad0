"""Metrics: those that YAML names, measured at every validation, and the report of an evaluation.

The former are torchmetrics', which takes seconds to import: that happens only where they are used. Its metrics keep
sums and counts (those that need every prediction keep them), so that batches and ranks add.
"""

import inspect
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cnnlab.components import Component, Registry, bind
from cnnlab.runtime.distributed import gathered
from cnnlab.runtime.errors import Complaints, ConfigError, first_line, listing, no_such_key
from cnnlab.runtime.ranks import rank, world_size

if TYPE_CHECKING:
    from torchmetrics import Metric

# other names in a record
RESERVED = ("loss", "accuracy", "step", "epoch", "split", "final", "seconds", "images_per_second")
LARGEST_ARGUMENT = 100_000  # of whole numbers, such as thresholds and bins: a metric keeps counts for each
BINS = 15
MOST_CONFUSED = 10
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_BEFORE_A_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@dataclass(frozen=True)
class Measure:
    """A metric by its name in the config; `of_each_class` if it returns a number for each class."""

    name: str
    metric: "Metric"
    of_each_class: bool

    def names(self, class_names: Sequence[str]) -> list[str]:
        """`["f1"]`, or `["f1.cat", "f1.dog", …]`; a slash separates the name from its split."""
        if self.of_each_class:
            return [f"{self.name}.{of.replace('/', '_')}" for of in class_names]
        return [self.name]


def build_metrics(specs: Any, key: str, classes: int, complaints: Complaints) -> list[Measure]:
    """The metrics of a mapping of name → spec, such as `{f1: {type: f1_score, average: macro}}`.

    A type is torchmetrics' classification metric for several classes by its name in snake case (`f1_score`, `auroc`,
    `cohen_kappa`, …). Adds a complaint for one that is unknown, or returns neither one number nor one for each class.
    """
    if not isinstance(specs, Mapping):
        complaints.add(key, f"expected a mapping of name → metric, received {specs!r}")
        return []
    measures = []
    for name, spec in specs.items():
        place = f"{key}.{name}"
        if spec is None:
            continue
        if not _NAME.fullmatch(str(name)) or name in RESERVED:
            other = f"other than {listing(RESERVED)}"
            complaints.add(place, f"expected a name of small letters, digits and '_' {other}, received {name!r}")
            continue
        measure = _build(str(name), spec, place, classes, complaints)
        if measure:
            measures.append(measure)
    return measures


def _build(name: str, spec: Any, key: str, classes: int, complaints: Complaints) -> Measure | None:
    component = bind(
        spec,
        key,
        Registry("metric", metric_classes()),
        complaints,
        provided=("num_classes",),
        withheld=("num_classes",),
    )
    if component is None or not _check_arguments(component, complaints):
        return None
    try:
        metric: Metric = component.build(num_classes=classes, sync_on_compute=False)
        return Measure(name, metric, _probe(metric, key, classes))
    except ConfigError as error:
        complaints.add("", str(error))
        return None


def metric_classes() -> dict[str, Any]:
    """torchmetrics' classification metrics for several classes, by their names in snake case."""
    import torchmetrics.classification

    prefix = "Multiclass"
    return {
        _BEFORE_A_CAPITAL.sub("_", name.removeprefix(prefix)).lower(): value
        for name, value in vars(torchmetrics.classification).items()
        if name.startswith(prefix)
    }


def _check_arguments(component: Component, complaints: Complaints) -> bool:
    """False with complaints: torchmetrics takes any keyword, and allocates whatever it asks for."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    legal = [n for n, parameter in component.parameters.items() if parameter.kind in kinds and n != "num_classes"]
    unknown = [name for name in component.arguments if name not in legal]
    for name in unknown:
        complaints.add(f"{component.key}.{name}", no_such_key(name, legal))
    large = [name for name, value in component.arguments.items() if isinstance(value, int) and value > LARGEST_ARGUMENT]
    for name in large:
        received = component.arguments[name]
        complaints.add(f"{component.key}.{name}", f"expected at most {LARGEST_ARGUMENT:,}, received {received}")
    return not unknown and not large


def _probe(metric: "Metric", key: str, classes: int) -> bool:
    """True if a made-up batch is measured by a number for each class. Raises `ConfigError` for a curve or a table."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            metric.update(torch.full((classes, classes), 1 / classes), torch.arange(classes))
            value = metric.compute()
    except Exception as error:  # whatever torchmetrics raises for its arguments
        raise ConfigError(f"{key}: {first_line(error)}") from error
    of_five_kinds = type(metric).__name__ == "MulticlassStatScores"  # not of five classes
    if not isinstance(value, Tensor) or value.shape not in ((), (classes,)) or of_five_kinds:
        raise ConfigError(
            f"{key}: {type(metric).__name__} returns a curve or a table: expected a metric of one number, or of one "
            f"for each class, such as f1_score"
        )
    metric.reset()
    return value.dim() > 0


def _lower_is_better(metric: "Metric") -> bool:
    """As torchmetrics declares it; of the undeclared ones only the equal error rate is an error."""
    if metric.higher_is_better is None:
        return type(metric).__name__ == "MulticlassEER"
    return not metric.higher_is_better


class Meter:
    """Named metrics over a split: takes outputs and targets batch by batch; `read` resets.

    `probabilities` turns a batch's outputs into (N, K) in [0, 1]. A metric that measures each class is read as
    `f1.cat`, `f1.dog`, ….
    """

    def __init__(
        self,
        measures: Sequence[Measure],
        class_names: Sequence[str],
        probabilities: Callable[[Tensor], Tensor],
        device: torch.device,
    ) -> None:
        self.metrics = [(measure.names(class_names), measure.metric.to(device)) for measure in measures]
        self.probabilities = probabilities

    @property
    def lower_is_better(self) -> Collection[str]:
        return [name for names, metric in self.metrics if _lower_is_better(metric) for name in names]

    def update(self, output_NK: Tensor, target: Tensor) -> None:
        probability_NK = self.probabilities(output_NK)
        target_N = target if target.dim() == 1 else target.argmax(1)
        for _, metric in self.metrics:
            with _counting(metric):
                metric.update(probability_NK, target_N)

    def read(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for names, metric in self.metrics:
            if world_size() > 1:
                _merge(metric)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The ``compute`` method")  # of a rank without images
                values |= dict(zip(names, metric.compute().reshape(-1).tolist(), strict=True))
            metric.reset()
        return values


@contextmanager
def _counting(metric: "Metric") -> Iterator[None]:
    """Lets a metric that keeps whole numbers alone count without torch's deterministic algorithms.

    Its counts are the same in any order, and with these algorithms torchmetrics compares each image with every cell of
    a confusion matrix: 4 GB for 500 images of 1,000 classes.
    """
    is_on, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    states = metric.metric_state.values()
    if not is_on or any(not isinstance(state, Tensor) or state.is_floating_point() for state in states):
        yield
        return
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(is_on, warn_only=warns)


def _merge(metric: "Metric") -> None:
    """Gives the metric what all ranks have counted or collected; some may have had no image."""
    for number, state in enumerate(gathered(_moved(metric.metric_state, torch.device("cpu")))):
        if number != rank():
            metric.merge_state(_moved(state, metric.device))


def _moved(state: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: [one.to(device) for one in value] if isinstance(value, list) else value.to(device)
        for name, value in state.items()
    }


def report(
    output_NK: Tensor, probability_NK: Tensor, target_N: Tensor, class_names: Sequence[str], top_k: int
) -> dict[str, Any]:
    """Everything that follows from the predictions of a split, in plain values.

    Classes are ranked by the outputs: of float32 probabilities several can be exactly 0 or 1. Precision, recall and F1
    of a class that is never predicted, or has no images, are 0; `macro` is their mean over the classes that occur
    among labels or predictions.
    """
    prediction_N = output_NK.argmax(1)
    confusion_KK = confusion_matrix(prediction_N, target_N, len(class_names))
    right_K, predicted_K, labelled_K = confusion_KK.diagonal(), confusion_KK.sum(0), confusion_KK.sum(1)
    occurs_K = (predicted_K + labelled_K) > 0
    per_class = {  # 0/1 and not 0/0 for a class without predictions or images
        "precision": right_K / predicted_K.clamp_min(1),
        "recall": right_K / labelled_K.clamp_min(1),
        "f1": 2 * right_K / (predicted_K + labelled_K).clamp_min(1),
    }
    ranks_N = rank_of_label(output_NK, target_N)
    return {
        "top_k": {str(top_k): float((ranks_N <= top_k).double().mean())},
        "calibration_error": calibration_error(probability_NK.amax(1), prediction_N == target_N),
        "calibration": calibration_bins(probability_NK.amax(1), prediction_N == target_N),
        "macro": {name: float(values_K[occurs_K].double().mean()) for name, values_K in per_class.items()},
        "per_class": [
            {
                "class": name,
                "images": int(labelled_K[k]),
                **{metric: float(values_K[k]) for metric, values_K in per_class.items()},
            }
            for k, name in enumerate(class_names)
        ],
        "most_confused": most_confused(confusion_KK, class_names),
    }


def calibration_error(confidence_N: Tensor, correct_N: Tensor) -> float:
    """The expected calibration error with 15 bins (arXiv 1706.04599): Σ_b n_b/N · |accuracy_b − confidence_b|.

    torchmetrics sums confidences in float32, which is off by 1e-5 for 10,000 images with confidences near 1, and has
    a bin of their own for confidences of exactly 1.
    """
    confidence_N = confidence_N.double()
    excess_B = _sums(confidence_N, correct_N.double() - confidence_N)
    return float(excess_B.abs().sum() / len(confidence_N))


def calibration_bins(confidence_N: Tensor, correct_N: Tensor) -> list[dict[str, float]]:
    """The bins of `calibration_error` that hold images: how many, their mean confidence and their accuracy."""
    confidence_N = confidence_N.double()
    sums_3B = [_sums(confidence_N, values_N) for values_N in (torch.ones_like(confidence_N), confidence_N, correct_N)]
    return [
        {"images": int(images), "confidence": confidence / images, "accuracy": correct / images}
        for images, confidence, correct in zip(*(sums_B.tolist() for sums_B in sums_3B), strict=True)
        if images
    ]


def _sums(confidence_N: Tensor, values_N: Tensor) -> Tensor:
    """(B,) float64: the values summed by the bin of their confidence."""
    bin_N = (confidence_N * BINS).long().clamp(0, BINS - 1)
    return torch.zeros(BINS, dtype=torch.float64).index_add(0, bin_N, values_N.double())


def confusion_matrix(prediction_N: Tensor, target_N: Tensor, classes: int) -> Tensor:
    """(K, K) int64 counts: rows are labels, columns predictions."""
    pair_N = (target_N * classes + prediction_N).cpu()  # on CUDA torch counts in no fixed order, or refuses to
    return torch.bincount(pair_N, minlength=classes**2).reshape(classes, classes)


def rank_of_label(output_NK: Tensor, target_N: Tensor) -> Tensor:
    """(N,) int64: 1 where the label has the largest output; of equal ones the lower class comes first."""
    own_N1 = output_NK.gather(1, target_N[:, None])
    before_NK = torch.arange(output_NK.shape[1], device=target_N.device) < target_N[:, None]
    ahead_NK = (output_NK > own_N1) | ((output_NK == own_N1) & before_NK)
    return ahead_NK.sum(1) + 1


def most_confused(confusion_KK: Tensor, class_names: Sequence[str], most: int = MOST_CONFUSED) -> list[dict[str, Any]]:
    """The pairs (label, prediction) with most mistakes; `fraction` is of the label's images."""
    mistakes_KK = confusion_KK.clone().fill_diagonal_(0)
    order = mistakes_KK.flatten().argsort(descending=True, stable=True)[:most]
    pairs = [divmod(int(place), len(class_names)) for place in order]
    return [
        {
            "label": class_names[label],
            "prediction": class_names[prediction],
            "images": int(mistakes_KK[label, prediction]),
            "fraction": float(mistakes_KK[label, prediction] / confusion_KK[label].sum()),
        }
        for label, prediction in pairs
        if mistakes_KK[label, prediction] > 0
    ]
