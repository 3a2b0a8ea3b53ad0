"""ReLU, max pooling and dropout, and that each may stand where the notes put it."""

import pytest
import torch
from laboratory.convolution import CONV
from laboratory.layers import POOL, built, images


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


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "step"])
def test_an_activation_after_max_pooling_gives_what_it_gives_before_it(activation: str) -> None:
    """None of them falls, so that the largest stays the largest; after the pooling there is a quarter to compute."""
    x_NCHW = images(10)
    after, before = built(conv=CONV, pool=POOL, act=activation), built(conv=CONV, act=activation, pool=POOL)
    assert list(dict(after.named_children())) == ["conv", "pool", "act"]
    assert torch.equal(after(x_NCHW), before(x_NCHW))


def test_dropout_on_the_input_of_a_dense_layer_takes_its_weights_out_of_the_update() -> None:
    network = built(flatten="flatten", dropout={"type": "dropout"}, dense={"type": "linear", "out_features": 5})
    dropped: list[torch.Tensor] = []
    network.dropout.register_forward_hook(lambda module, inputs, output: dropped.append(output == 0))
    network(images(1) + 1).sum().backward()
    assert 300 < dropped[0].sum() < 484  # 784/2 ± 6.5 standard deviations
    assert torch.equal(network.dense.weight.grad[0] == 0, dropped[0][0])
