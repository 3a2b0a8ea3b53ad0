"""`optimizer.lr=auto` and `trainer.lr_find=true`."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from commands import ok, run
from fast_run import FAST, read_json, train_fast
from PIL import Image

from cnnlab.cli import train
from cnnlab.engine.checkpoint import read_checkpoint

FINAL = "checkpoints/step-00000006"
# dropout, batch norm and augmentation draw and keep state
SETTINGS = ("data.augment.move={type: shift, pixels: 1}", "trainer.ema=0.9")


@pytest.mark.slow
def test_a_run_whose_learning_rate_was_found_has_the_bits_of_one_that_was_given_it(in_tmp_path: Path) -> None:
    answer = ok(train_fast("run_dir=found", "optimizer.lr=auto", *SETTINGS))
    assert "learning rates from 1e-06 to " in answer.out
    lr = yaml.safe_load(Path("found/config.yaml").read_text(encoding="utf-8"))["optimizer"]["lr"]
    assert isinstance(lr, float)
    ok(train_fast("run_dir=given", f"optimizer.lr={lr}", *SETTINGS))
    found, given = (read_checkpoint(Path(name) / FINAL) for name in ("found", "given"))
    assert found.state()["train_state"]["optimizer"]["groups"] == given.state()["train_state"]["optimizer"]["groups"]
    assert all(torch.equal(found.weights[name], value) for name, value in given.weights.items())
    ok(run(train, "resume=found", "trainer.max_steps=8", "schedule.restart=true"))


def test_the_same_command_again_continues_with_the_number_that_was_found(in_tmp_path: Path) -> None:
    settings = ("run_dir=run", "optimizer.lr=auto", "resume=auto", *SETTINGS)
    ok(train_fast(*settings))
    config = Path("run/config.yaml").read_bytes()
    shutil.rmtree(Path("run") / FINAL)
    answer = ok(train_fast(*settings))
    assert "learning rates" not in answer.out
    assert Path("run/config.yaml").read_bytes() == config


def test_the_test_alone_draws_and_suggests_and_trains_nothing(in_tmp_path: Path) -> None:
    ok(train_fast("run_dir=run", "trainer.lr_find=true"))
    summary = read_json(Path("run/summary.json"))
    assert summary["status"] == "completed"
    assert set(summary["lr_find"]) == {"valley", "steepest"}
    assert not Path("run/checkpoints").exists()
    with Image.open("run/figures/lr_find.png") as image:
        assert image.size == (840, 504)


def test_anything_but_a_number_or_auto_is_refused(in_tmp_path: Path) -> None:
    answer = run(train, FAST, "optimizer.lr=aut")
    assert answer.code == 2
    assert "optimizer.lr" in answer.err
