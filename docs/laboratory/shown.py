"""What a concept of the notes shows: claims with their numbers, images, and the commands that make them."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

REPOSITORY = Path(__file__).resolve().parents[2]
RUNS = REPOSITORY / "runs" / "notes"


@dataclass(frozen=True)
class Claim:
    """A number that the notes promise, and the one that was found."""

    what: str
    expected: str
    found: str
    holds: bool


@dataclass(frozen=True)
class Image:
    """What is drawn, or a file of it, and the sentence that stands for it where it cannot be seen."""

    drawn: Figure | Path
    alt: str


@dataclass
class Shown:
    """A concept: its commands, its images by name, its claims, and text beside them such as a table."""

    commands: list[str] = field(default_factory=list)
    images: dict[str, Image] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    text: str = ""

    def claim(self, what: str, expected: Any, found: Any, holds: bool | None = None) -> None:
        """Holds if both are equal, where `holds` is not given."""
        self.claims.append(Claim(what, str(expected), str(found), bool(expected == found if holds is None else holds)))

    def draw(self, name: str, drawn: Figure | Path, alt: str) -> None:
        self.images[name] = Image(drawn, alt)

    def train(self, name: str, *overrides: str) -> Path:
        """The directory of the run that this command makes, or made before. Raises `RuntimeError`."""
        path = RUNS / name
        self.commands.append(_command("train.py", *overrides, f"run_dir=runs/notes/{name}"))
        _check_command(path, overrides)
        if not complete(path):
            print(f"  {self.commands[-1]}", flush=True)
            _run("train.py", *([f"resume={path}"] if path.exists() else [*overrides, f"run_dir={path}"]))
        return path

    def evaluate(self, path: Path, *overrides: str) -> None:
        """Runs `evaluate.py` for a run of `train`'s. Raises `RuntimeError`."""
        self.commands.append(_command("evaluate.py", f"run=runs/notes/{path.name}", *overrides))
        _run("evaluate.py", f"run={path}", *overrides)

    def table(self, *overrides: str) -> None:
        """Shows the layer table, as `trainer.max_steps=0` prints it. Raises `RuntimeError`."""
        self.commands.append(_command("train.py", *overrides, "trainer.max_steps=0"))
        lines = _run("train.py", *overrides, "trainer.max_steps=0").splitlines()
        width = max(len(line) for line in lines)
        assert width < 120, "the page would break its lines"
        block = "\n".join(["```", *(line.rstrip() for line in lines if line.strip()), "```"])
        self.text = f"{self.text}\n\n{block}".strip()


def _command(script: str, *arguments: str) -> str:
    return " ".join(["python", script, *(f"'{a}'" if set(a) & set(" {}[]~*") else a for a in arguments)])


def _check_command(path: Path, overrides: tuple[str, ...]) -> None:
    """Raises `RuntimeError` where a run of that name was made by another command."""
    file = path / "overrides.yaml"
    if not file.exists():
        return
    made = [
        override for override in yaml.safe_load(file.read_text(encoding="utf-8")) if not override.startswith("run_dir=")
    ]
    if made != list(overrides):
        raise RuntimeError(f"{path} was made with {' '.join(made)}, not {' '.join(overrides)}: move it away")


def complete(path: Path) -> bool:
    """Whether a run has ended there as it should."""
    summary = path / "summary.json"
    return summary.is_file() and json.loads(summary.read_text(encoding="utf-8"))["status"] == "completed"


def _run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(REPOSITORY / script), *arguments]
    ended = subprocess.run(
        command, capture_output=True, text=True, cwd=REPOSITORY, env={**os.environ, "COLUMNS": "100"}
    )
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{ended.stderr}")
    return ended.stdout


def signed(value: float, digits: str = ".2f") -> str:
    """With + or a minus sign."""
    return f"{value:+{digits}}".replace("-", "−")


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The records of a `.jsonl` file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def accuracy(path: Path) -> float:
    """On the test split, of the checkpoint that the run chose."""
    return float(json.loads((path / "summary.json").read_text(encoding="utf-8"))["test"]["accuracy"])
