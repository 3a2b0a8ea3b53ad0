"""The facts of torch's own classes, and how a class finds its own."""

import math
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cnnlab.blocks.facts import Facts, Shape, expect_channels, expect_image, format_shape, unchanged
from cnnlab.blocks.receptive_field import column, local, row, unknown, whole
from cnnlab.blocks.window import Window, check_pool_padding, sides
from cnnlab.runtime.errors import ArgumentError, ConfigError

Rule = Callable[..., Facts]


def find_rule(kind: type) -> Rule | None:
    """The rule of the nearest class that has one, unless a nearer one has a `forward` of its own."""
    for ancestor in kind.__mro__:
        if "facts" in vars(ancestor):
            rule: Rule = vars(ancestor)["facts"]
            return rule
        if ancestor in TORCH_FACTS:
            return TORCH_FACTS[ancestor]
        if "forward" in vars(ancestor):
            return None
    return None


def convolution(module: nn.Conv2d, shape: Shape) -> Facts:
    expect_image(shape)
    expect_channels("in_channels", module.in_channels, shape)
    macs_per_unit = math.prod(module.kernel_size) * module.in_channels // module.groups
    return Window.of(module).facts(shape, module.out_channels, macs_per_unit)


def _expect_one_tensor(module: nn.Module) -> None:
    if getattr(module, "return_indices", False):
        raise ArgumentError("return_indices", "expected false: a block gives one tensor, received true")


def _pooling(module: nn.MaxPool2d | nn.AvgPool2d, shape: Shape) -> Facts:
    _expect_one_tensor(module)
    check_pool_padding(module.padding, module.kernel_size)
    if getattr(module, "divisor_override", None) == 0:
        raise ArgumentError("divisor_override", "expected null or a number other than 0, received 0")
    return Window.of(module).facts(shape, shape[0])


def _adaptive_pooling(module: nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d, shape: Shape) -> Facts:
    expect_image(shape)
    _expect_one_tensor(module)
    size = module.output_size if isinstance(module.output_size, tuple) else (module.output_size,) * 2
    kept = tuple(before if after is None else after for before, after in zip(shape[1:], size, strict=False))
    height, width = sides("output_size", kept if len(size) == 2 else size, 1)
    return Facts((shape[0], height, width), field=whole)


def _linear(module: nn.Linear, shape: Shape) -> Facts:
    if len(shape) == 3:
        raise ConfigError(
            f"expected features, received an image of {format_shape(shape)}; put 'flatten' ({math.prod(shape)} "
            f"features) or 'global_avg_pool' ({shape[0]}) before it"
        )
    if module.in_features != shape[-1]:
        raise ConfigError(
            f"in_features={module.in_features}, but {shape[-1]} features reach it; leave in_features out and it is "
            f"inferred"
        )
    field = whole if len(shape) == 1 else unknown
    return Facts((*shape[:-1], module.out_features), math.prod(shape) * module.out_features, field)


def _flatten(module: nn.Flatten, shape: Shape) -> Facts:
    everything = (module.start_dim, module.end_dim) == (1, -1)
    return Facts((math.prod(shape),) if everything else None, field=local)


def _softmax(module: nn.Softmax | nn.LogSoftmax | nn.Softmin, shape: Shape) -> Facts:
    dim, last = 1 if module.dim is None else module.dim, len(shape)
    if not (1 <= dim <= last or -last <= dim <= -1):
        raise ArgumentError(
            "dim", f"expected 1 to {last} (or −{last} to −1) for an input of {format_shape(shape)}, received {dim}"
        )
    by_dimension: dict[int, list[Any]] = {1: [whole], 3: [local, column, row]}
    fields = by_dimension.get(last, [unknown] * last)
    return Facts(shape, field=fields[dim - 1 if dim > 0 else dim])


def _batch_norm(module: _BatchNorm, shape: Shape) -> Facts:
    """In evaluation mode; without running statistics it takes those of the batch."""
    return Facts(field=local if module.track_running_stats else whole)


def _group_norm(module: nn.GroupNorm, shape: Shape) -> Facts:
    expect_channels("num_channels", module.num_channels, shape)
    return Facts(shape, field=whole if len(shape) == 3 or module.num_groups == 1 else unknown)


def _layer_norm(module: nn.LayerNorm, shape: Shape) -> Facts:
    dimensions = len(module.normalized_shape)
    if tuple(module.normalized_shape) != shape[-dimensions:]:
        raise ArgumentError(
            "normalized_shape",
            f"expected the last sizes of {format_shape(shape)}, received {format_shape(module.normalized_shape)}",
        )
    if len(shape) == 3:
        return Facts(shape, field=row if dimensions == 1 else whole)
    return Facts(shape, field=whole if dimensions == len(shape) else unknown)


def _channel_dropout(module: nn.Dropout2d, shape: Shape) -> Facts:
    expect_image(shape)
    return unchanged(module, shape)


def _traced_and_local(module: nn.Module, shape: Shape) -> Facts:
    return Facts(field=local)


TORCH_FACTS: dict[type, Rule] = {
    nn.Conv2d: convolution,
    nn.MaxPool2d: _pooling,
    nn.AvgPool2d: _pooling,
    nn.AdaptiveAvgPool2d: _adaptive_pooling,
    nn.AdaptiveMaxPool2d: _adaptive_pooling,
    nn.Linear: _linear,
    nn.Flatten: _flatten,
    nn.Softmax: _softmax,
    nn.LogSoftmax: _softmax,
    nn.Softmin: _softmax,
    _BatchNorm: _batch_norm,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.Dropout2d: _channel_dropout,
    nn.PReLU: _traced_and_local,  # its parameters may not fit
    **dict.fromkeys(
        (
            nn.Identity,
            nn.Dropout,
            nn.AlphaDropout,
            nn.ReLU,
            nn.LeakyReLU,
            nn.ReLU6,
            nn.ELU,
            nn.SELU,
            nn.CELU,
            nn.GELU,
            nn.SiLU,
            nn.Mish,
            nn.Sigmoid,
            nn.LogSigmoid,
            nn.Hardsigmoid,
            nn.Tanh,
            nn.Hardtanh,
            nn.Hardswish,
            nn.Softplus,
            nn.Softsign,
        ),
        unchanged,
    ),
}
