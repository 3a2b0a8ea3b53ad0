"""Loss and accuracy of a network over a whole split."""

from collections.abc import Callable, Iterable

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
    """`{"loss", "accuracy"}` in evaluation mode; the network is left in the mode in which it was."""
    was_training = network.training
    network.eval()
    tally = Tally()
    for batch in batches:
        with execution.autocast(batch.x_NCHW.device):
            output_NK = network(execution.arrange(batch.x_NCHW))
            cost = loss(output_NK, batch.target)
        tally.add(cost, count_correct(output_NK, batch.target), batch.index_N)
    network.train(was_training)
    return tally.read()
