"""What a validation shows beside its figures: the worst mistakes, and counts for precision-recall curves."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from cnnlab.engine.records import Examined, Mistake
from cnnlab.engine.snapshot import sample
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.randomness import put_back

MISTAKES = 16
MOST_CURVES = 20  # classes up to which there are precision-recall curves
THRESHOLDS = 127  # of a precision-recall curve, evenly spaced from 0 to 1

Judge = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Examiner:
    """Watches a pass of `evaluate` as its collector; of several ranks, each sees its own images.

    `judge` returns probabilities (N, K) and the loss of each image (N,) for outputs and class indices. An error that
    it raises is kept, and ends the examination alone.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.images = 0
        self.first: Batch | None = None  # some images of the first batch
        self.error: Exception | None = None
        self._x_NCHW: Tensor | None = None
        self._mistakes: list[Mistake] = []
        self._counts: tuple[Tensor, Tensor] | None = None  # (K, T): images of the class, and others, by probability

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, their images kept before a network may work in place."""
        for batch in batches:
            if self.first is None and len(batch):
                self.first = sample(batch)
            self._x_NCHW = batch.x_NCHW.clone() if self.error is None else None
            yield batch

    def add(self, output_NK: Tensor, batch: Batch) -> None:
        if self.error is not None:
            return
        try:
            with put_back([]):
                self._add(output_NK.float().clone(), batch)
        except Exception as error:  # whatever a user's own loss raises for a single image
            self.error = error

    def _add(self, output_NK: Tensor, batch: Batch) -> None:
        target_N = batch.target if batch.target.dim() == 1 else batch.target.argmax(1)
        predicted_N = output_NK.argmax(1)
        probability_NK, loss_N = self.judge(output_NK, target_N)
        self.images += len(target_N)
        self._count(probability_NK, target_N)
        wrong = (predicted_N != target_N).nonzero()[:, 0]
        worst = wrong[loss_N[wrong].argsort(descending=True, stable=True)[:MISTAKES]]
        assert self._x_NCHW is not None
        for place in worst.tolist():
            label, prediction = int(target_N[place]), int(predicted_N[place])
            self._mistakes.append(
                Mistake(
                    int(batch.index_N[place]),
                    self._x_NCHW[place].float().cpu(),
                    label,
                    prediction,
                    float(probability_NK[place, prediction]),
                    float(loss_N[place]),
                )
            )
        self._mistakes = sorted(self._mistakes, key=lambda one: -one.loss)[:MISTAKES]

    def _count(self, probability_NK: Tensor, target_N: Tensor) -> None:
        classes = probability_NK.shape[1]
        if classes > MOST_CURVES:
            return
        level_NK = (probability_NK.clamp(0, 1) * (THRESHOLDS - 1)).floor().long().cpu()
        place_NK = level_NK + THRESHOLDS * torch.arange(classes)
        own = torch.nn.functional.one_hot(target_N.cpu(), classes).bool()
        counts = [
            torch.bincount(place_NK[which], minlength=classes * THRESHOLDS).view(classes, THRESHOLDS)
            for which in (own, ~own)
        ]
        before = self._counts or (torch.zeros_like(counts[0]), torch.zeros_like(counts[0]))
        self._counts = before[0] + counts[0], before[1] + counts[1]

    def read(self, split: str, step: int, epoch: int) -> Examined:
        positives, negatives = self._counts or (None, None)
        return Examined(step, epoch, split, self.images, self._mistakes, positives, negatives)
