"""Truth tables as images."""

from operator import and_, or_, xor

import pytest

from cnnlab.data.logic_gates import TABLES, LogicGates
from cnnlab.runtime.errors import ArgumentError

FORMULAS = {"and": and_, "or": or_, "xor": xor}
FORMULAS |= {f"n{name}": lambda a, b, gate=gate: 1 - gate(a, b) for name, gate in (("and", and_), ("or", or_))}
FORMULAS["xnor"] = lambda a, b: 1 - (a ^ b)


@pytest.mark.parametrize("gate", FORMULAS)
def test_a_gate_puts_out_what_python_computes(gate: str) -> None:
    rows = LogicGates(gate).read("train")
    for inputs, output in zip((rows.x_NCHW // 255).flatten(1).tolist(), rows.y_N.tolist(), strict=True):
        assert output == FORMULAS[gate](*inputs)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_split_has_the_same_four_rows(split: str) -> None:
    source = LogicGates("xor")
    rows = source.read(split)
    assert (rows.x_NCHW / 255).flatten(1).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert source.describe().origins == {"val": "the same rows", "test": "the same rows"}
    assert len(rows) == source.describe().counts[split] == 4
    assert tuple(rows.x_NCHW.shape[1:]) == source.describe().input_shape


def test_each_of_the_16_functions_has_a_name_of_four_digits() -> None:
    assert len(set(TABLES)) == 16
    for table in TABLES:
        assert LogicGates(table).read("train").y_N.tolist() == [int(digit) for digit in table]
    assert LogicGates(1110).outputs == LogicGates("nand").outputs  # a number on the command line is its digits


@pytest.mark.parametrize(
    ("gate", "message"), [("nandd", "did you mean 'nand'"), ("011", "in quotes"), (72, "received 72"), ("0120", "0120")]
)
def test_another_gate_is_refused(gate: str | int, message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as caught:
        LogicGates(gate)
    assert caught.value.argument == "gate"
