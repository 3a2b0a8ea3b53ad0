"""Truth tables as images."""

from operator import and_, or_, xor

import pytest
import torch

from cnnlab.data.logic_gates import TABLES, LogicGates
from cnnlab.data.normalization import Normalization, normalized
from cnnlab.runtime.errors import ArgumentError

FORMULAS = {
    "and": and_,
    "or": or_,
    "xor": xor,
    "nand": lambda a, b: 1 - (a & b),
    "nor": lambda a, b: 1 - (a | b),
    "xnor": lambda a, b: 1 - (a ^ b),
}


@pytest.mark.parametrize("gate", FORMULAS)
def test_a_gate_puts_out_what_python_computes(gate: str) -> None:
    rows = LogicGates(gate).read("train")
    for inputs, output in zip((rows.x_NCHW // 255).flatten(1).tolist(), rows.y_N.tolist(), strict=True):
        assert output == FORMULAS[gate](*inputs)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_split_has_the_same_four_rows(split: str) -> None:
    source = LogicGates("xor")
    rows = source.read(split)
    assert (rows.x_NCHW // 255).flatten(1).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert len(rows) == source.describe().counts[split] == 4
    assert tuple(rows.x_NCHW.shape[1:]) == source.describe().input_shape


def test_what_validates_and_tests_is_declared_the_same() -> None:
    assert LogicGates("xor").describe().origins == {"val": "the same rows", "test": "the same rows"}


def test_in_units_the_inputs_are_exactly_0_and_1() -> None:
    x_NCHW = LogicGates("and").read("train").x_NCHW
    tensors = Normalization.fit("unit", x_NCHW).tensors(torch.device("cpu"))
    assert normalized(x_NCHW, *tensors).unique().tolist() == [0, 1]


def test_each_of_the_16_functions_has_a_name_of_four_digits() -> None:
    assert len(set(TABLES)) == 16
    for table in TABLES:
        assert LogicGates(table).read("train").y_N.tolist() == [int(digit) for digit in table]


def test_a_number_on_the_command_line_is_its_digits() -> None:
    assert LogicGates(1110).outputs == LogicGates("nand").outputs


@pytest.mark.parametrize(
    ("gate", "message"), [("nandd", "did you mean 'nand'"), ("011", "in quotes"), (72, "received 72"), ("0120", "0120")]
)
def test_another_gate_is_refused(gate: str | int, message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as caught:
        LogicGates(gate)
    assert caught.value.argument == "gate"
