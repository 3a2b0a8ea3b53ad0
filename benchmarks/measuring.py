"""Runs contestants side by side: one after another, round by round, each time in a fresh process."""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("cnnlab", "torch", "torchvision", "numpy", "lightning", "keras")
HAVE_TO_AGREE = ("parameters", "steps")

Figures = dict[str, float]


@dataclass(frozen=True)
class Contestant:
    """A command to measure. `{folder}` in it is an empty folder, `{round}` the number of the repetition.

    Contestants are compared with the first of those that have the same `at`, such as a batch size.
    """

    name: str
    command: Sequence[str]
    at: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    exit_status: int = 0

    def __str__(self) -> str:
        return self.name if self.at is None else f"{self.name}, {self.at}"


def measure(contestants: Sequence[Contestant], repeats: int, *, same_work: bool = True) -> list[list[Figures]]:
    """The figures of every repetition of every contestant.

    Raises `RuntimeError` where they have `same_work` to do and do not do it.
    """
    runs: list[list[Figures]] = [[] for _ in contestants]
    for repetition in range(repeats):
        for contestant, measured in zip(contestants, runs, strict=True):
            figures = run_once(contestant, repetition)
            shown = "  ".join(f"{name} {value:,.6g}" for name, value in figures.items())
            print(f"{repetition + 1}/{repeats}  {contestant}:  {shown}", flush=True)
            measured.append(figures)
        if same_work:
            check_same_work(contestants, runs)
    return runs


def run_once(contestant: Contestant, repetition: int) -> Figures:
    """Figures of the process itself and those that it reports. Raises `RuntimeError` where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [part.replace("{folder}", folder).replace("{round}", str(repetition)) for part in contestant.command]
        # this checkout is measured, whatever cnnlab is installed
        path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "CNNLAB_CACHE": folder, **contestant.environment}
        log = Path(folder, "log.txt")
        with log.open("w", encoding="utf-8") as file:
            start = time.perf_counter()
            # its peak memory is at least ours, as Linux counts: nothing large is imported in this process
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        text = log.read_text(encoding="utf-8", errors="replace")
        if process.returncode != contestant.exit_status:
            raise RuntimeError(f"{contestant} ended with {process.returncode}:\n{text[-3000:]}")
        reported = of_a_run(Path(folder, "run")) or last_json(text)
    if "train_seconds" in reported:
        reported["step_us"] = reported["train_seconds"] / reported["steps"] * 1e6
    figures = {"command_seconds": seconds, "peak_mb": usage.ru_maxrss / 1024, **reported}
    return {name: float(f"{value:.6g}") for name, value in figures.items()}


def last_json(text: str) -> Figures:
    """The JSON object in the last line, if it is one."""
    last = (text.splitlines() or [""])[-1]
    return json.loads(last) if last.startswith("{") else {}


def of_a_run(run: Path) -> Figures:
    """What a run of cnnlab's has left in its directory; nothing where there is none."""
    if not (run / "summary.json").exists():
        return {}
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    figures = {
        "train_seconds": summary["train"]["seconds"],
        "images_per_second": summary["train"]["images_per_second"],
        "steps": summary["step"],
        "parameters": summary["parameters"],
        "accuracy": summary["test"]["accuracy"],
    }
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    reached = {f"seconds_to_{percent:g}": seconds_until(records, percent / 100) for percent in (99, 99.3)}
    return figures | {name: seconds for name, seconds in reached.items() if seconds is not None}


def seconds_until(records: Sequence[Mapping[str, Any]], accuracy: float) -> float | None:
    """Seconds of training before the first validation with such an accuracy, to the nearest training record."""
    trained = 0.0
    for record in records:
        trained = record.get("seconds", trained)
        if record["split"] == "val" and record["accuracy"] >= accuracy:
            return trained
    return None


def check_same_work(contestants: Sequence[Contestant], runs: Sequence[Sequence[Figures]]) -> None:
    """Raises `RuntimeError` unless contestants with the same `at` report the same parameters and steps."""
    for name in HAVE_TO_AGREE:
        reported = {str(one): (one.at, figures[-1].get(name)) for one, figures in zip(contestants, runs, strict=True)}
        by_point: dict[int | None, set[float]] = {}
        for at, value in reported.values():
            if value is not None:
                by_point.setdefault(at, set()).add(value)
        if any(len(values) > 1 for values in by_point.values()):
            raise RuntimeError(f"the contestants do not do the same work: {name} {reported}")


def summary_of(contestants: Sequence[Contestant], runs: Sequence[Sequence[Figures]]) -> list[dict[str, Any]]:
    """For each contestant its command, every measurement, medians, and ratios to the first with the same `at`.

    A ratio is the median over the repetitions of the two figures' quotient, so that a machine that is slow for a
    while is slow for both.
    """
    first: dict[int | None, Sequence[Figures]] = {}
    entries: list[dict[str, Any]] = []
    for contestant, measured in zip(contestants, runs, strict=True):
        reference = first.setdefault(contestant.at, measured)
        names = [name for name in measured[0] if all(name in figures for figures in measured)]
        shared = [name for name in names if name not in HAVE_TO_AGREE and all(one.get(name) for one in reference)]
        entries.append(
            {
                "name": contestant.name,
                "at": contestant.at,
                "command": spelled(contestant),
                "runs": measured,
                "median": {name: median(figures[name] for figures in measured) for name in names},
                "ratio": {
                    name: median(own[name] / other[name] for own, other in zip(measured, reference, strict=True))
                    for name in shared
                },
            }
        )
    return entries


def spelled(contestant: Contestant) -> str:
    """The command as a person would type it in the repository."""
    program, *rest = contestant.command
    words = [*(f"{name}={value}" for name, value in contestant.environment.items()), Path(program).name, *rest]
    return shlex.join(words).replace(f"{REPOSITORY}/", "").replace("{folder}", "FOLDER").replace("{round}", "0")


def machine() -> dict[str, Any]:
    models = [line.partition(":")[2].strip() for line in lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) for line in lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "gpu": gpu(),
        "cpu": models[0] if models else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "threads": int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))),
        "memory_gb": round(memory[0] / 2**20, 1) if memory else None,
        "load": round(os.getloadavg()[0], 2),  # before the first process is started: is anyone else at work?
    }


def gpu() -> str | None:
    """The name of the GPU that contestants find, asked for in a process of its own; None without one."""
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return answer.stdout.strip() or None


def lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []


def versions() -> dict[str, str]:
    installed = {package.metadata["Name"]: package.version for package in metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}
