"""The layouts of arrays and tensors that `predict` takes."""

import numpy as np
import pytest
import torch

from cnnlab.inference.image_arrays import images_of_array, images_of_tensor


def pixels(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (6, 9, 7), (6, 9, 7, 1), (1, 9, 7), (0, 9, 7, 1)])
def test_grey_arrays_have_one_channel_or_none(shape: tuple[int, ...]) -> None:
    x_N1HW = images_of_array(pixels(*shape))
    assert x_N1HW.shape[1:] == (1, 9, 7)
    assert x_N1HW.flatten().tolist() == pixels(*shape).flatten().tolist()


@pytest.mark.parametrize("shape", [(9, 7, 3), (9, 7, 4), (5, 9, 7, 3), (3, 9, 7, 3), (3, 9, 3)])
def test_arrays_have_their_channels_last(shape: tuple[int, ...]) -> None:
    array = pixels(*shape)
    x_NCHW = images_of_array(array)
    assert x_NCHW.shape == (shape[0] if len(shape) == 4 else 1, shape[-1], *shape[-3:-1])
    assert x_NCHW[-1, :, 1, 2].tolist() == array[..., 1, 2, :].reshape(-1, shape[-1])[-1].tolist()


@pytest.mark.parametrize("shape", [(9, 7), (1, 9, 7), (3, 9, 7), (4, 9, 7), (5, 3, 9, 7), (0, 1, 9, 7)])
def test_tensors_have_their_channels_first(shape: tuple[int, ...]) -> None:
    tensor = torch.from_numpy(pixels(*shape))
    x_NCHW = images_of_tensor(tensor)
    assert x_NCHW.dim() == 4
    assert torch.equal(x_NCHW.reshape(shape), tensor)


@pytest.mark.parametrize("shape", [(3, 9, 7), (4, 9, 7)])
def test_an_array_that_may_be_grey_images_or_channels_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"{shape[0]} grey images or one of {shape[0]} channels: give array"):
        images_of_array(pixels(*shape))


@pytest.mark.parametrize("shape", [(9, 7, 2), (5, 3, 9, 7), (5, 9, 7, 2), (0, 8), (8,), (9, 7, 0)])
def test_arrays_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="a torch tensor has its channels first") as refusal:
        images_of_array(pixels(*shape))
    assert f"received {shape};" in str(refusal.value)


@pytest.mark.parametrize("shape", [(2, 9, 7), (5, 9, 7), (9, 7, 3), (5, 9, 7, 1), (8,), (1, 0, 3)])
def test_tensors_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="several grey images are tensor") as refusal:
        images_of_tensor(torch.from_numpy(pixels(*shape)))
    assert f"received {shape};" in str(refusal.value)


def test_pixels_that_are_not_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8, 0…255, received float64"):
        images_of_array(np.zeros((8, 8)))
    with pytest.raises(ValueError, match=r"uint8, 0…255, received torch\.float32"):
        images_of_tensor(torch.zeros(1, 8, 8))
