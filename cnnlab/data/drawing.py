"""Edges, strokes and arcs as images: how much of each pixel they cover, from distances in closed form.

Points are (x, y) in pixels from the left upper corner, so that the middle of the first pixel is (0.5, 0.5); angles are
in radians, and turn from the x axis to the y axis, which points down. The N drawings of a call are independent. A
pixel is covered by ½ − d, between 0 and 1, where d is the distance of its middle from the border, negative within.
"""

import torch
from torch import Tensor

Size = tuple[int, int]


def edge(point_N2: Tensor, angle_N: Tensor, size: Size) -> Tensor:
    """(N, height, width) in [0, 1]: 1 on the side that `angle` points to from `point`, 0 on the other.

    `edge([[10, 0]], [0], …)` is black up to the tenth column and white from the eleventh.
    """
    return _covered(-_along(_pixels(size) - point_N2[:, None, None], angle_N))


def stroke(start_N2: Tensor, end_N2: Tensor, thickness_N: Tensor, size: Size) -> Tensor:
    """(N, height, width) in [0, 1]: a straight line with round ends, `thickness` pixels wide."""
    line_N2 = end_N2 - start_N2
    from_start_NHW2 = _pixels(size) - start_N2[:, None, None]
    length_N11 = line_N2.square().sum(1)[:, None, None].clamp_min(torch.finfo(line_N2.dtype).tiny)
    fraction_NHW = ((from_start_NHW2 * line_N2[:, None, None]).sum(3) / length_N11).clamp(0, 1)
    nearest_NHW2 = fraction_NHW[..., None] * line_N2[:, None, None]
    return _covered((from_start_NHW2 - nearest_NHW2).norm(dim=3) - _half(thickness_N))


def arc(
    centre_N2: Tensor, radius_N: Tensor, angle_N: Tensor, sweep_N: Tensor, thickness_N: Tensor, size: Size
) -> Tensor:
    """(N, height, width) in [0, 1]: a piece of a circle with round ends; its middle is at `angle`."""
    from_centre_NHW2 = _pixels(size) - centre_N2[:, None, None]
    direction_NHW = torch.atan2(from_centre_NHW2[..., 1], from_centre_NHW2[..., 0])
    turn_NHW = torch.remainder(direction_NHW - angle_N[:, None, None] + torch.pi, 2 * torch.pi) - torch.pi
    half_N11 = _half(sweep_N)
    # the nearest point of the arc is at the same angle, or one of its ends
    nearest_NHW = angle_N[:, None, None] + turn_NHW.clamp(-half_N11, half_N11)
    nearest_NHW2 = radius_N[:, None, None, None] * torch.stack((nearest_NHW.cos(), nearest_NHW.sin()), 3)
    return _covered((from_centre_NHW2 - nearest_NHW2).norm(dim=3) - _half(thickness_N))


def towards(angle_N: Tensor) -> Tensor:
    """(N, 2) of length 1: the direction of an angle."""
    return torch.stack((angle_N.cos(), angle_N.sin()), 1)


def _pixels(size: Size) -> Tensor:
    """(height, width, 2) the middle of each pixel."""
    height, width = size
    y_HW, x_HW = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack((x_HW, y_HW), 2)


def _along(offset_NHW2: Tensor, angle_N: Tensor) -> Tensor:
    return (offset_NHW2 * towards(angle_N)[:, None, None]).sum(3)


def _half(value_N: Tensor) -> Tensor:
    return value_N[:, None, None] / 2


def _covered(distance_NHW: Tensor) -> Tensor:
    return (0.5 - distance_NHW).clamp(0, 1)
