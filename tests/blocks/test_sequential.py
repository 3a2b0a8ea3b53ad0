"""Blocks made of blocks."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from cnnlab.blocks.sequential import Residual, Sequential


class Affine(nn.Module):
    """scale · x + shift"""

    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.shift


def column(**blocks: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(blocks))


def test_a_sequence_runs_its_body_in_order() -> None:
    sequence = Sequential(column(first=Affine(2, 0), second=Affine(1, 3)))
    assert sequence(torch.tensor([5.0])).item() == 13.0  # 2·5 + 3, not 2·(5 + 3)


def test_a_residual_adds_its_input_or_its_projection_to_its_body() -> None:
    assert Residual(Affine(2, 1))(torch.tensor([5.0])).item() == 16.0  # (2·5 + 1) + 5
    assert Residual(Affine(2, 1), Affine(10, 0))(torch.tensor([5.0])).item() == 61.0  # (2·5 + 1) + 10·5


def test_the_gradient_passes_a_residual_whose_body_blocks_it() -> None:
    x = torch.tensor([5.0], requires_grad=True)
    Residual(Affine(0, 1))(x).backward()
    assert x.grad is not None
    assert x.grad.item() == 1.0


def test_the_names_of_weights_are_those_of_the_blocks() -> None:
    assert list(Sequential(column(output=nn.Linear(2, 1, bias=False))).state_dict()) == ["output.weight"]
    residual = Residual(column(conv=nn.Conv2d(1, 1, 1, bias=False)), column(conv=nn.Conv2d(1, 1, 1, bias=False)))
    assert list(residual.state_dict()) == ["blocks.conv.weight", "projection.conv.weight"]
