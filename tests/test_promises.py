"""The figures that the README gives, reached by its commands in fresh processes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]


def trained(run: Path, *overrides: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary and the metric log of `python train.py OVERRIDES`."""
    command = [sys.executable, str(REPOSITORY / "train.py"), f"run_dir={run}", *overrides]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return json.loads((run / "summary.json").read_text()), [json.loads(line) for line in lines]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_default_reads_digits(tmp_path: Path, seed: int) -> None:
    summary, _ = trained(tmp_path / "run", f"seed={seed}")
    assert summary["test"]["accuracy"] >= 0.975


@pytest.mark.slow
@pytest.mark.mnist
def test_two_epochs_reach_99_percent_on_mnist(tmp_path: Path, mnist_root: Path) -> None:
    summary, _ = trained(tmp_path / "run", "data=mnist", f"data.root={mnist_root}", "model=cnn", "trainer.epochs=2")
    assert summary["test"]["accuracy"] >= 0.99


def test_one_batch_is_driven_to_zero_loss(tmp_path: Path) -> None:
    _, log = trained(tmp_path / "run", "experiment=debug/overfit")
    assert [entry for entry in log if entry["split"] == "train"][-1]["loss"] < 1e-3
