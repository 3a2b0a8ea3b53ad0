"""A network evaluated over a whole split: its figures, and every output on request."""

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from cnnlab.engine.execution import Execution
from cnnlab.engine.step import count_correct
from cnnlab.engine.tally import Tally
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.distributed import gathered
from cnnlab.runtime.eval_mode import in_evaluation_mode

View = Callable[[Tensor], Tensor]
Views = Mapping[View, float]  # each with its weight; they sum to 1


class Meter(Protocol):
    """Takes each batch's outputs and targets; `read` returns its figures by name and resets."""

    @property
    def lower_is_better(self) -> Collection[str]: ...
    def update(self, output_NK: Tensor, target: Tensor) -> None: ...
    def read(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class Outputs:
    """A network's output for each image, on the CPU: `output_NK` float32, `target_N`, `index_N` as in `Batch`."""

    output_NK: Tensor
    target_N: Tensor
    index_N: Tensor

    def ordered(self, index_N: Tensor) -> "Outputs":
        """The same outputs, as the images with these indices are ordered."""
        order_N = self.index_N.argsort()[index_N.argsort().argsort()]
        return Outputs(self.output_NK[order_N], self.target_N[order_N], self.index_N[order_N])


class Receiver(Protocol):
    """Takes the outputs of a pass batch by batch."""

    def add(self, output_NK: Tensor, batch: Batch) -> None: ...


class Collector:
    """Gathers the outputs of a pass batch by batch; those of all ranks, one rank after the other."""

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, output_NK: Tensor, batch: Batch) -> None:
        self._batches.append((output_NK.float().cpu(), batch.target.cpu(), batch.index_N.cpu()))

    def read(self) -> Outputs:
        batches = itertools.chain(*gathered(self._batches))
        return Outputs(*(torch.cat(tensors) for tensors in zip(*batches, strict=True)))


@torch.no_grad()
def evaluate(
    network: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    batches: Iterable[Batch],
    execution: Execution,
    meter: Meter | None = None,
    *,
    views: Views | None = None,
    collector: Receiver | None = None,
) -> dict[str, float]:
    """`{"loss", "accuracy"}` and what the meter reads, in evaluation mode; every module is left in its own mode.

    Each rank evaluates the batches that it has, and returns the figures of all. With `views` (test-time augmentation)
    an image's output is the weighted mean over them. A `collector` gets every output of this rank.
    """
    tally = Tally()
    with in_evaluation_mode(network, *([loss] if isinstance(loss, nn.Module) else [])):
        for batch in batches:
            if not len(batch):  # a rank may have no image of a small last batch
                continue
            output_NK = _output(network, batch, execution, views)
            with execution.autocast(batch.x_NCHW.device):
                mean_loss = loss(output_NK, batch.target)
            tally.add(mean_loss, count_correct(output_NK, batch.target), batch.index_N)
            if meter:
                meter.update(output_NK, batch.target)
            if collector:
                collector.add(output_NK, batch)
    tally.merge(next((parameter.device for parameter in network.parameters()), torch.device("cpu")))
    return tally.read() | (meter.read() if meter else {})


@torch.no_grad()
def collect(network: nn.Module, batches: Iterable[Batch], execution: Execution, views: Views | None = None) -> Outputs:
    """The outputs alone, for images without labels: one pass in evaluation mode. The batches need images."""
    collector = Collector()
    with in_evaluation_mode(network):
        for batch in batches:
            collector.add(_output(network, batch, execution, views), batch)
    return collector.read()


def _output(network: nn.Module, batch: Batch, execution: Execution, views: Views | None) -> Tensor:
    """The mean output over the views, float32; without views that of the images, in the precision of the execution."""
    with execution.autocast(batch.x_NCHW.device):
        if not views:
            output_NK: Tensor = network(execution.arrange(batch.x_NCHW))
            return output_NK
        seen = [(view(batch.x_NCHW), weight) for view, weight in views.items()]  # before a layer may work in place
        weighted = [network(execution.arrange(x_NCHW)).float() * weight for x_NCHW, weight in seen]
        return torch.stack(weighted).sum(0)


def _identity(x_NCHW: Tensor) -> Tensor:
    return x_NCHW


def _mirrored(x_NCHW: Tensor) -> Tensor:
    return x_NCHW.flip(3)


def _shifted(rows: int, columns: int, mode: str = "replicate") -> View:
    """Moves the image by whole pixels; what comes in repeats the edge, or mirrors what is next to it."""

    def shift(x_NCHW: Tensor) -> Tensor:
        height, width = x_NCHW.shape[2:]
        usable = mode if min(height, width) > 1 else "replicate"  # one pixel has nothing next to it
        padded = nn.functional.pad(x_NCHW, (1, 1, 1, 1), mode=usable)
        return padded[:, :, 1 - rows : 1 - rows + height, 1 - columns : 1 - columns + width]

    return shift


def _alike(*views: View) -> Views:
    return dict.fromkeys(views, 1 / max(1, len(views)))


def _mirrored_too(views: Views) -> Views:
    """Each view and its mirror image, of half its weight each."""
    mirrored = {(lambda x_NCHW, view=view: view(_mirrored(x_NCHW))): weight / 2 for view, weight in views.items()}
    return {view: weight / 2 for view, weight in views.items()} | mirrored


_SHIFTS = _alike(_identity, *(_shifted(rows, columns) for rows, columns in ((-1, 0), (1, 0), (0, -1), (0, 1))))
_DIAGONAL = {_identity: 1 / 2, _shifted(1, 1, "reflect"): 1 / 4, _shifted(-1, -1, "reflect"): 1 / 4}
# what test-time augmentation shows the network of each image, the image itself among it
VIEWS: Mapping[str, Views] = {
    "none": {},
    "flip": _alike(_identity, _mirrored),
    "shift": _SHIFTS,
    "flip_shift": _mirrored_too(_SHIFTS),
    "flip_diagonal": _mirrored_too(_DIAGONAL),  # arXiv 2404.00498, section 3.5
}
