"""The fully connected layer."""

from typing import Any

import pytest
import torch

from cnnlab.blocks.linear import Linear
from cnnlab.runtime.errors import ArgumentError


def test_every_output_is_a_weighted_sum_of_every_input_plus_its_bias() -> None:
    linear = Linear(2, 3)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
        linear.bias.copy_(torch.tensor([0.5, 0.0, -0.5]))
    # 1·10 + 2·1 + 0.5, 3·10 + 4·1, 5·10 + 6·1 − 0.5
    assert linear(torch.tensor([[10.0, 1.0]])).tolist() == [[12.5, 34.0, 55.5]]


def test_it_can_do_without_a_bias() -> None:
    assert [name for name, _ in Linear(2, 3, bias=False).named_parameters()] == ["weight"]


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"in_features": 0, "out_features": 1}, "in_features"),
        ({"in_features": 1, "out_features": 0}, "out_features"),
        ({"in_features": 1, "out_features": 2.5}, "out_features"),
        ({"in_features": 1, "out_features": True}, "out_features"),
    ],
    ids=str,
)
def test_a_value_out_of_range_names_its_argument(settings: dict[str, Any], argument: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Linear(**settings)
    assert caught.value.argument == argument
