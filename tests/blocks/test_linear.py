"""The fully connected layer."""

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
    assert [name for name, _ in Linear(2, 3, bias=False).named_parameters()] == ["weight"]


@pytest.mark.parametrize("argument", ["in_features", "out_features"])
def test_a_value_out_of_range_names_its_argument(argument: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Linear(**{"in_features": 1, "out_features": 1, argument: 0})
    assert caught.value.argument == argument
