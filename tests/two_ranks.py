"""Two ranks without torchrun, each of which runs one training after the other, and what a test needs to start them."""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from trainings import start

from cnnlab.sweep.processes import Task

REPOSITORY = Path(__file__).parents[1]
SECONDS = 400  # at most, on a machine that does much else


def has_loopback() -> bool:
    """False where Linux gives the tests no network at all: ranks talk through it, on one machine as well."""
    flags = Path("/sys/class/net/lo/flags")
    return not flags.exists() or bool(int(flags.read_text(encoding="utf-8"), 16) & 1)


needs_loopback = pytest.mark.skipif(not has_loopback(), reason="the loopback interface is down")


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def in_two_ranks(cases: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """What `CASES` of these names returned on each rank, each called with its argument; they work in the folder."""
    program = (
        f"import sys; sys.path[:0] = {[str(REPOSITORY), str(REPOSITORY / 'tests')]}; import two_ranks; two_ranks.main()"
    )
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        start()(
            Task([sys.executable, "-c", program, str(folder), json.dumps(cases)], folder / f"rank{rank}.log"),
            {**os.environ, **shared, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    deadline = time.monotonic() + SECONDS
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            time.sleep(0.05)
        for rank, process in enumerate(processes):
            assert process.returncode == 0, (folder / f"rank{rank}.log").read_text(encoding="utf-8")
    finally:
        for process in processes:
            process.kill()
    return [json.loads((folder / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


def train_once(overrides: Sequence[str]) -> dict[str, Any]:
    from commands import run

    from cnnlab.cli import train

    fast = [] if overrides[0].startswith("resume=") else ["experiment=debug/fast"]
    answer = run(train, *fast, *overrides)
    return {"code": answer.code, "out": answer.out, "err": answer.err}


def train_with_a_signal(overrides: Sequence[str]) -> dict[str, Any]:
    """The second rank gets a SIGTERM in the third step."""
    from cnnlab.engine.trainer import Trainer

    take_step = Trainer._step

    def watched(trainer: Trainer, batch: Any) -> None:
        if trainer.progress.step == 2 and os.environ["RANK"] == "1":
            signal.raise_signal(signal.SIGTERM)
        take_step(trainer, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", watched)
        return train_once(overrides)


def train_with_a_nan(overrides: Sequence[str]) -> dict[str, Any]:
    """An image of the second rank's is not a number in the fourth step."""
    from cnnlab.engine.trainer import Trainer

    take_step = Trainer._step

    def watched(trainer: Trainer, batch: Any) -> None:
        if trainer.progress.step == 3 and os.environ["RANK"] == "1":
            batch.x_NCHW[0] = float("nan")
        take_step(trainer, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", watched)
        return train_once(overrides)


def train_without_data(overrides: Sequence[str]) -> dict[str, Any]:
    """The second rank does not find its images."""
    from cnnlab.data.digits import Digits
    from cnnlab.runtime.errors import ConfigError

    def missing(source: Digits) -> None:
        if os.environ["RANK"] == "1":
            raise ConfigError("data.root: /there is missing")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Digits, "check", missing)
        return train_once(overrides)


def train_differently(overrides: Sequence[str]) -> dict[str, Any]:
    return train_once([*overrides, f"seed={os.environ['RANK']}"])


def evaluate_once(overrides: Sequence[str]) -> dict[str, Any]:
    from commands import run

    from cnnlab.cli import evaluate

    answer = run(evaluate, *overrides)
    return {"code": answer.code, "out": answer.out, "err": answer.err}


CASES: dict[str, Callable[[Sequence[str]], dict[str, Any]]] = {
    "train": train_once,
    "signal": train_with_a_signal,
    "nan": train_with_a_nan,
    "data": train_without_data,
    "different": train_differently,
    "evaluate": evaluate_once,
}


def main() -> None:
    folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    os.chdir(folder)
    results = {name: CASES[name.partition(":")[0]](overrides) for name, overrides in cases.items()}
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(results))
