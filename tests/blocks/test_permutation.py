import pytest
import torch

from cnnlab.blocks import PermutePixels
from cnnlab.network import plan_network
from cnnlab.runtime.errors import ArgumentError, Complaints


def numbered() -> torch.Tensor:
    """Two images of two channels; every value is another."""
    return torch.arange(2 * 2 * 4 * 5.0).view(2, 2, 4, 5)


def test_every_pixel_is_kept_and_all_images_and_channels_go_by_one_order() -> None:
    permuted = PermutePixels((2, 4, 5))(numbered()).flatten(2)
    offsets = permuted - permuted[:, :, :1]
    assert (offsets == offsets[0, 0]).all()
    assert torch.equal(permuted.sort(2).values, numbered().flatten(2))


def test_the_order_is_that_of_its_seed_whatever_else_was_drawn() -> None:
    state = torch.get_rng_state()
    first = PermutePixels((1, 28, 28), seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert not first.state_dict()
    torch.rand(7)
    assert torch.equal(first.order_P, PermutePixels((3, 28, 28), seed=4).order_P)
    assert not torch.equal(first.order_P, PermutePixels((1, 28, 28), seed=5).order_P)
    assert (first.order_P == torch.arange(784)).sum() < 8  # fixed points are Poisson with mean 1
    with pytest.raises(ArgumentError, match="seed: expected a whole number ≥ 0, received -1"):
        PermutePixels((1, 8, 8), seed=-1)


def test_the_layout_changes_nothing() -> None:
    block = PermutePixels((2, 4, 5))
    channels_last = numbered().contiguous(memory_format=torch.channels_last)
    assert torch.equal(block(channels_last), block(numbered()))


def test_how_far_a_convolution_after_it_sees_is_not_guessed() -> None:
    conv = {"type": "conv", "out_channels": 3, "kernel_size": 3}
    plan = plan_network((1, 8, 8), {"permute": "permute_pixels", "conv": conv}, Complaints())
    assert plan
    assert [row.receptive_field for row in plan.rows] == ["–", "–"]
