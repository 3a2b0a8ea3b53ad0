"""Several inputs become one output: layers that are joined by `from`, or branches."""

import functools
import operator
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from cnnlab.blocks.facts import Facts, Shape, format_shape
from cnnlab.blocks.receptive_field import WHOLE, Field, union
from cnnlab.runtime.checks import one_of
from cnnlab.runtime.errors import ConfigError

AXES = {1: ("features",), 2: ("lengths", "features"), 3: ("channels", "heights", "widths")}  # by the number of sizes


def _concat(module: nn.Module, *shapes: Shape) -> Facts:
    first = shapes[0]
    _expect_one_rank("concat", shapes)
    joined = 1 if len(first) == 2 else 0
    for axis in range(len(first)):
        if axis != joined and len({shape[axis] for shape in shapes}) > 1:
            raise ConfigError(
                f"concat of {_shapes(shapes)} along {_axis(first, joined)}: {_axis(first, axis)} {_sizes(shapes, axis)}"
            )
    total = sum(shape[joined] for shape in shapes)
    return Facts((*first[:joined], total, *first[joined + 1 :]), field=union)


def _elementwise(module: nn.Module, *shapes: Shape) -> Facts:
    """A size of 1 is repeated, as everywhere in torch."""
    name = type(module).__name__.lower()
    _expect_one_rank(name, shapes)
    output = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    for axis, size in enumerate(output):
        if any(shape[axis] not in (1, size) for shape in shapes):
            raise ConfigError(f"{name} of {_shapes(shapes)}: {_axis(output, axis)} {_sizes(shapes, axis)}")

    places = {1: (), 2: (0,)}.get(len(output), (1, 2))  # the axes along which units see different pixels

    def field(*fields: Field) -> Field:
        repeated = [any(shape[axis] != output[axis] for axis in places) for shape in shapes]
        return union(*map(_repeated, fields, repeated))

    return Facts(output, field=field)


def _repeated(field: Field, repeated: bool) -> Field:
    """A unit that is repeated over an axis does not see the pixels around its place."""
    return field if field == WHOLE or not repeated else None


def _expect_one_rank(name: str, shapes: tuple[Shape, ...]) -> None:
    if len({len(shape) for shape in shapes}) > 1:
        raise ConfigError(
            f"{name} of {_shapes(shapes)}: expected images alone or features alone; 'flatten' or 'global_avg_pool' "
            f"makes features of an image"
        )


def _axis(shape: Shape, axis: int) -> str:
    names = AXES.get(len(shape), ())
    return names[axis] if names else f"sizes {axis + 1}"


def _shapes(shapes: tuple[Shape, ...]) -> str:
    return _listed([format_shape(shape) for shape in shapes])


def _sizes(shapes: tuple[Shape, ...], axis: int) -> str:
    return _listed([str(shape[axis]) for shape in shapes])


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


class Concat(nn.Module):
    """The channels or features of all inputs, one after another in the order of `from` (`torch.cat`).

    Images have one height and width, sequences one length.
    """

    facts = _concat

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, 2 if inputs[0].dim() == 3 else 1)


class Add(nn.Module):
    """The sum of its inputs, all of one shape; a size of 1 is repeated."""

    facts = _elementwise

    def forward(self, *inputs: Tensor) -> Tensor:
        return functools.reduce(operator.add, inputs)


class Multiply(nn.Module):
    """The product of its inputs, all of one shape; a size of 1 is repeated: a gate of C×1×1 scales whole channels."""

    facts = _elementwise

    def forward(self, *inputs: Tensor) -> Tensor:
        return functools.reduce(operator.mul, inputs)


class Mean(nn.Module):
    """The mean of its inputs, all of one shape; a size of 1 is repeated."""

    facts = _elementwise

    def forward(self, *inputs: Tensor) -> Tensor:
        return functools.reduce(operator.add, inputs) / len(inputs)


JOINS: dict[str, Callable[[], nn.Module]] = {"concat": Concat, "add": Add, "multiply": Multiply, "mean": Mean}


class Branches(nn.Module):
    """Each of the `branches` reads the input, and `join` makes one output of theirs.

    A branch is a block or `{blocks: …}`; `identity` passes the input on. `join` is `concat` (of channels), `add`,
    `multiply` or `mean`.
    """

    def __init__(self, branches: nn.ModuleDict, join: str = "concat") -> None:
        super().__init__()
        self.label = one_of("join", join, tuple(JOINS))
        self.branches = branches
        self.join = JOINS[join]()

    def facts(self, *branches: Shape) -> Facts:
        facts: Facts = self.join.facts(*branches)  # type: ignore[operator]
        return replace(facts, label=self.label)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.join(*(branch(x) for branch in self.branches.values()))
        return output
