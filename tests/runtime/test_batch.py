"""What travels from the loader through the training step."""

from dataclasses import replace

import pytest
import torch

from cnnlab.runtime.batch import Batch


def batch(count: int) -> Batch:
    x_NCHW = torch.arange(count, dtype=torch.float32).view(count, 1, 1, 1)
    return Batch(x_NCHW, torch.arange(count) * 10, torch.arange(count) + 100)


@pytest.mark.parametrize(("count", "sizes"), [(3, [3, 3, 1]), (20, [1] * 7)])
def test_it_splits_into_at_most_so_many_chunks(count: int, sizes: list[int]) -> None:
    assert [len(chunk) for chunk in batch(7).chunks(count)] == sizes


def test_images_targets_and_indices_stay_together_in_chunks() -> None:
    whole = batch(5)
    assert whole.chunks(1)[0] is whole
    first, second = whole.chunks(2)
    assert (first.x_NCHW.flatten().tolist(), second.x_NCHW.flatten().tolist()) == ([0, 1, 2], [3, 4])
    assert (first.target.tolist(), second.target.tolist()) == ([0, 10, 20], [30, 40])
    assert (first.index_N.tolist(), second.index_N.tolist()) == ([100, 101, 102], [103, 104])


def test_weights_are_fractions_of_the_whole_batch() -> None:
    whole = batch(7)
    assert whole.weight == 1
    assert [chunk.weight for chunk in whole.chunks(3)] == [3 / 7, 3 / 7, 1 / 7]
    half = replace(whole[0:4], global_count=8)
    assert [chunk.weight for chunk in (half, *half.chunks(2))] == [0.5, 0.25, 0.25]
