"""Blocks made of blocks. They receive modules; `network/plan.py` builds those from the nested `blocks`.

Their facts take the output shape of each nested column as an input.
"""

from torch import Tensor, nn

from cnnlab.blocks.facts import Facts, Shape, format_shape
from cnnlab.blocks.graph import run_graph, sources_of_graph
from cnnlab.blocks.receptive_field import local, union
from cnnlab.runtime.errors import ConfigError


class Sequential(nn.Module):
    """Runs the named `blocks` one after another; the output shape is the last one's.

    In YAML, `repeat: n` builds the column n times, one after the other, each with weights of its own; `first` is
    merged over the blocks of the first one, as in `first: {conv1: {stride: 2}}`.
    """

    def __init__(self, blocks: nn.Module) -> None:
        super().__init__()
        for name, block in blocks.named_children():
            self.add_module(name, block)
        self._sources = sources_of_graph(blocks)

    def facts(self, blocks: Shape) -> Facts:
        return Facts(blocks, field=local)

    def forward(self, x: Tensor) -> Tensor:
        if self._sources:
            return run_graph(self, self._sources, x)
        for block in self.children():
            x = block(x)
        return x


class Residual(nn.Module):
    """`blocks`(x) + `projection`(x) (arXiv 1512.03385), both of one shape.

    Without a projection the input itself is added. Where the blocks change the size, the network puts a 1×1
    convolution and a batch norm there, unless the config has a `projection` of its own.
    """

    def __init__(self, blocks: nn.Module, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.blocks = blocks
        self.projection = projection if projection is not None else nn.Identity()

    def facts(self, blocks: Shape, projection: Shape) -> Facts:
        """The addition's; without a projection its second input is that of the block."""
        if blocks != projection:
            raise ConfigError(
                f"the blocks give {format_shape(blocks)} and the projection {format_shape(projection)}: expected one "
                f"shape, to add them"
            )
        return Facts(blocks, field=union)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x) + self.projection(x)
