"""What the network knows of a block without running it.

A block states it in a method `facts(*shapes)`, given the shape of each input without the batch. It raises
`ConfigError` for a shape that it does not take, `ArgumentError` where one of its arguments is to blame. A block
without the method is traced on the meta device, and its receptive field is unknown. torch's own classes have their
rules in `torch_facts.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cnnlab.blocks.receptive_field import Field, local, unknown
from cnnlab.runtime.errors import ConfigError

Shape = tuple[int, ...]
MOST_CHANNELS = 1 << 24  # or features: more would only overflow torch's sizes


@dataclass(frozen=True)
class Facts:
    """`output_shape` and `macs` (multiply-accumulates, bias excluded) are for one image; None has to be traced.

    `field` maps the receptive fields of the inputs to that of a unit of the output. `label` follows the block's name
    in the layer table, `remark` stands in its last column.
    """

    output_shape: Shape | None = None
    macs: int = 0
    field: Callable[..., Field] = unknown
    label: str = ""
    remark: str = ""


def unchanged(module: Any, shape: Shape) -> Facts:
    """The facts of a block that maps each value by itself."""
    return Facts(shape, field=local)


def format_shape(shape: Shape) -> str:
    """`20×24×24` for an image, `100` for features."""
    return "×".join(str(size) for size in shape)


def expect_image(shape: Shape, hint: str = "") -> None:
    """Raises `ConfigError` where features reach a block for images."""
    if len(shape) != 3:
        raise ConfigError(
            f"expected an image (channels × height × width), received {format_shape(shape)} features; "
            f"put it before 'flatten'{hint}"
        )


def expect_channels(argument: str, channels: int, shape: Shape) -> None:
    """Raises `ConfigError` where the config gives another number of channels than reaches the block."""
    if channels != shape[0]:
        raise ConfigError(
            f"{argument}={channels}, but {shape[0]} channels reach it ({format_shape(shape)}); leave {argument} out "
            f"and it is inferred"
        )
