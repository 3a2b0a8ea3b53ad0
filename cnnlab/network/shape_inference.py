"""What a layer makes of the shape that reaches it, before any weight exists."""

import inspect
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from cnnlab.blocks.facts import Facts, Shape, format_shape
from cnnlab.blocks.join import JOINS
from cnnlab.blocks.torch_facts import Rule, find_rule
from cnnlab.runtime.errors import Complaints, ConfigError, first_line, listing


def measure(
    module: nn.Module,
    key: str,
    shapes: Sequence[Shape],
    inputs: Sequence[Shape] = (),
    names: Sequence[str] = (),
    nested_macs: int = 0,
) -> Facts:
    """The facts of a layer on the meta device for one image of each of `shapes`. Raises `ConfigError` with its key.

    A container's `inputs` are the output shapes of its nested columns, whose `nested_macs` are counted elsewhere;
    `names` are those of several inputs. The usual layers go by rule: tracing one convolution on the meta device imports
    a second's worth of torch.
    """
    rule = find_rule(type(module))
    inputs = inputs or shapes
    try:
        if rule and len(inputs) > 1:
            _check_count(rule, module, inputs)
        facts = rule(module, *inputs) if rule else Facts()
    except ConfigError as error:
        complaints = Complaints()
        complaints.add_error(key, error)
        several = f" (of {listing(names)})" if len(names) > 1 else ""
        raise ConfigError(f"{complaints.messages[0]}{several}") from error
    if facts.output_shape is not None:
        return facts
    output_shape, macs = _traced(module, key, shapes)
    return replace(facts, output_shape=output_shape, macs=macs - nested_macs)


def one_input(count: int) -> str:
    """The end of a sentence about a block that is given several."""
    return f"takes one input, received {count}: {listing(JOINS)} make one of several"


def _check_count(rule: Rule, module: nn.Module, inputs: Sequence[Shape]) -> None:
    """Raises `ConfigError` where a block takes another number of inputs."""
    try:
        inspect.signature(rule).bind(module, *inputs)
    except TypeError:
        raise ConfigError(f"{type(module).__name__} {one_input(len(inputs))}") from None


def _traced(module: nn.Module, key: str, shapes: Sequence[Shape]) -> tuple[Shape, int]:
    """MACs are half of `torch.utils.flop_counter`'s FLOPs, which leave out biases."""
    from torch.utils.flop_counter import FlopCounterMode

    images = 2
    counter = FlopCounterMode(display=False)
    try:
        with torch.enable_grad(), counter:  # without, the counter fails on a parameter that is passed to a module
            output = module(*(torch.empty(images, *shape) for shape in shapes))
    except Exception as error:
        given = listing(map(format_shape, shapes))
        raise ConfigError(
            f"{key}: {type(module).__name__} does not fit its input {given}: {first_line(error)}"
        ) from error
    if not isinstance(output, Tensor) or output.dim() < 2 or output.shape[0] != images:
        raise ConfigError(
            f"{key}: expected one tensor with the batch in front from {type(module).__name__}, received "
            f"{format_shape(tuple(output.shape)) if isinstance(output, Tensor) else type(output).__name__}"
        )
    return tuple(output.shape[1:]), counter.get_total_flops() // (2 * images)
