"""A network over a whole split: its figures, or every prediction."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from cnnlab.engine.execution import Execution
from cnnlab.engine.step import count_correct
from cnnlab.engine.tally import Tally
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.eval_mode import in_evaluation_mode

View = Callable[[Tensor], Tensor]


class Meter(Protocol):
    """Takes each batch's outputs and targets; `read` gives its figures by name and starts anew."""

    @property
    def lower_is_better(self) -> Collection[str]: ...
    def update(self, output_NK: Tensor, target: Tensor) -> None: ...
    def read(self) -> dict[str, float]: ...


@torch.no_grad()
def evaluate(
    network: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    batches: Iterable[Batch],
    execution: Execution,
    meter: Meter | None = None,
) -> dict[str, float]:
    """`{"loss", "accuracy"}` and what the meter reads, in evaluation mode; every module is left in its own mode."""
    tally = Tally()
    with in_evaluation_mode(network, *([loss] if isinstance(loss, nn.Module) else [])):
        for batch in batches:
            with execution.autocast(batch.x_NCHW.device):
                output_NK = network(execution.arrange(batch.x_NCHW))
                mean_loss = loss(output_NK, batch.target)
            tally.add(mean_loss, count_correct(output_NK, batch.target), batch.index_N)
            if meter:
                meter.update(output_NK, batch.target)
    return tally.read() | (meter.read() if meter else {})


@dataclass(frozen=True)
class Outputs:
    """What a network said of each image, on the CPU: `output_NK` float32, `target_N`, `index_N` as in `Batch`."""

    output_NK: Tensor
    target_N: Tensor
    index_N: Tensor


@torch.no_grad()
def collect(network: nn.Module, batches: Iterable[Batch], execution: Execution, views: Sequence[View] = ()) -> Outputs:
    """One pass in evaluation mode. With `views` (test-time augmentation) the output is the mean over them.

    The batches need images.
    """
    parts = []
    with in_evaluation_mode(network):
        for batch in batches:
            seen = [view(batch.x_NCHW) for view in views] or [batch.x_NCHW]
            with execution.autocast(batch.x_NCHW.device):
                outputs = [network(execution.arrange(x_NCHW)).float() for x_NCHW in seen]
            output_NK = outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(0)
            parts.append((output_NK.cpu(), batch.target.cpu(), batch.index_N.cpu()))
    output_NK, target_N, index_N = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Outputs(output_NK, target_N, index_N)


def _identity(x_NCHW: Tensor) -> Tensor:
    return x_NCHW


def _mirrored(x_NCHW: Tensor) -> Tensor:
    return x_NCHW.flip(3)


def _shifted(rows: int, columns: int) -> View:
    """Moves the image by whole pixels; what comes in repeats the edge."""

    def shift(x_NCHW: Tensor) -> Tensor:
        height, width = x_NCHW.shape[2:]
        padded = nn.functional.pad(x_NCHW, (1, 1, 1, 1), mode="replicate")
        return padded[:, :, 1 - rows : 1 - rows + height, 1 - columns : 1 - columns + width]

    return shift


_SHIFTS = (_identity, *(_shifted(rows, columns) for rows, columns in ((-1, 0), (1, 0), (0, -1), (0, 1))))
# what test-time augmentation shows the network of each image, the image itself among it
VIEWS: Mapping[str, tuple[View, ...]] = {
    "none": (),
    "flip": (_identity, _mirrored),
    "shift": _SHIFTS,
    "flip_shift": (*_SHIFTS, *(lambda x_NCHW, shift=shift: shift(_mirrored(x_NCHW)) for shift in _SHIFTS)),
}
