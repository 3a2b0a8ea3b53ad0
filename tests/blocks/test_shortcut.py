import pytest
import torch

from cnnlab.blocks.shortcut import ZeroPadShortcut
from cnnlab.runtime.errors import ArgumentError


def test_it_is_the_1x1_convolution_whose_filters_are_unit_vectors() -> None:
    x_NCHW = torch.randn(2, 3, 7, 9)
    identity = torch.eye(6, 3)[..., None, None]
    expected = torch.nn.functional.conv2d(x_NCHW, identity, stride=2)
    shortcut = ZeroPadShortcut(3, 6, stride=2)
    torch.testing.assert_close(shortcut(x_NCHW), expected)
    assert not list(shortcut.parameters())


def test_the_gradient_goes_to_the_kept_pixels_alone() -> None:
    x_NCHW = torch.randn(1, 1, 4, 4, requires_grad=True)
    ZeroPadShortcut(1, 2, stride=2)(x_NCHW).sum().backward()
    expected = torch.zeros(1, 1, 4, 4)
    expected[..., ::2, ::2] = 1
    torch.testing.assert_close(x_NCHW.grad, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out_channels": 2}, "out_channels: expected at least the 3 channels that reach it, received 2"),
        ({"out_channels": 3, "stride": 0}, "stride: expected a whole number from 1 to 65536, received 0"),
    ],
)
def test_a_value_out_of_range_is_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ZeroPadShortcut(3, **arguments)
