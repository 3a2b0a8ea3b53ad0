"""`resume=` of a run directory whose checkpoints were changed and sealed again: one sentence, exit 2."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Answer, run
from fast_run import train_fast
from planted import plant_manifest, plant_state, setting

from cnnlab.cli import train

pytestmark = pytest.mark.torture(figure="attacks")
REPOSITORY = Path(__file__).parents[2]
NEWEST = "checkpoints/step-00000006"
MOMENTUM = "train_state/optimizer/state/hidden1.weight/momentum_buffer"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps with momentum, which may be continued."""
    path = tmp_path_factory.mktemp("trained") / "run"
    answer = train_fast(f"run_dir={path}", "model=mlp", "schedule=constant", "optimizer.momentum=0.9")
    assert answer.code == 0, answer.err
    return path


@pytest.fixture
def own(trained: Path, in_tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, in_tmp_path / "run"))


def resumed() -> Answer:
    return run(train, "resume=run", "trainer.max_steps=8")


def assert_refused(answer: Answer, message: str) -> None:
    assert answer.code == 2, answer.err
    assert re.search(message, answer.err), answer.err
    assert "Traceback" not in answer.err
    assert len(answer.err.strip().splitlines()) == 1


def test_what_was_sealed_again_unchanged_is_resumed(own: Path) -> None:
    plant_state(own / NEWEST, lambda state: None)
    answer = resumed()
    assert answer.code == 0, answer.err


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (MOMENTUM, torch.zeros(1), r"momentum_buffer: expected a float32 tensor \(\d+, 64\), received .* \(1,\)"),
        ("train/position", 10**12, r"train\.position: expected a whole number from 0 to \d+, received 1000000000000"),
        ("progress/step", -5, r"progress\.step: expected the 6 of the manifest, received -5"),
        ("train_state/schedule/steps", "zzz", r"train_state\.schedule\.steps: expected .*, received 'zzz'"),
        ("tally", ..., "expected a mapping with train_state, progress, train, tally, generators, received"),
        (
            "train_state/optimizer/groups/0/lr",
            -1.0,
            r"groups\[0\]\.lr: expected a finite number from 0 .*, received -1.0",
        ),
        ("generators/torch", torch.zeros(5056, dtype=torch.uint8), "was refused: RuntimeError: Invalid mt19937 state"),
        ("generators/numpy/position", 10**6, r"generators\.numpy\.position: expected .*, received 1000000"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_state_that_does_not_fit_is_refused_with_file_and_field(
    own: Path, path: str, value: Any, message: str
) -> None:
    plant_state(own / NEWEST, setting(path, value))
    assert_refused(resumed(), rf"^error: checkpoint: run/{NEWEST}/state\.safetensors.*{message}")


def test_a_step_that_is_not_the_manifests_is_refused(own: Path) -> None:
    def later(state: dict[str, Any]) -> None:
        for change in (("progress/step", 7), ("train/position", 7), ("train_state/schedule/steps", 7)):
            setting(*change)(state)

    plant_state(own / NEWEST, later)
    assert_refused(resumed(), r"progress\.step: expected the 6 of the manifest, received 7")


@pytest.mark.parametrize(("path", "value"), [("step", 5), ("step", "6"), ("best_step", 7), ("meta", []), ("meta", ...)])
def test_another_checkpoints_manifest_is_set_aside(own: Path, path: str, value: Any) -> None:
    plant_manifest(own / NEWEST, setting(path, value))
    answer = resumed()
    assert answer.code == 0, answer.err
    assert "set aside as damaged-0-step-00000006, resuming from an older one" in answer.out


@pytest.mark.parametrize("momentum", [torch.zeros(1), torch.zeros(64)], ids=["one number", "one row"])
def test_a_momentum_that_is_too_small_does_not_crash_a_fresh_process(own: Path, momentum: torch.Tensor) -> None:
    plant_state(own / NEWEST, setting(MOMENTUM, momentum))
    command = [sys.executable, str(REPOSITORY / "train.py"), "resume=run", "trainer.max_steps=8"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert_refused(Answer(answer.returncode, answer.stdout, answer.stderr), "hidden1.weight.momentum_buffer: expected")
