"""Attributions against computations by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

pytest.importorskip("captum")

from cnnlab.visualization.attribution import grad_cam, grad_cam_map, integrated_gradients, occlusion


def small(inplace: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 3, 3), nn.ReLU(inplace), nn.Flatten(), nn.Linear(3 * 16, 4))
    return nn.Sequential(*layers).double().float().eval().requires_grad_(False)


X_NCHW = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(1)) * 255
CLASS_N = torch.tensor([2, 0])


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("at", [0, 1])
def test_grad_cam_is_that_of_the_paper_computed_by_hand(inplace: bool, at: int) -> None:
    network = small(inplace)
    conv, linear = network[0], network[3]
    maps_NCHW = functional.conv2d(X_NCHW, conv.weight, conv.bias)
    weight_NCHW = linear.weight[CLASS_N].reshape(2, 3, 4, 4)  # the gradient after the ReLU is the weight itself
    if at == 0:
        weight_NCHW = weight_NCHW * (maps_NCHW > 0)
    else:
        maps_NCHW = maps_NCHW.relu()
    by_hand_NHW = (weight_NCHW.mean((2, 3), keepdim=True) * maps_NCHW).sum(1).relu()
    found_NHW = grad_cam_map(network, network[at], X_NCHW, CLASS_N)
    assert (found_NHW - by_hand_NHW).abs().amax() <= 1e-6 * by_hand_NHW.abs().amax()
    by_hand_NHW = functional.interpolate(by_hand_NHW[:, None], (6, 6), mode="bilinear")[:, 0]
    torch.testing.assert_close(grad_cam(network, network[at], X_NCHW, CLASS_N), by_hand_NHW, rtol=1e-5, atol=1e-5)


def test_integrated_gradients_equal_a_closed_form() -> None:
    class Squares(nn.Module):
        def forward(self, x_NCHW: Tensor) -> Tensor:
            return torch.stack((x_NCHW.square().sum((1, 2, 3)), x_NCHW.sum((1, 2, 3))), 1)

    x_NCHW, baseline_C = X_NCHW / 255, torch.tensor([0.25])
    found_NHW = integrated_gradients(Squares(), x_NCHW, torch.tensor([0, 1]), baseline_C)
    by_hand_HW = x_NCHW[0, 0] ** 2 - 0.25**2  # the integral of 2x along the way from 0.25
    torch.testing.assert_close(found_NHW[0], by_hand_HW, rtol=0, atol=1e-6)
    torch.testing.assert_close(found_NHW[1], x_NCHW[1, 0] - 0.25, rtol=0, atol=1e-6)


def test_occlusion_of_a_sum_is_what_its_windows_cover() -> None:
    class Sums(nn.Module):
        def forward(self, x_NCHW: Tensor) -> Tensor:
            return torch.stack((x_NCHW.sum((1, 2, 3)), -x_NCHW.sum((1, 2, 3))), 1)

    x_NCHW = torch.zeros(1, 3, 4, 4)
    x_NCHW[0, :, 0, 0] = 9
    found_NHW = occlusion(Sums(), x_NCHW, torch.tensor([0]), torch.zeros(3), (2, 2))
    expected_HW = torch.zeros(4, 4)
    expected_HW[0, 0] = 27
    expected_HW[0, 1] = expected_HW[1, 0] = 27 / 2  # one of the two windows over it holds the bright pixel
    expected_HW[1, 1] = 27 / 4
    torch.testing.assert_close(found_NHW[0], expected_HW)
