"""A run whose files were damaged or changed at random: one sentence, or the run ends with the bits of an untouched one.

What a stranger changes and seals again may be another run, and a legal one: it ends with one sentence or completes.
"""

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import Answer, run
from fast_run import train_fast
from planted import plant_manifest, plant_state
from repetitions import times

from cnnlab.cli import evaluate, train
from cnnlab.engine.checkpoint import MANIFEST, STATE, read_checkpoint

REPOSITORY = Path(__file__).parents[1]
PER_TEST = times(4, 15)
SECONDS = 30  # in which each ends
RESUME = ("resume=run", "trainer.max_steps=6")  # the length is given: an edited one is legal
FINAL = Path("run/checkpoints/step-00000006")
VALUES = (
    None,
    True,
    -1,
    0,
    10**12,
    -(10**30),
    1e308,
    0.5,
    "",
    "x",
    "${seed}",
    "\x1b[2J",
    "../../etc",
    [],
    [[]],
    {},
    {"": 1},
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A completed run, which saved at every second step."""
    path = tmp_path_factory.mktemp("whole") / "run"
    answer = train_fast(f"run_dir={path}", "trainer.checkpoint_every=2", "trainer.watch_every=3", "trainer.ema=0.9")
    assert answer.code == 0, answer.err
    return path


@pytest.fixture
def stopped(whole: Path, in_tmp_path: Path) -> Callable[[], Path]:
    """Makes a copy that was killed after step 4."""

    def copy() -> Path:
        shutil.rmtree("run", ignore_errors=True)
        shutil.copytree(whole, "run")
        shutil.rmtree(FINAL)
        Path("run/summary.json").write_text('{"status": "failed"}\n', encoding="utf-8")
        return Path("run")

    return copy


def nodes(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of nested dicts and lists: what holds it, and its key or number."""
    places = list(content.items()) if isinstance(content, dict) else list(enumerate(content))
    for key, value in places:
        yield content, key
        if isinstance(value, dict | list):
            yield from nodes(value)


def change_a_node(content: Any, draw: random.Random) -> None:
    holder, key = draw.choice(list(nodes(content)))
    change = draw.choice(["value", "value", "tensor", "delete", "add"])
    if change == "delete":
        del holder[key]
    elif change == "add" and isinstance(holder, dict):
        holder[draw.choice(["new", "__class__", "type"])] = draw.choice(VALUES)
    elif change == "tensor" and isinstance(holder[key], torch.Tensor):
        holder[key] = draw.choice([torch.zeros(1), holder[key].double(), holder[key].flatten()[:1], torch.zeros(3, 0)])
    else:
        holder[key] = draw.choice(VALUES)


def change_bytes(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content) + 1)
    length = draw.choice([1, 7, 100])
    return draw.choice(
        [
            content[:place],
            content[:place] + content[place + length :],
            content[:place] + content[max(0, place - length) :],
            content[:place] + draw.randbytes(length) + content[place + length :],
            content[:place] + b"9" * length + content[place:],
            b"",
            b"[" * 10_000,
        ]
    )


def damage(draw: random.Random) -> str:
    """Changes bytes of a file of the run, or a value in one; nothing agrees with it. Returns what was done."""
    path = draw.choice([path for path in sorted(Path("run").rglob("*")) if path.suffix in SUFFIXES])
    before = path.read_bytes()
    if path.suffix in (".json", ".yaml") and draw.random() < 0.5:
        content = yaml.safe_load(before) if path.suffix == ".yaml" else json.loads(before)
        if content:
            change_a_node(content, draw)
        path.write_text(yaml.safe_dump(content) if path.suffix == ".yaml" else json.dumps(content))
    else:
        path.write_bytes(change_bytes(before, draw))
    return str(path)


SUFFIXES = (".json", ".jsonl", ".yaml", ".safetensors")


def plant(draw: random.Random) -> str:
    """Changes the state or the manifest of the newest checkpoint, and seals it again."""
    newest = Path("run/checkpoints/step-00000004")
    file, change = draw.choice([(MANIFEST, plant_manifest), (STATE, plant_state)])
    change(newest, lambda content: change_a_node(content, draw))
    return str(newest / file)


def assert_answered(answer: Answer, done: str) -> None:
    """A sentence and status 2, or the end of the run."""
    assert answer.code in (0, 2), f"{done}\n{answer.err}"
    assert "Traceback" not in answer.err + answer.out, f"{done}\n{answer.err}"
    assert "\x1b[2J" not in answer.err + answer.out, done
    if answer.code == 2:
        assert answer.err.startswith("error: "), f"{done}\n{answer.err}"


def assert_untouched(answer: Answer, whole: Path, done: str) -> None:
    if answer.code == 0:
        ours, theirs = read_checkpoint(FINAL), read_checkpoint(whole / "checkpoints" / FINAL.name)
        assert all(torch.equal(ours.weights[name], theirs.weights[name]) for name in theirs.weights), done
        assert ours.ema
        assert theirs.ema
        assert all(torch.equal(ours.ema[name], theirs.ema[name]) for name in theirs.ema), done


def draws(seed: int) -> Iterator[random.Random]:
    for number in range(PER_TEST):
        yield random.Random(1000 * seed + number)


@pytest.mark.torture(figure="fuzz")
@pytest.mark.parametrize("seed", range(times(1, 20)))
def test_random_damage_is_answered_or_mended(
    whole: Path, stopped: Callable[[], Path], seed: int, record_property: Callable[[str, object], None]
) -> None:
    codes = []
    for draw in draws(seed):
        stopped()
        done, begun = damage(draw), time.monotonic()
        answer = run(train, *RESUME)
        assert time.monotonic() - begun < SECONDS, done
        assert_answered(answer, done)
        assert_untouched(answer, whole, done)
        codes.append(answer.code)
    record_property("codes", codes)


@pytest.mark.torture(figure="fuzz")
@pytest.mark.parametrize("seed", range(times(1, 10)))
def test_a_random_change_that_was_sealed_again_is_answered(
    stopped: Callable[[], Path], seed: int, record_property: Callable[[str, object], None]
) -> None:
    codes = []
    for draw in draws(seed):
        stopped()
        done, begun = plant(draw), time.monotonic()
        answer = run(evaluate, "run=run", "checkpoint=4") if draw.random() < 0.3 else run(train, *RESUME)
        assert time.monotonic() - begun < SECONDS, done
        assert_answered(answer, done)
        codes.append(answer.code)
    record_property("codes", codes)


@pytest.mark.torture(figure="fuzz")
@pytest.mark.parametrize("seed", range(times(1, 50)))
def test_random_damage_is_answered_or_mended_in_a_fresh_process(
    whole: Path, stopped: Callable[[], Path], seed: int, record_property: Callable[[str, object], None]
) -> None:
    stopped()
    draw = random.Random(10**6 + seed)
    sealed = seed % 3 == 2
    done = plant(draw) if sealed else damage(draw)
    command = [sys.executable, str(REPOSITORY / "train.py"), *RESUME]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=times(4 * SECONDS, SECONDS))
    answer = Answer(ended.returncode, ended.stdout, ended.stderr)
    assert_answered(answer, done)
    if not sealed:
        assert_untouched(answer, whole, done)
    record_property("codes", [answer.code])
