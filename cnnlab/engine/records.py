"""What the trainer logs. Observers read these; none of them steers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Started:
    """The run begins, or resumes after `step`: the first record that every observer gets.

    `hyperparameters` are what the command chose, by dotted key; `model_table` the layer table as text, `command` and
    `config` that of the run. `layers` are the boxes of the network: name, block, sources. `watched` is true if
    `Descent` records will follow. Images of other records are normalised: x = (value of 0…255 − `mean_C`) / `sd_C`.
    """

    directory: Path
    step: int
    total_steps: int | None
    epochs: int | None
    hyperparameters: dict[str, Any]
    model_table: str
    watched: bool = False
    command: str = ""
    config: str = ""
    layers: tuple["LayerNode", ...] = ()
    class_names: tuple[str, ...] = ()
    mean_C: tuple[float, ...] = ()
    sd_C: tuple[float, ...] = ()


@dataclass(frozen=True)
class LayerNode:
    """A layer by its `path`, as in `block1.conv1`; `sources` are the paths of layers before it, or `input`."""

    path: str
    block: str
    sources: tuple[str, ...]
    output_shape: tuple[int, ...]
    parameters: int


@dataclass(frozen=True)
class Metrics:
    """Numbers of one split at one step (an optimizer update, counted from 1) in one epoch (from 1).

    `final` marks what was measured once, after the end of training.
    """

    step: int
    epoch: int
    split: str
    values: dict[str, float]
    final: bool = False


@dataclass(frozen=True)
class Contribution:
    """One weight, such as `conv1.weight[3, 0, 1, 2]`, before an update, and ∂C/∂weight.

    Their product is, to first order, what the loss would fall by without the weight (arXiv 1611.06440, eq. 7).
    """

    name: str
    weight: float
    gradient: float

    @property
    def value(self) -> float:
        return self.weight * self.gradient


@dataclass(frozen=True)
class Descent:
    """One update of the weights v, watched: the batch's mean `loss` C over `images`, before and after it.

    `predicted_change` is ∇C·Δv, `loss_change` the ΔC that came of it; `correct` are correct predictions before, and
    `correct_change` how many more after. By layer, weight and bias together: `gradient_norm` ‖∇C‖, before clipping;
    `update_ratio` ‖Δv‖/‖v‖, without layers whose weights are all zero. By activation, fractions over the batch:
    `zero` outputs of a ReLU (z ≤ 0), `dead` units of it, zero for every image and place, and `saturated` outputs of
    a sigmoid or tanh, where the slope is less than a tenth of its steepest. `contributions` are the weights with the
    largest |w·∂C/∂w|, the largest first.
    """

    step: int
    epoch: int
    images: int
    loss: float
    loss_change: float
    predicted_change: float
    correct: int
    correct_change: int
    gradient_norm: dict[str, float]
    update_ratio: dict[str, float]
    zero: dict[str, float]
    dead: dict[str, float]
    saturated: dict[str, float]
    contributions: list[Contribution]


@dataclass(frozen=True)
class Snapshot:
    """The network after `step`, in evaluation mode over some images: the same of the validation split at each step.

    Without a validation split they are of that step's batch. `weights` and `gradients` of the mean loss by the
    parameter's name, `activations` (N, …) by the layer's. The tensors are the record's own, on the device.
    """

    step: int
    epoch: int
    weights: dict[str, Tensor]
    gradients: dict[str, Tensor]
    activations: dict[str, Tensor]
    x_NCHW: Tensor | None = None
    target: Tensor | None = None


@dataclass(frozen=True)
class TrainingImages:
    """The first images of a run's first batch, as they were augmented; `target` as in `Batch`."""

    step: int
    x_NCHW: Tensor
    target: Tensor


@dataclass(frozen=True)
class Mistake:
    """An image `x_CHW` with its index in its split; `label` and `prediction` are classes."""

    index: int
    x_CHW: Tensor
    label: int
    prediction: int
    probability: float  # of the prediction
    loss: float


@dataclass(frozen=True)
class Examined:
    """One split, image by image: the `mistakes` with the largest loss, the largest first, out of `images`.

    `positives` (K, T) counts for each class its images by their probability of it, in T steps from 0 to 1, and
    `negatives` those of other classes; None where there are too many classes.
    """

    step: int
    epoch: int
    split: str
    images: int
    mistakes: list[Mistake]
    positives: Tensor | None
    negatives: Tensor | None


@dataclass(frozen=True)
class Notice:
    """One sentence for the user."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The run is over. `metrics` are its last figures by tag, such as `accuracy/test`."""

    metrics: dict[str, float]


Record = Started | Metrics | Descent | Snapshot | TrainingImages | Examined | Notice | Finished
