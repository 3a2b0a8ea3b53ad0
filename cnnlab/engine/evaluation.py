"""Loss and accuracy of a network over a whole split."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cnnlab.engine.execution import Execution
from cnnlab.engine.step import count_correct
from cnnlab.engine.tally import Tally
from cnnlab.runtime.batch import Batch


@torch.no_grad()
def evaluate(
    network: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    batches: Iterable[Batch],
    execution: Execution,
) -> dict[str, float]:
    """`{"loss", "accuracy"}` in evaluation mode; every module is left in the mode in which it was."""
    tally = Tally()
    with in_evaluation_mode(network):
        for batch in batches:
            with execution.autocast(batch.x_NCHW.device):
                output_NK = network(execution.arrange(batch.x_NCHW))
                cost = loss(output_NK, batch.target)
            tally.add(cost, count_correct(output_NK, batch.target), batch.index_N)
    return tally.read()


@contextmanager
def in_evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Each module goes back to its own mode: one that is frozen in evaluation mode stays so."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
