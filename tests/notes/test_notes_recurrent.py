"""RNN or CNN: the same budget of parameters, and what it costs each when the pixels lie in a random order."""

import statistics

import pytest
import torch
from commands import composed

from cnnlab.components import Component, Trust
from cnnlab.config.check import check_config
from cnnlab.data.digits import Digits
from cnnlab.data.normalization import Normalization
from cnnlab.data.resident import ResidentLoader
from cnnlab.engine.evaluation import evaluate
from cnnlab.engine.execution import Execution
from cnnlab.engine.optimization import build_optimizer
from cnnlab.engine.step import train_step
from cnnlab.losses import CrossEntropy
from cnnlab.network import build_network

CPU = torch.device("cpu")
OUTPUT = {"type": "linear", "out_features": "classes"}
CNN = {
    "conv1": {"type": "conv", "out_channels": 16, "kernel_size": 3},
    "relu1": "relu",
    "pool1": {"type": "max_pool", "kernel_size": 2},
    "conv2": {"type": "conv", "out_channels": 32, "kernel_size": 3},
    "relu2": "relu",
    "flatten": "flatten",
    "output": OUTPUT,
}
MLP = {"flatten": "flatten", "hidden": {"type": "linear", "out_features": 70}, "relu": "relu", "output": OUTPUT}


def parameters(*overrides: str) -> int:
    network = check_config(composed(*overrides), Trust()).network
    return sum(row.parameters for row in network.rows)


@pytest.mark.parametrize(
    ("choice", "by_hand"),
    [
        ("mlp", 784 * 100 + 100 + 100 * 10 + 10),
        ("cnn", 20 * (25 + 1) + 40 * (20 * 25 + 1) + 40 * 4 * 4 * 100 + 100 + 100 * 10 + 10),
        ("lstm", 4 * 128 * (28 + 128 + 2) + 128 * 10 + 10),  # torch's LSTM has two biases for each gate
    ],
)
def test_the_three_networks_have_about_as_many_parameters_and_a_permutation_none(choice: str, by_hand: int) -> None:
    experiment = f"experiment=rnn_vs_cnn/{choice}"
    assert parameters(experiment) == by_hand == pytest.approx(82_500, rel=0.04)
    assert parameters(experiment, "model.blocks.permute=permute_pixels") == by_hand


def test_a_feed_forward_network_gives_each_step_once_and_a_recurrent_one_hands_its_state_on() -> None:
    """The last state depends on every row; that of a network without its recurrent weights on the last row alone."""
    torch.manual_seed(0)
    lstm = build_network((1, 8, 8), {"lstm": {"type": "lstm", "hidden_size": 4}})
    x_NCHW = torch.rand(1, 1, 8, 8, requires_grad=True)
    (reach,) = torch.autograd.grad(lstm(x_NCHW).sum(), x_NCHW)
    assert reach.abs().sum((0, 1, 3)).all()
    rnn = build_network((1, 8, 8), {"rnn": {"type": "rnn", "hidden_size": 4}})
    with torch.no_grad():
        rnn.rnn.layers[0].weight_hh_l0.zero_()
    (reach,) = torch.autograd.grad(rnn(x_NCHW).sum(), x_NCHW)
    assert reach.abs().sum((0, 1, 3)).nonzero().tolist() == [[7]]


def accuracy(blocks: dict[str, object], permuted: bool, seed: int, epochs: int = 12) -> float:
    """On the digits' test split, after training on the first 400 of them."""
    source = Digits()
    images = source.read("train").select(torch.arange(400))
    normalization = Normalization.fit("standardize", images.x_NCHW)
    torch.manual_seed(seed)
    first = {"permute": "permute_pixels"} if permuted else {}
    network = build_network((1, 8, 8), {**first, **blocks}, classes=10)
    optimizer = build_optimizer(Component("optimizer", "adam", torch.optim.Adam, {"lr": 3e-3}), network, {})
    execution, loss = Execution(), CrossEntropy()
    loader = ResidentLoader(images, normalization, 20, device=CPU, shuffle=True, seed=seed)
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for batch in loader:
            train_step(network, loss, optimizer, batch, execution=execution, scaler=execution.scaler(CPU))
    test = ResidentLoader(source.read("test"), normalization, 400, device=CPU, shuffle=False)
    return evaluate(network, loss, test, execution)["accuracy"]


@pytest.mark.slow
def test_permuting_the_pixels_costs_the_cnn_and_not_the_mlp() -> None:
    lost = {}
    for name, blocks in (("cnn", CNN), ("mlp", MLP)):
        plain, permuted = (
            statistics.mean(accuracy(blocks, permuted, seed) for seed in range(4)) for permuted in (False, True)
        )
        lost[name] = plain - permuted
    assert lost["cnn"] > 0.04
    assert abs(lost["mlp"]) < 0.01
