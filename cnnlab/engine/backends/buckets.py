"""Gradients that the ranks exchange in buckets while the backward pass still computes others."""

from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.engine.execution import Execution
from cnnlab.engine.step import LossFunction, Network, forward_backward
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.distributed import training_group
from cnnlab.runtime.errors import TrainingError
from cnnlab.runtime.ranks import world_size


class InBuckets:
    """`forward_backward` around torch's `DistributedDataParallel`, which averages the gradients of all ranks.

    A rank's loss is weighted by its fraction of the images, so what is needed is the sum: the loss that is
    differentiated is as many times as large as there are ranks. The network is wrapped when first called.
    """

    def __init__(self) -> None:
        self.wrapped: Any = None

    def __call__(
        self,
        network: Network,
        loss: LossFunction,
        microbatch: Batch,
        *,
        execution: Execution,
        scaler: torch.amp.GradScaler,
    ) -> tuple[Tensor, Tensor]:
        if self.wrapped is None:
            assert isinstance(network, nn.Module)
            self.wrapped = nn.parallel.DistributedDataParallel(
                network, process_group=training_group(), broadcast_buffers=False
            )
        try:
            value, correct = forward_backward(
                self.wrapped,
                lambda output_NK, target: loss(output_NK, target) * world_size(),
                microbatch,
                execution=execution,
                scaler=scaler,
            )
        except RuntimeError as error:
            if "finished reduction" not in str(error):
                raise
            raise TrainingError(
                "a parameter of the network takes no part in its output, for which ddp would wait: expected "
                "trainer.parallel=average"
            ) from error
        return value / world_size(), correct
