"""Which pixels a network's output rests on, by Captum: Grad-CAM, occlusion and integrated gradients.

All take images (N, C, H, W) of 0…255 and the class of each, and return one number for each pixel, (N, H, W): positive
where the image speaks for the class, negative where against it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cnnlab.visualization.responses import without_cudnn_rnn

STEPS = 50  # points of the integral
AT_ONCE = 256  # images in one forward pass


def grad_cam(network: nn.Module, layer: nn.Module, x_NCHW: Tensor, class_N: Tensor) -> Tensor:
    """Grad-CAM (arXiv 1610.02391) at `layer`, whose maps are weighed by their mean gradients and enlarged bilinearly.

    Negative values, which the paper cuts off, are 0.
    """
    return enlarged(grad_cam_map(network, layer, x_NCHW, class_N), (x_NCHW.shape[2], x_NCHW.shape[3]))


def grad_cam_map(network: nn.Module, layer: nn.Module, x_NCHW: Tensor, class_N: Tensor) -> Tensor:
    """The same at the size of the layer's maps, (N, h, w)."""
    from captum.attr import LayerGradCam

    x_NCHW = x_NCHW.detach().float().clone().requires_grad_()  # the weights are frozen: gradients need a leaf
    with without_cudnn_rnn(network):
        map_N1HW = LayerGradCam(network, layer).attribute(x_NCHW, class_N, relu_attributions=True)
    assert isinstance(map_N1HW, Tensor)
    return map_N1HW[:, 0].detach().float()


def enlarged(map_NHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps at the size of the images."""
    return functional.interpolate(map_NHW[:, None], size, mode="bilinear", align_corners=False)[:, 0]


@torch.no_grad()
def occlusion(
    network: nn.Module, x_NCHW: Tensor, class_N: Tensor, baseline_C: Tensor, window: tuple[int, int]
) -> Tensor:
    """How far the class's output falls while a window is painted over (Zeiler and Fergus 2013, arXiv 1311.2901).

    The window moves by half its size, in the colour `baseline_C`; a pixel has the mean over the windows that cover it.
    """
    from captum.attr import Occlusion

    channels = x_NCHW.shape[1]
    strides = tuple(max(1, side // 2) for side in window)
    change_NCHW = Occlusion(network).attribute(
        x_NCHW.detach().float(),
        (channels, *window),
        (channels, *strides),
        baseline_C[None, :, None, None].expand_as(x_NCHW[:1]).float(),
        class_N,
        perturbations_per_eval=max(1, AT_ONCE // len(x_NCHW)),
    )
    return change_NCHW[:, 0].float()


def integrated_gradients(
    network: nn.Module, x_NCHW: Tensor, class_N: Tensor, baseline_C: Tensor, steps: int = STEPS
) -> Tensor:
    """Gradients along the straight way from an image of one colour, times the way (arXiv 1703.01365).

    Summed over the channels; over the pixels they sum to the output for the image less that for the colour.
    """
    from captum.attr import IntegratedGradients

    x_NCHW = x_NCHW.detach().float()
    with without_cudnn_rnn(network):
        part_NCHW = IntegratedGradients(network).attribute(
            x_NCHW,
            baseline_C[None, :, None, None].expand_as(x_NCHW).float(),
            class_N,
            n_steps=steps,
            internal_batch_size=AT_ONCE,
        )
    return part_NCHW.sum(1).detach().float()
