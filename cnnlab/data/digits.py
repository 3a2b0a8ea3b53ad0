"""The UCI digits that scikit-learn carries: 1,797 grey 8×8 images, no download."""

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import torch

from cnnlab.data.source import DataSpec, Images, Source
from cnnlab.data.splits import carve

COUNT = 1797
TEST_COUNT = 360
TEST_SEED = 0
BRIGHTEST = 16


class Digits(Source):
    """Optical recognition of handwritten digits (UCI, Alpaydin and Kaynak), as scikit-learn packs it.

    scikit-learn has no test split: 360 images, stratified, are set aside by a fixed seed of their own. The
    grey values 0…16 are stretched to 0…255.
    """

    def describe(self) -> DataSpec:
        return DataSpec(
            (1, 8, 8),
            {"train": COUNT - TEST_COUNT, "test": TEST_COUNT},
            tuple(str(digit) for digit in range(10)),
        )

    def read(self, split: str) -> Images:
        with gzip.open(_packed_file(), "rt", encoding="ascii") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.int64)
        x_NCHW = torch.from_numpy(table[:, :-1]).reshape(-1, 1, 8, 8)
        x_NCHW = (x_NCHW * 255 / BRIGHTEST).round().to(torch.uint8)
        everything = Images.of(x_NCHW, torch.from_numpy(table[:, -1].copy()))
        train, test = carve(everything.y_N, TEST_COUNT, "random", TEST_SEED)
        return everything.select({"train": train, "test": test}[split])


def _packed_file() -> Path:
    """The file inside the installed package: `load_digits` would import all of scikit-learn, over a second."""
    package = importlib.util.find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
