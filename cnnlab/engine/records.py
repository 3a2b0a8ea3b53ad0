"""What the trainer logs. Observers read these; none of them steers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Started:
    """The run begins, or resumes after `step`: the first record that every observer gets.

    `hyperparameters` are what the command chose, by dotted key; `model_table` the layer table as text. `watched` is
    true if `Descent` records will follow.
    """

    directory: Path
    step: int
    total_steps: int | None
    epochs: int | None
    hyperparameters: dict[str, Any]
    model_table: str
    watched: bool = False


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
    """The network after `step`, in evaluation mode over some images of that step's batch.

    `weights` and `gradients` of the mean loss by the parameter's name, `activations` (N, …) by the layer's. The tensors
    are the record's own, on the device.
    """

    step: int
    epoch: int
    weights: dict[str, Tensor]
    gradients: dict[str, Tensor]
    activations: dict[str, Tensor]


@dataclass(frozen=True)
class Notice:
    """One sentence for the user."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The run is over. `metrics` are its last figures by tag, such as `accuracy/test`."""

    metrics: dict[str, float]


Record = Started | Metrics | Descent | Snapshot | Notice | Finished
