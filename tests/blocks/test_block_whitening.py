"""Whitening filters, against NumPy and by what they do to patches."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cnnlab.blocks.initialization import INITIALIZERS
from cnnlab.blocks.whitening import patch_covariance
from cnnlab.network import build_network
from cnnlab.runtime.errors import ArgumentError, ConfigError


def correlated_images(seed: int = 0) -> Tensor:
    """64 RGB images of 9×8 whose pixels and channels are alike, and are not around 0."""
    generator = torch.Generator().manual_seed(seed)
    x_NCHW = torch.randn(64, 3, 11, 10, generator=generator)
    x_NCHW = nn.functional.avg_pool2d(x_NCHW + x_NCHW.mean(1, keepdim=True), 3, 1)
    return 5 + 2 * x_NCHW


def whitened(conv: nn.Conv2d, x_NCHW: Tensor, **settings: Any) -> nn.Conv2d:
    initializer: Any = INITIALIZERS["whitening"](**settings)
    initializer(conv)
    with torch.no_grad():
        conv.weight.copy_(initializer.filters(patch_covariance(x_NCHW.split(10), conv), conv))
    return conv


def test_the_whitened_patches_are_uncorrelated_and_of_variance_one() -> None:
    x_NCHW = correlated_images()
    conv = whitened(nn.Conv2d(3, 24, 2, bias=False).double(), x_NCHW, eps=0.0)
    responses_NKHW = conv(x_NCHW.double())
    responses_KP = responses_NKHW.transpose(0, 1).flatten(1)
    torch.testing.assert_close(responses_KP[:12].cov(correction=0), torch.eye(12).double(), rtol=0, atol=1e-8)
    torch.testing.assert_close(responses_KP[12:], -responses_KP[:12])


def test_the_filters_are_eigenvectors_over_the_root_of_their_eigenvalue_and_eps() -> None:
    x_NCHW, eps = correlated_images(), 0.01
    windows = np.lib.stride_tricks.sliding_window_view(x_NCHW.double().numpy(), (3, 2), axis=(2, 3))
    patches_PD = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 3 * 3 * 2)
    centred_PD = patches_PD - patches_PD.mean(0)
    value_D, vector_DD = np.linalg.eigh(centred_PD.T @ centred_PD / len(centred_PD))
    expected_DD = np.stack([vector_DD[:, i] / np.sqrt(value_D[i] + eps) for i in reversed(range(18))])
    weight_KD = whitened(nn.Conv2d(3, 36, (3, 2)), x_NCHW, eps=eps).weight.detach().flatten(1)
    signs_D = torch.sign(
        (weight_KD[:18] * torch.from_numpy(expected_DD)).sum(1, keepdim=True)
    ).float()  # of v and −v, either
    torch.testing.assert_close(weight_KD[:18] * signs_D, torch.from_numpy(expected_DD).float(), rtol=1e-3, atol=1e-5)
    assert torch.equal(weight_KD[18:], -weight_KD[:18])


def test_dilated_filters_see_dilated_patches() -> None:
    x_NCHW = correlated_images()
    conv = whitened(nn.Conv2d(3, 24, 2, dilation=3).double(), x_NCHW, eps=0.0)
    responses_KP = conv(x_NCHW.double()).transpose(0, 1).flatten(1)
    torch.testing.assert_close(responses_KP[:12].cov(correction=0), torch.eye(12).double(), rtol=0, atol=1e-8)


def test_images_and_their_chunks_give_one_covariance() -> None:
    x_NCHW, conv = correlated_images(), nn.Conv2d(3, 24, 2)
    torch.testing.assert_close(patch_covariance([x_NCHW], conv), patch_covariance(x_NCHW.split(7), conv))


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"out_channels": 12, "kernel_size": 2}, r"expected out_channels = 2·2·2·3 = 24, received 12"),
        ({"out_channels": 24, "kernel_size": 2, "groups": 3}, r"a conv without groups, received groups=3"),
    ],
)
def test_a_convolution_that_cannot_be_whitened_is_refused_before_any_image_is_read(
    blocks: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^model.blocks.conv.init.type: whitening .*{message}"):
        build_network((3, 8, 8), {"conv": {"type": "conv", "init": "whitening", **blocks}})


def test_other_layers_have_no_whitening() -> None:
    with pytest.raises(ConfigError, match=r"^model.init.type: .* received Linear"):
        build_network((4,), {"linear": {"type": "linear", "out_features": 2}}, init="whitening")


@pytest.mark.parametrize("illegal", [{"images": 0}, {"eps": -1}])
def test_a_value_out_of_range_names_its_argument(illegal: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError) as caught:
        INITIALIZERS["whitening"](**illegal)
    assert [caught.value.argument] == list(illegal)
