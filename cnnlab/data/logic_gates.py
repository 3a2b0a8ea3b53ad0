"""Truth tables: four images of two pixels, the data of NAND and XOR neurons."""

import itertools

import torch

from cnnlab.data.source import DataSpec, Images, Source
from cnnlab.runtime.errors import ArgumentError, did_you_mean, listing

# a function of two inputs by what it puts out for 00, 01, 10 and 11
GATES = {"and": "0001", "or": "0111", "nand": "1110", "nor": "1000", "xor": "0110", "xnor": "1001"}
TABLES = tuple("".join(outputs) for outputs in itertools.product("01", repeat=4))
ROWS = len(TABLES[0])


class LogicGates(Source):
    """The four rows of one of the 16 functions of two inputs, as 1×1×2 images of black (0) and white (1).

    `gate` is a name, or the outputs for the inputs 00, 01, 10, 11: `0110` is xor. A truth table is all there is to
    know: its rows train, validate and test. Raises `ArgumentError`.
    """

    def __init__(self, gate: str | int) -> None:
        name = str(gate)  # on the command line, 1110 is a number
        if name not in (*GATES, *TABLES):
            raise ArgumentError(
                "gate",
                f"expected one of {listing(GATES)}, or the four outputs for 00, 01, 10 and 11 in quotes, such as "
                f"'0110', received {gate!r};{did_you_mean(name, GATES)}".rstrip(";"),
            )
        self.outputs = GATES.get(name, name)

    def describe(self) -> DataSpec:
        same = {"val": "the same rows", "test": "the same rows"}
        return DataSpec((1, 1, 2), {"train": ROWS, "val": ROWS, "test": ROWS}, ("0", "1"), same)

    def read(self, split: str) -> Images:
        inputs_N2 = torch.tensor([[row >> 1, row & 1] for row in range(ROWS)], dtype=torch.uint8)
        return Images.of(255 * inputs_N2[:, None, None], torch.tensor([int(output) for output in self.outputs]))
