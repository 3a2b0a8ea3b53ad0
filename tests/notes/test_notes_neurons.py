"""Perceptrons and sigmoid neurons."""

import json
from pathlib import Path

import pytest
import torch
from commands import composed, run
from laboratory.neurons import QUADRATIC, correct_rows, learns, nand, rows_of
from laboratory.updates import update
from torch import nn

from cnnlab.cli import train
from cnnlab.components import Trust
from cnnlab.config.check import check_config
from cnnlab.data.logic_gates import TABLES


def built(experiment: str) -> nn.Sequential:
    return check_config(composed(f"experiment={experiment}"), Trust()).network.build()


def test_a_perceptron_with_weights_minus_2_and_bias_3_is_a_nand_and_four_are_an_xor() -> None:
    x_NCHW, y_N = rows_of("nand")
    assert nand()(x_NCHW).flatten().tolist() == y_N.tolist() == [1, 1, 1, 0]
    assert correct_rows(built("xor_of_nands"), "xor") == 4


@pytest.mark.parametrize("row", range(4))
def test_an_update_under_a_straight_through_step_is_the_perceptron_rule(row: int) -> None:
    """w ← w + η·(y − a)·x to the bit; both classes count the error, so that η is twice the lr."""
    network, x_NCHW, y_N = built("perceptron"), *rows_of("nand")
    neuron, (x, y) = network.perceptron, (x_NCHW[row].flatten(), y_N[row])
    with torch.no_grad():
        neuron.weight.copy_(torch.tensor([[0.25, -0.5]]))
        neuron.bias.fill_(0.125)
    a = float(neuron.weight @ x + neuron.bias > 0)
    weight, bias = neuron.weight + 2 * 0.25 * (y - a) * x, neuron.bias + 2 * 0.25 * (y - a)
    update(network, QUADRATIC, x_NCHW[row : row + 1], y_N[row : row + 1], lr=0.25)
    assert torch.equal(neuron.weight, weight)
    assert torch.equal(neuron.bias, bias)


def test_one_perceptron_learns_14_of_the_16_functions_of_two_inputs() -> None:
    model = composed("experiment=perceptron")["model"]
    assert {gate for gate in TABLES if not learns(model, gate)} == {"0110", "1001"}  # xor and xnor


@pytest.mark.parametrize(
    ("overrides", "learned"),
    [
        (["experiment=perceptron"], True),
        (["experiment=perceptron", "data.gate=xor"], False),
        (["data=logic_gates", "data.gate=xor", "model=mlp", "trainer.epochs=30"], True),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_the_readme_says_of_single_neurons(in_tmp_path: Path, overrides: list[str], learned: bool) -> None:
    answer = run(train, "run_dir=run", "observers=quiet", *overrides)
    assert answer.code == 0, answer.err
    assert (json.loads(Path("run/summary.json").read_text(encoding="utf-8"))["test"]["accuracy"] == 1) is learned
