"""Recurrent blocks against `torch.nn` on a sequence that was put together by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cnnlab.blocks import GRU, LSTM, RNN
from cnnlab.blocks.recurrent import Recurrent
from cnnlab.network import plan_network
from cnnlab.runtime.errors import ArgumentError, Complaints

SHAPE = (2, 3, 5)  # channels, height, width
KINDS = [(RNN, nn.RNN), (GRU, nn.GRU), (LSTM, nn.LSTM)]


def images() -> Tensor:
    return torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))


def rows_by_hand(x_NCHW: Tensor) -> Tensor:
    """(H, N, C·W), entry by entry."""
    return torch.stack([torch.stack([torch.cat([*image[:, row]]) for image in x_NCHW]) for row in range(3)])


def pixels_by_hand(x_NCHW: Tensor) -> Tensor:
    """(H·W, N, C), entry by entry."""
    return torch.stack([x_NCHW[:, :, row, column] for row in range(3) for column in range(5)])


def torchs_own(block: Recurrent, kind: type[nn.RNNBase], **arguments: Any) -> nn.RNNBase:
    """torch's layers of one kind in one module, with the block's weights."""
    reference = kind(int(block.layers[0].input_size), 6, num_layers=len(block.layers), **arguments)  # type: ignore[arg-type]
    states = enumerate(layer.state_dict().items() for layer in block.layers)
    reference.load_state_dict({name.replace("l0", f"l{i}"): value for i, state in states for name, value in state})
    return reference


def hidden_of(output: Any) -> Tensor:
    """(layers · directions, N, hidden)."""
    last = output[1][0] if isinstance(output[1], tuple) else output[1]
    assert isinstance(last, Tensor)
    return last


@pytest.mark.parametrize(("block_type", "kind"), KINDS)
@pytest.mark.parametrize(("order", "by_hand"), [("rows", rows_by_hand), ("pixels", pixels_by_hand)])
def test_it_is_torchs_layer_on_the_sequence(block_type: Any, kind: type[nn.RNNBase], order: str, by_hand: Any) -> None:
    block = block_type(SHAPE, 6, num_layers=2, dropout=0.5, order=order).eval()
    expected = hidden_of(torchs_own(block, kind)(by_hand(images())))[-1]
    torch.testing.assert_close(block(images()), expected)


@pytest.mark.parametrize(("block_type", "kind"), KINDS)
def test_the_backward_direction_follows_the_forward_one(block_type: Any, kind: type[nn.RNNBase]) -> None:
    block = block_type(SHAPE, 6, num_layers=2, bidirectional=True)
    last = hidden_of(torchs_own(block, kind, bidirectional=True)(rows_by_hand(images())))
    torch.testing.assert_close(block(images()), torch.cat([last[-2], last[-1]], 1))


@pytest.mark.parametrize("order", ["rows", "pixels"])
def test_the_layout_of_the_images_changes_nothing(order: str) -> None:
    block = LSTM(SHAPE, 6, order=order)
    assert torch.equal(block(images().contiguous(memory_format=torch.channels_last)), block(images()))


def test_a_single_layer_is_torchs_own_to_its_weights() -> None:
    torch.manual_seed(3)
    block = RNN(SHAPE, 6, nonlinearity="relu", bias=False)
    torch.manual_seed(3)
    reference = nn.RNN(10, 6, nonlinearity="relu", bias=False)
    assert all(torch.equal(block.layers[0].state_dict()[name], value) for name, value in reference.state_dict().items())
    torch.testing.assert_close(block(images()), hidden_of(reference(rows_by_hand(images())))[-1])


def test_dropout_acts_between_the_layers_alone() -> None:
    block = RNN(SHAPE, 64, num_layers=2, dropout=0.5)
    seen: list[Tensor] = []
    block.layers[1].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    torch.manual_seed(0)
    output_NF = block(images())
    torch.manual_seed(0)
    assert torch.equal(block(images()), output_NF)  # drawn from torch's generator, which a checkpoint holds
    first, _ = block.layers[0](rows_by_hand(images()))
    kept = seen[0] != 0
    torch.testing.assert_close(seen[0][kept], 2 * first[kept])
    assert 0.4 < kept.double().mean() < 0.6  # 768 draws: a standard deviation of 0.018
    assert not (output_NF == 0).any()


@pytest.mark.parametrize("block_type", [RNN, GRU, LSTM])
@pytest.mark.parametrize("settings", [{}, {"order": "pixels"}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_macs_are_half_of_torchs_flops(block_type: Any, settings: dict[str, Any]) -> None:
    with torch.device("meta"):
        block = block_type(SHAPE, 6, **settings)
        counter = FlopCounterMode(display=False)
        with counter:
            output_NF = block(torch.empty(1, *SHAPE))
    facts = block.facts(SHAPE)
    assert facts.macs == counter.get_total_flops() // 2
    assert facts.output_shape == output_NF.shape[1:]


def test_rows_of_mnist_by_hand() -> None:
    # 28 rows through four gates, each of which sees 28 pixels and the 64 hidden units
    assert LSTM((1, 28, 28), 64).facts((1, 28, 28)).macs == 28 * 4 * 64 * (28 + 64) == 659_456


def test_every_unit_sees_the_whole_image() -> None:
    plan = plan_network((1, 8, 8), {"lstm": {"type": "lstm", "hidden_size": 4}}, Complaints())  # sizes inferred
    assert plan
    assert plan.rows[0].receptive_field == "whole"
    assert plan.output_shape == (4,)
    x_NCHW = torch.rand(1, 1, 8, 8, requires_grad=True)
    plan.build()(x_NCHW)[0, 0].backward()
    assert x_NCHW.grad is not None
    assert x_NCHW.grad.all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 0}, "hidden_size: expected a whole number from 1 to 16777216, received 0"),
        ({"num_layers": 0}, "num_layers: expected a whole number from 1 to 100, received 0"),
        ({"num_layers": 2, "dropout": 1.0}, r"dropout: expected a number in \[0, 1\), received 1.0"),
        ({"dropout": 0.5}, "dropout: it acts between layers: expected num_layers of 2 or more beside it"),
        ({"order": "row"}, "order: expected .*rows"),
        ({"nonlinearity": "sigmoid"}, "nonlinearity: expected .*tanh"),
    ],
)
def test_a_value_out_of_range_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        RNN(SHAPE, **{"hidden_size": 4, **arguments})
