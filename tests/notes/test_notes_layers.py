"""ReLU, max pooling and dropout, and that each may stand where the notes put it."""

from typing import Any

import pytest
import torch
from laboratory.convolution import CONV, rows_of
from laboratory.layers import POOL, built, images

from cnnlab.network import LayerRow, build_network


def test_relu_silences_what_is_not_positive_and_nothing_else() -> None:
    network = built(conv=CONV, relu="relu")
    z_NCHW = network.conv(images(50)).detach().requires_grad_()
    a_NCHW = network.relu(z_NCHW)
    a_NCHW.sum().backward()
    assert z_NCHW.grad is not None
    dead_share = (z_NCHW <= 0).double().mean()
    assert 0.2 < dead_share < 0.8
    assert (a_NCHW == 0).double().mean() == dead_share
    assert torch.equal(z_NCHW.grad == 0, z_NCHW <= 0)
    assert torch.equal(a_NCHW[z_NCHW > 0], z_NCHW[z_NCHW > 0])


def test_max_pooling_keeps_a_quarter_and_spares_the_dense_layer_three() -> None:
    def planned(**blocks: Any) -> dict[str, LayerRow]:
        dense = {"flatten": "flatten", "dense": {"type": "linear", "out_features": 100}}
        return {row.path: row for row in rows_of((1, 28, 28), **blocks, **dense)}

    plain, pooled = planned(conv=CONV), planned(conv=CONV, pool=POOL)
    assert pooled["flatten"].output_shape[0] / plain["flatten"].output_shape[0] == 0.25
    biases = 100
    assert (plain["dense"].parameters - biases, pooled["dense"].parameters - biases) == (1_152_000, 288_000)


def test_max_pooling_keeps_the_largest_of_each_window() -> None:
    x_NCHW = images(2, size=4)
    network = build_network((1, 4, 4), {"pool": POOL})
    windows = x_NCHW.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    assert torch.equal(network(x_NCHW), windows.max(4).values)


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "step"])
def test_an_activation_after_max_pooling_gives_what_it_gives_before_it(activation: str) -> None:
    """None of them falls, so that the largest stays the largest; after the pooling there is a quarter to compute."""
    x_NCHW = images(10)
    after, before = built(conv=CONV, pool=POOL, act=activation), built(conv=CONV, act=activation, pool=POOL)
    assert list(dict(after.named_children())) == ["conv", "pool", "act"]
    assert torch.equal(after(x_NCHW), before(x_NCHW))


def test_dropout_before_a_dense_layer_has_the_evaluation_output_as_its_mean() -> None:
    """Each output is Σ w·x·m/(1 − p), of variance Σ (w·x)²·p/(1 − p) over the masks."""
    p, masks = 0.5, 10_000
    network = built(flatten="flatten", dropout={"type": "dropout", "p": p}, dense={"type": "linear", "out_features": 5})
    x_NCHW = images(1)
    with torch.no_grad():
        evaluated_K = network.eval()(x_NCHW)[0]
        mean_K = network.train()(x_NCHW.expand(masks, -1, -1, -1)).mean(0)
        sd_K = ((network.dense.weight * x_NCHW.flatten()) ** 2).sum(1).mul(p / (1 - p) / masks).sqrt()
    assert ((mean_K - evaluated_K).abs() < 3 * sd_K).all()
    assert ((mean_K - evaluated_K).abs() > 0).all()  # it is a mean over masks, not the same pass


def test_dropout_on_the_input_of_a_dense_layer_takes_its_weights_out_of_the_update() -> None:
    network = built(flatten="flatten", dropout={"type": "dropout"}, dense={"type": "linear", "out_features": 5})
    dropped: list[torch.Tensor] = []
    network.dropout.register_forward_hook(lambda module, inputs, output: dropped.append(output == 0))
    network(images(1) + 1).sum().backward()
    assert 300 < dropped[0].sum() < 484  # 784/2 ± 6.5 standard deviations
    assert torch.equal(network.dense.weight.grad[0] == 0, dropped[0][0])
