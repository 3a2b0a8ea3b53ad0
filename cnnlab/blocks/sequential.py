"""Blocks made of blocks. They receive modules; `network.py` builds those from the nested `blocks`."""

from torch import Tensor, nn


class Sequential(nn.Module):
    """Runs a column of named blocks: the shape is whatever the last of them gives.

    In YAML, `repeat: n` builds the column n times, one after the other, each with weights of its own.
    """

    def __init__(self, blocks: nn.Sequential) -> None:
        super().__init__()
        for name, block in blocks.named_children():
            self.add_module(name, block)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.children():
            x = block(x)
        return x


class Residual(nn.Module):
    """blocks(x) + projection(x) (arXiv 1512.03385), both of one shape.

    Without a projection the input itself is added. Where the blocks change the size, the network puts a 1×1
    convolution and a batch norm there, unless the config gives a `projection` of its own.
    """

    def __init__(self, blocks: nn.Module, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.blocks = blocks
        self.projection = projection if projection is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x) + self.projection(x)
