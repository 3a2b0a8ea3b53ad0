"""Layers that read earlier ones by name, instead of the previous one."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

INPUT = ""  # among sources, what reaches the graph: no layer has this name


class Graph(nn.Module):
    """Runs named `blocks` in their order, each on the outputs of its `sources`: names of earlier ones, or `INPUT`."""

    def __init__(self, blocks: Mapping[str, nn.Module], sources: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        for name, block in blocks.items():
            self.add_module(name, block)
        self._sources = dict(sources)

    def forward(self, x: Tensor) -> Tensor:
        return run_graph(self, self._sources, x)


def sources_of_graph(module: nn.Module) -> Mapping[str, Sequence[str]] | None:
    """What each child of a graph reads, or of a sequential that was made of one; None for a plain chain."""
    return getattr(module, "_sources", None)


def run_graph(blocks: nn.Module, sources: Mapping[str, Sequence[str]], x: Tensor) -> Tensor:
    """The output of the last of the blocks; an output is held until the last that reads it has run."""
    outputs = {INPUT: x}
    last_reader = {source: name for name, read in sources.items() for source in read}
    for name, block in blocks.named_children():
        x = block(*(outputs[source] for source in sources[name]))
        for source in set(sources[name]):
            if last_reader[source] == name:
                del outputs[source]
        outputs[name] = x
    return x
