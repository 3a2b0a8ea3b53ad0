"""Images held in NumPy arrays and torch tensors.

An array has its channels last, as Pillow, OpenCV and Matplotlib have them: (H, W), (H, W, C), (N, H, W) or
(N, H, W, C). A tensor has them first, as torch has them: (H, W), (C, H, W) or (N, C, H, W). C is 1 (grey), 3 (RGB) or 4
(RGBA), and a shape that could be read in two ways is refused.
"""

import numpy as np
import torch
from torch import Tensor

CHANNELS = (1, 3, 4)
_ONE_OF = "C being 1, 3 or 4"


def images_of_array(array: np.ndarray) -> Tensor:
    """(N, C, H, W) from uint8 pixels with their channels last. Raises `ValueError`."""
    _check_uint8(array.dtype, np.dtype(np.uint8))
    shape = array.shape
    if len(shape) == 3 and shape[0] in CHANNELS[1:] and shape[2] not in CHANNELS:
        raise ValueError(
            f"expected an array of images (N, H, W, C) or one image (H, W, C), received {shape}, which may be "
            f"{shape[0]} grey images or one of {shape[0]} channels: give array[..., None] or array.transpose(1, 2, 0)"
        )
    if len(shape) == 2 or (len(shape) == 3 and shape[2] not in (2, *CHANNELS)):
        array = array[..., None]
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4 or array.shape[3] not in CHANNELS or 0 in array.shape[1:]:
        raise ValueError(
            f"expected an array (H, W), (H, W, C), (N, H, W) or (N, H, W, C), {_ONE_OF}, received {shape}; "
            f"a torch tensor has its channels first"
        )
    return torch.from_numpy(np.ascontiguousarray(array)).permute(0, 3, 1, 2)


def images_of_tensor(tensor: Tensor) -> Tensor:
    """(N, C, H, W) from uint8 pixels with their channels first. Raises `ValueError`."""
    _check_uint8(tensor.dtype, torch.uint8)
    x_NCHW = tensor[None] if tensor.dim() == 2 else tensor
    x_NCHW = x_NCHW[None] if x_NCHW.dim() == 3 else x_NCHW
    if x_NCHW.dim() != 4 or x_NCHW.shape[1] not in CHANNELS or 0 in x_NCHW.shape[2:]:
        raise ValueError(
            f"expected a tensor (H, W), (C, H, W) or (N, C, H, W), {_ONE_OF}, received {tuple(tensor.shape)}; "
            f"several grey images are tensor[:, None]"
        )
    return x_NCHW.cpu()


def _check_uint8(received: object, expected: object) -> None:
    if received != expected:
        raise ValueError(f"expected images of uint8, 0…255, received {received}")
