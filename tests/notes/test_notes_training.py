"""Overfitting and its cure, and ReLU beside the sigmoid: what shows only in whole trainings."""

import json
import statistics
from pathlib import Path

import pytest
import torch
from commands import run
from laboratory.neurons import CROSS_ENTROPY
from torch import nn

from cnnlab.cli import train
from cnnlab.components import Component
from cnnlab.data.digits import Digits
from cnnlab.engine.execution import Execution
from cnnlab.engine.optimization import OPTIMIZERS, build_optimizer
from cnnlab.engine.step import count_correct, train_step
from cnnlab.network import build_network
from cnnlab.runtime.batch import Batch

IMAGES, EPOCHS, ETA = 100, 300, 0.5


def accuracies(lambda_: float, seed: int) -> tuple[float, float]:
    """Of 30 sigmoid neurons that learned 100 digits in mini-batches of 10: on those, and on the test images."""
    source = Digits()
    (x_train, y_train), (x_test, y_test) = (
        (images.x_NCHW.float() / 255, images.y_N) for images in (source.read("train"), source.read("test"))
    )
    x_train, y_train = x_train[:IMAGES], y_train[:IMAGES]
    torch.manual_seed(seed)
    hidden, output = ({"type": "linear", "out_features": count} for count in (30, "classes"))
    blocks = {"flatten": "flatten", "hidden": hidden, "sigmoid": "sigmoid", "output": output}
    network = build_network((1, 8, 8), blocks, classes=10, init="book_large")
    arguments = {"lr": ETA, "weight_decay": lambda_ / IMAGES}
    optimizer = build_optimizer(Component("optimizer", "sgd", OPTIMIZERS["sgd"], arguments), network, {})
    execution = Execution()
    scaler = execution.scaler(torch.device("cpu"))
    for _ in range(EPOCHS):
        for rows in torch.randperm(IMAGES).split(10):
            batch = Batch(x_train[rows], y_train[rows], rows)
            train_step(network, CROSS_ENTROPY, optimizer, batch, execution=execution, scaler=scaler)
    return accuracy_on(network, x_train, y_train), accuracy_on(network, x_test, y_test)


@torch.no_grad()
def accuracy_on(network: nn.Module, x_NCHW: torch.Tensor, y_N: torch.Tensor) -> float:
    return count_correct(network(x_NCHW), y_N).item() / len(y_N)


@pytest.mark.slow
def test_few_images_are_learned_by_heart_and_regularization_narrows_the_gap() -> None:
    """Nielsen's chapter 3 with a tenth of the images: right on all of them, on a fifth of the others wrong."""
    tests = {}
    for lambda_ in (0.0, 0.3):
        found = [accuracies(lambda_, seed) for seed in range(3)]
        assert [learned for learned, _ in found] == [1.0] * 3
        tests[lambda_] = statistics.mean(unseen for _, unseen in found)
    assert tests[0.0] < 0.85
    assert tests[0.3] > tests[0.0] + 0.005


@pytest.mark.slow
@pytest.mark.mnist
def test_relu_is_above_the_sigmoid_in_the_network_of_two_convolutions(in_tmp_path: Path, mnist_root: Path) -> None:
    """The book's c6-relu and c6-conv2 over three seeds each, on 3,000 images and three epochs."""
    execution = ("trainer.execution.compile=false", "trainer.execution.layout=channels_last", "observers=quiet")
    short = (f"data.root={mnist_root}", "data.limit=3000", "trainer.epochs=3", *execution)
    mean = {}
    for name in ("c6-relu", "c6-conv2"):
        found = []
        for seed in range(3):
            answer = run(train, f"experiment=book/{name}", f"seed={seed}", f"run_dir={name}-{seed}", *short)
            assert answer.code == 0, answer.err
            found.append(
                json.loads(Path(f"{name}-{seed}/summary.json").read_text(encoding="utf-8"))["test"]["accuracy"]
            )
        mean[name] = statistics.mean(found)
    assert mean["c6-relu"] > mean["c6-conv2"] + 0.02
