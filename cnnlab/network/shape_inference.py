"""What a layer makes of the shape that reaches it, before any weight exists."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from cnnlab.blocks.facts import Facts, Shape, format_shape
from cnnlab.blocks.torch_facts import find_rule
from cnnlab.runtime.errors import Complaints, ConfigError, first_line


def measure(module: nn.Module, key: str, shape: Shape, inputs: Sequence[Shape] = (), nested_macs: int = 0) -> Facts:
    """The facts of a layer on the meta device for one image of `shape`. Raises `ConfigError` with the layer's key.

    A container's `inputs` are the output shapes of its nested columns, whose `nested_macs` are counted elsewhere. The
    usual layers go by rule: tracing one convolution on the meta device imports a second's worth of torch.
    """
    rule = find_rule(type(module))
    try:
        facts = rule(module, *(inputs or (shape,))) if rule else Facts()
    except ConfigError as error:
        complaints = Complaints()
        complaints.add_error(key, error)
        raise ConfigError(complaints.messages[0]) from error
    if facts.output_shape is not None:
        return facts
    output_shape, macs = _traced(module, key, shape)
    return replace(facts, output_shape=output_shape, macs=macs - nested_macs)


def _traced(module: nn.Module, key: str, shape: Shape) -> tuple[Shape, int]:
    """MACs are half of `torch.utils.flop_counter`'s FLOPs, which leave out biases."""
    from torch.utils.flop_counter import FlopCounterMode

    images = 2
    counter = FlopCounterMode(display=False)
    try:
        with counter:
            output = module(torch.empty(images, *shape))
    except Exception as error:
        raise ConfigError(
            f"{key}: {type(module).__name__} does not fit its input {format_shape(shape)}: {first_line(error)}"
        ) from error
    if not isinstance(output, Tensor) or output.dim() < 2 or output.shape[0] != images:
        raise ConfigError(
            f"{key}: expected one tensor with the batch in front from {type(module).__name__}, received "
            f"{format_shape(tuple(output.shape)) if isinstance(output, Tensor) else type(output).__name__}"
        )
    return tuple(output.shape[1:]), counter.get_total_flops() // (2 * images)
