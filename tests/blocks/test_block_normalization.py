"""Norms, against their formulas and against torch's classes for one number of dimensions."""

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from cnnlab.blocks.normalization import BatchNorm, GroupNorm, LayerNorm, LayerNorm2d
from cnnlab.runtime.errors import ArgumentError


def normalized(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """(x − mean) / √(biased variance + 1e-5)"""
    return (x - x.mean(dims, keepdim=True)) / (x.var(dims, unbiased=False, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize(
    ("shape", "reference"), [((6, 3), nn.BatchNorm1d), ((6, 3, 5), nn.BatchNorm1d), ((6, 3, 5, 4), nn.BatchNorm2d)]
)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_equals_torch_for_every_number_of_dimensions(
    shape: tuple[int, ...], reference: type[nn.Module], training: bool
) -> None:
    ours, theirs = BatchNorm(3), reference(3)
    for norm in (ours, theirs):
        norm.running_mean.copy_(torch.tensor([1.0, -1.0, 0.5]))
        norm.running_var.copy_(torch.tensor([4.0, 1.0, 0.25]))
        norm.train(training)
    x = torch.randn(shape)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize(("momentum", "mean"), [(0.25, 0.75 * 0.5 + 0.25 * 8), (None, (2 + 8) / 2)])
def test_batch_norm_keeps_a_running_mean_of_the_batches(momentum: float | None, mean: float) -> None:
    norm = BatchNorm(1, momentum=momentum)
    norm(torch.tensor([[1.0], [3.0]]))  # mean 2: with momentum 0.75·0 + 0.25·2 = 0.5
    norm(torch.tensor([[7.0], [9.0]]))
    assert norm.running_mean is not None
    assert norm.running_mean.item() == pytest.approx(mean)


def test_batch_norm_takes_no_image_of_three_dimensions() -> None:
    with pytest.raises(AssertionError, match="received 5"):
        BatchNorm(3)(torch.zeros(2, 3, 4, 4, 4))


@pytest.mark.parametrize(
    "norm",
    [
        BatchNorm(4, affine=False),
        GroupNorm(2, 4, affine=False),
        LayerNorm(4, elementwise_affine=False),
        LayerNorm2d(4, elementwise_affine=False),
    ],
    ids=str,
)
def test_a_norm_that_is_not_affine_has_no_parameters(norm: nn.Module) -> None:
    assert not list(norm.parameters())


def test_group_norm_normalizes_each_group_of_one_image() -> None:
    x_NCHW = torch.randn(2, 4, 3, 3) * 5 + 1
    grouped = x_NCHW.view(2, 2, 2, 3, 3)
    torch.testing.assert_close(GroupNorm(2, 4)(x_NCHW), normalized(grouped, (2, 3, 4)).view(2, 4, 3, 3))


def test_layer_norm2d_is_torchvisions() -> None:
    ours, theirs = LayerNorm2d(4), torchvision.models.convnext.LayerNorm2d(4, eps=1e-6)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.uniform_(0.5, 1.5)
    theirs.load_state_dict(ours.state_dict())
    x_NCHW = torch.randn(2, 4, 5, 3)
    torch.testing.assert_close(ours(x_NCHW), theirs(x_NCHW))


def test_layer_norm_normalizes_each_image_by_itself_and_batch_norm_each_channel() -> None:
    x_NCHW = torch.randn(2, 3, 4, 5) * 2 - 1
    torch.testing.assert_close(LayerNorm((3, 4, 5), bias=False)(x_NCHW), normalized(x_NCHW, (1, 2, 3)))
    torch.testing.assert_close(BatchNorm(3)(x_NCHW), normalized(x_NCHW, (0, 2, 3)))


@pytest.mark.parametrize(
    ("block", "settings", "argument"),
    [
        (BatchNorm, {"num_features": 0}, "num_features"),
        (BatchNorm, {"num_features": 3, "momentum": 1.5}, "momentum"),
        (BatchNorm, {"num_features": 3, "eps": 0}, "eps"),
        (GroupNorm, {"num_groups": 3, "num_channels": 4}, "num_groups"),
        (LayerNorm, {"normalized_shape": 4, "eps": 0.0}, "eps"),
        (LayerNorm2d, {"num_channels": 0}, "num_channels"),
        (LayerNorm2d, {"num_channels": 4, "eps": 0.0}, "eps"),
    ],
    ids=str,
)
def test_a_value_out_of_range_names_its_argument(
    block: type[nn.Module], settings: dict[str, Any], argument: str
) -> None:
    with pytest.raises(ArgumentError) as caught:
        block(**settings)
    assert caught.value.argument == argument
