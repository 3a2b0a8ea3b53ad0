"""A published figure beside the measured one."""

from pathlib import Path

import pytest
from commands import run

from cnnlab.cli import train
from cnnlab.config.published import Published
from cnnlab.runtime.errors import ArgumentError

BOOK = Published("accuracy/test", 0.9542, "a book")


def test_the_difference_is_ours_less_theirs() -> None:
    assert BOOK.compare({"accuracy/test": 0.95}) == "accuracy/test 0.9500, published 0.9542 (a book): -0.0042"


def test_what_was_not_measured_is_not_compared() -> None:
    assert BOOK.compare({"accuracy/val": 0.95}) is None


@pytest.mark.parametrize("figure", ["accuracy", "accuracy/train", "/test"])
def test_a_figure_is_a_metric_of_a_held_out_split(figure: str) -> None:
    with pytest.raises(ArgumentError, match="figure"):
        Published(figure, 0.9, "a book")


def test_a_run_prints_the_published_figure_at_its_end(in_tmp_path: Path) -> None:
    out = run(train, "experiment=debug/fast", "published={figure: accuracy/val, value: 0.5, source: a book}").out
    (line,) = [line for line in out.splitlines() if "published" in line]
    assert line.startswith("accuracy/val 0.")
    assert "published 0.5000 (a book)" in line
