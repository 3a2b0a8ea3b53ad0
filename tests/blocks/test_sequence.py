"""Blocks for sequences (N, L, D), against torch's attention and by hand."""

from typing import Any

import pytest
import torch
from torch import nn

from cnnlab.blocks.sequence import Attention, ClassToken, FirstToken, ImageToSequence, PositionalEmbedding
from cnnlab.network import build_network
from cnnlab.runtime.errors import ArgumentError, ConfigError


def test_an_images_pixels_become_positions_row_by_row() -> None:
    x_NCHW = torch.arange(12.0).view(1, 2, 2, 3)
    assert ImageToSequence()(x_NCHW).tolist() == [[[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]]]


def test_the_class_token_stands_first_and_first_token_selects_it() -> None:
    token = ClassToken(2)
    assert token.weight.tolist() == [0, 0]
    with torch.no_grad():
        token.weight.copy_(torch.tensor([7.0, 8.0]))
    x_NLD = torch.randn(3, 4, 2)
    longer_NLD = token(x_NLD)
    assert torch.equal(longer_NLD[:, 1:], x_NLD)
    assert FirstToken()(longer_NLD).tolist() == [[7, 8]] * 3


def test_the_positional_embedding_is_added_and_starts_with_its_spread() -> None:
    torch.manual_seed(0)
    embedding = PositionalEmbedding((100, 200))
    assert embedding.weight.std().item() == pytest.approx(0.02, rel=5 / (2 * 20_000) ** 0.5)
    torch.testing.assert_close(embedding(torch.ones(2, 100, 200)), 1 + embedding.weight.expand(2, -1, -1))


@pytest.mark.parametrize("init", ["he", {"type": "normal", "std": 5.0}])
def test_a_networks_init_leaves_the_positional_embedding_alone(init: Any) -> None:
    network = build_network((50, 60), {"embedding": "positional_embedding"}, init=init)
    assert network.get_parameter("embedding.weight").abs().max() < 0.02 * 6


@pytest.mark.parametrize("bias", [True, False])
def test_attention_is_torchs(bias: bool) -> None:
    torch.manual_seed(0)
    ours = Attention(12, 3, bias=bias)
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(12, 3, bias=bias, batch_first=True)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        if mine.dim() == 2 and len(mine) == 36:
            torch.testing.assert_close(mine.std(), other.std(), rtol=0.2, atol=0)  # both Xavier's
        with torch.no_grad():
            other.copy_(mine)
    x_NLD = torch.randn(2, 5, 12)
    torch.testing.assert_close(ours(x_NLD), theirs(x_NLD, x_NLD, x_NLD, need_weights=False)[0])


def test_attention_drops_weights_in_training_alone() -> None:
    attention, x_NLD = Attention(4, 2, dropout=0.5), torch.randn(2, 5, 4)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(attention(x_NLD))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    torch.testing.assert_close(attention.eval()(x_NLD), attention(x_NLD), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("block", "arguments", "message"),
    [
        (Attention, {"in_features": 12, "num_heads": 5}, "num_heads: expected a divisor of the 12 features, received"),
        (Attention, {"in_features": 12, "num_heads": 3, "dropout": 1}, r"dropout: expected a number in \[0, 1\)"),
        (PositionalEmbedding, {"input_shape": (2, 3), "std": -1}, "std: expected a number"),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused(block: type[nn.Module], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{message}"):
        block(**arguments)


@pytest.mark.parametrize(
    "block", ["class_token", "first_token", "positional_embedding", {"type": "attention", "num_heads": 2}]
)
def test_an_image_has_to_become_a_sequence_first(block: Any) -> None:
    with pytest.raises(ConfigError, match=r"expected a sequence .*, received 4×6×8; 'image_to_sequence' makes one"):
        build_network((4, 6, 8), {"layer": block})


def test_sizes_that_do_not_fit_the_sequence_are_refused() -> None:
    with pytest.raises(ConfigError, match="layer: in_features=6, but 4 features reach it"):
        build_network((5, 4), {"layer": {"type": "class_token", "in_features": 6}})
    with pytest.raises(ConfigError, match=r"layer.input_shape: expected 5×4, which is inferred"):
        build_network((5, 4), {"layer": {"type": "positional_embedding", "input_shape": [6, 4]}})


def test_a_layer_norm_of_a_sequence_is_that_of_each_positions_features() -> None:
    x_NLD = torch.randn(2, 5, 4)
    network = build_network((5, 4), {"norm": "layer_norm"})
    torch.testing.assert_close(network(x_NLD), nn.functional.layer_norm(x_NLD, (4,)))
