"""Several ranks without torchrun: a script that runs trainings in each of them, and what a test needs to start it."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]


def has_loopback() -> bool:
    """False where Linux gives the tests no network at all: ranks talk through it, on one machine as well."""
    flags = Path("/sys/class/net/lo/flags")
    return not flags.exists() or bool(int(flags.read_text(encoding="utf-8"), 16) & 1)


needs_loopback = pytest.mark.skipif(not has_loopback(), reason="the loopback interface is down")


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def start_ranks(count: int, command: Sequence[str], **environment: str) -> "list[subprocess.Popen[str]]":
    """The command as each rank of a job, with the environment that torchrun gives it."""
    shared = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    return [
        subprocess.Popen(
            [sys.executable, *command],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **shared, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]


def ended(processes: "Sequence[subprocess.Popen[str]]", seconds: float = 120) -> list[tuple[int, str]]:
    """Exit status and output of each, once all have ended."""
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in processes]
        return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]
    finally:
        for process in processes:
            process.kill()


def in_two_ranks(cases: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """What `CASES` of these names returned on each rank, each called with its argument; they work in the folder."""
    command = [str(Path(__file__)), str(folder), json.dumps(cases)]
    answers = ended(start_ranks(2, command))
    for code, output in answers:
        assert code == 0, output
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


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
    sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]
    results = {name: CASES[name.partition(":")[0]](overrides) for name, overrides in cases.items()}
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
