"""Windows against torch's own classes: legal sizes, output sizes, and the pixels that no window covers."""

from typing import Any

import pytest
import torch
from torch import nn

from cnnlab.blocks import AvgPool, Conv, MaxPool
from cnnlab.blocks.window import Window
from cnnlab.runtime.errors import ConfigError


def runs(module: nn.Module, height: int, width: int) -> bool:
    try:
        module(torch.zeros(1, 1, height, width))
    except RuntimeError:
        return False
    return True


CONVOLUTIONS = [(k, p, d) for k in (2, 5) for p in (0, 1) for d in (1, 3)]
MODULES: list[nn.Module] = [
    *(Conv(1, 1, k, padding=p, dilation=d) for k, p, d in CONVOLUTIONS),
    *(Conv(1, 1, (k, 2), padding=(0, p)) for k in (1, 4) for p in (0, 1)),
    Conv(1, 1, 4, padding="valid", stride=3),
    Conv(1, 1, 5, padding="same", dilation=2),
    Conv(1, 1, 9, padding=3, padding_mode="reflect"),
    Conv(1, 1, 8, padding=3, padding_mode="circular"),
    Conv(1, 1, 5, padding=2, padding_mode="replicate"),
    Conv(1, 1, 5, padding=2, padding_mode="constant", padding_value=1.0),
    *(MaxPool(k, padding=p, dilation=d) for k, p, d in ((2, 0, 1), (4, 1, 1), (4, 2, 3))),
    *(AvgPool(k, padding=p) for k, p in ((2, 0), (5, 1), ((3, 2), (1, 0)))),
    *(MaxPool(k, stride=s, padding=p, ceil_mode=True) for k, s, p in ((3, 2, 0), (5, 3, 2), (2, 4, 1))),
]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_window_fits_what_torch_takes_and_gives_its_size(module: nn.Module) -> None:
    window = Window.of(module)
    for height, width in ((height, width) for height in range(1, 12) for width in (1, 3, 8, 11)):
        if runs(module, height, width):
            facts = window.facts((1, height, width), 1)
            assert facts.output_shape == tuple(module(torch.zeros(1, 1, height, width)).shape[1:])
        else:
            with pytest.raises(ConfigError):
                window.check((1, height, width))
    smallest = window.rows.smallest, window.columns.smallest
    assert runs(module, *smallest)
    for smaller in ((smallest[0] - 1, smallest[1]), (smallest[0], smallest[1] - 1)):
        assert 0 in smaller or not runs(module, *smaller)


WIDE = Conv(3, 4, 5, stride=2, padding=1, dilation=2)  # 5 taps span 2·(5 − 1) + 1 = 9; the width is 6 + 2·1 = 8
MIRRORED = Conv(1, 1, 3, padding=3, padding_mode="reflect")


@pytest.mark.parametrize(
    ("conv", "shape", "message"),
    [
        (WIDE, (3, 20, 6), "width (6 + 2 − 9) / 2 + 1 < 1; the smallest legal input is 3×7×7"),
        (MIRRORED, (1, 3, 3), "its padding mirrors 3 of 3 (height); the smallest legal input is 1×4×4"),
    ],
)
def test_an_error_gives_the_arithmetic_and_the_smallest_legal_input(
    conv: Conv, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Window.of(conv).check(shape)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("module", "shape", "remark"),
    [
        (Conv(1, 1, 3, stride=3), (1, 7, 8), "drops 1 row, 2 columns"),  # 4 / 3 = 1, rest 1; 5 / 3 = 1, rest 2
        (Conv(1, 1, 3, stride=3, padding=1), (1, 9, 8), "drops 1 row"),  # windows begin at −1, 2, 5 and end at 7
        (MaxPool(2, ceil_mode=True), (1, 5, 5), ""),
    ],
    ids=str,
)
def test_the_remark_counts_the_rows_and_columns_that_no_window_covers(
    module: nn.Module, shape: tuple[int, ...], remark: str
) -> None:
    assert Window.of(module).remark(shape) == remark


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("pool", [False, True])
def test_the_dropped_rows_are_those_that_no_gradient_reaches(padding: int, stride: int, pool: bool) -> None:
    block: Any = AvgPool(5, stride, padding, ceil_mode=True) if pool else Conv(1, 1, 5, stride=stride, padding=padding)
    for size in (7, 8, 9, 10):
        x_NCHW = torch.zeros(1, 1, size, size, requires_grad=True)
        block(x_NCHW).sum().backward()
        assert x_NCHW.grad is not None
        last_reached = int(x_NCHW.grad[0, 0].any(1).nonzero().max())
        assert Window.of(block).rows.dropped(size) == size - 1 - last_reached
