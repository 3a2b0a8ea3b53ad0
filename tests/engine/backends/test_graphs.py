from dataclasses import replace

import torch

from cnnlab.engine.backends.graphs import Graphs
from cnnlab.runtime.batch import Batch

WHOLE = Batch(torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 2, 0]), torch.arange(4))


def test_a_batch_has_the_graph_of_its_own_signature() -> None:
    """Never one that was made for mixed targets or another layout: it would read their memory wrongly."""
    others = [
        replace(WHOLE, target=torch.rand(4, 3)),
        replace(WHOLE, x_NCHW=torch.rand(4, 1, 2, 2).transpose(2, 3)),
        replace(WHOLE, x_NCHW=torch.rand(4, 1, 2, 2, dtype=torch.float64)),
    ]
    graphs: Graphs[int] = Graphs(4)
    made = [graphs.find(batch, lambda number=number: number) for number, batch in enumerate([WHOLE, *others])]  # type: ignore[misc]
    assert made == [0, 1, 2, 3]
    again = replace(WHOLE, x_NCHW=torch.rand(4, 1, 2, 2), index_N=torch.arange(10, 14))
    assert graphs.find(again, lambda: 9) == 0
    assert graphs.find(WHOLE, lambda: 9, constant=0.5) == 9


def test_a_batch_of_another_size_has_no_graph() -> None:
    graphs: Graphs[int] = Graphs(4)
    assert graphs.find(WHOLE[0:3], lambda: 1) is None
