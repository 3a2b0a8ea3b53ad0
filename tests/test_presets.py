"""The presets for MNIST keep what they promise."""

import json
from pathlib import Path

import pytest
from commands import composed, run

from cnnlab.cli import train
from cnnlab.components import Trust
from cnnlab.config.check import check_config


def parameters(*overrides: str) -> int:
    network = check_config(composed(*overrides), Trust()).network.build()
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_best_networks_parameters_are_fewer_than_half_a_million() -> None:
    assert parameters("experiment=mnist_best") < 500_000


@pytest.mark.slow
@pytest.mark.mnist
def test_the_fast_preset_is_past_98_5_percent_after_one_epoch(in_tmp_path: Path, mnist_root: Path) -> None:
    run_dir = in_tmp_path / "run"
    answer = run(
        train,
        "experiment=mnist_fast",
        f"data.root={mnist_root}",
        "trainer.epochs=1",
        "observers=quiet",
        "device=cpu",
        f"run_dir={run_dir}",
    )
    assert answer.code == 0, answer.err
    assert json.loads((run_dir / "summary.json").read_text())["test"]["accuracy"] > 0.985
