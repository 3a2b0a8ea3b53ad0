"""Other ways of computing a step than eagerly: the passes compiled, the step captured as a CUDA graph."""

from functools import partial

from cnnlab.engine.backends.buckets import InBuckets
from cnnlab.engine.backends.compiled import Compiled
from cnnlab.engine.backends.cuda_graph import Captured
from cnnlab.engine.execution import Execution
from cnnlab.engine.step import Backend, Step, forward_backward, train_step


def build_step(execution: Execution, batch_size: int, accumulate: int = 1, in_buckets: bool = False) -> Step:
    """The function that takes a training step as `execution` says; graphs are made at its first whole batches.

    With `in_buckets` the ranks exchange gradients during the backward pass.
    """
    if in_buckets:
        return partial(train_step, backend=InBuckets())
    backend: Backend = Compiled(-(-batch_size // accumulate)) if execution.compile is True else forward_backward
    if execution.cuda_graph is True:
        return Captured(batch_size, backend)
    return train_step if backend is forward_backward else partial(train_step, backend=backend)
