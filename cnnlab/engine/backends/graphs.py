"""The one guard: a graph is made for one shape of batch, and any other batch is computed eagerly."""

from collections.abc import Callable
from typing import Generic, TypeVar

from cnnlab.runtime.batch import Batch

G = TypeVar("G")


class Graphs(Generic[G]):
    """A graph for each signature that a batch of `images` comes with: with and without mixed targets, for example.

    A batch of another size, such as a smaller last one, has none. Which batches have a graph depends on nothing but the
    batch, so that a resumed run computes its steps as an unbroken one does.
    """

    def __init__(self, images: int) -> None:
        self.images = images
        self._made: dict[object, G] = {}

    def find(self, batch: Batch, make: Callable[[], G], constant: object = None) -> G | None:
        """The batch's graph, made by `make` for its signature and any `constant`; None for a batch of another size."""
        if len(batch) != self.images:
            return None
        key = batch.signature, constant
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
