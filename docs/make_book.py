"""Reproduces the published experiments of `configs/experiment/book` and writes `docs/book.md`: see `make book`.

Each (experiment, seed) is one run of the product's own command in `runs/book/EXPERIMENT/seed-N`. What is complete is
not run again and what was interrupted is resumed. `docs/book.json` keeps what the page shows, so that it grows with
every call, wherever it is made.
"""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch
import yaml
from book_page import PAGE, PRESETS, REPOSITORY, RESULTS, VANISHING, Results, names, page, read_results
from laboratory.shown import complete
from torch import nn

import cnnlab
from cnnlab.components import Trust
from cnnlab.config.check import check_config
from cnnlab.config.saved_config import resolved
from cnnlab.runtime.device import cpu_count

RUNS = REPOSITORY / "runs" / "book"
VOTERS = "c6-dropout"  # whose runs vote in c6-ensemble


@dataclass(frozen=True)
class Beside:
    """A figure beside the main one: `metric` of `split` at `epoch`, as published."""

    metric: str
    split: str
    epoch: int
    published: float


BESIDE = {
    "c1-30": [Beside("accuracy", "test", 1, 0.9129), Beside("accuracy", "test", 2, 0.9295)],
    "c1-slow": [Beside("accuracy", "test", 1, 0.1139)],
    "c3-init30-large": [Beside("accuracy", "val", 1, 0.8643)],
    "c3-init30-small": [Beside("accuracy", "val", 1, 0.9270)],
}
ON_TRAINING_IMAGES = {"c3-overfit": 1.0, "c3-full": 0.9786, "c3-regfull": 0.9647}


def main() -> None:
    known = [*names(), "baselines"]
    parser = argparse.ArgumentParser(
        prog="make book", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=f"of {', '.join(known)}; none: the page")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each, with the seeds 0, 1, …")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; each has the cores divided by that")
    parser.add_argument("--override", action="append", default=[], help="passed on to each run, such as device=cuda")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.experiments) - set(known))
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; expected some of {', '.join(known)}")
    without_runs = {"baselines": baselines, "c5-vanish": vanishing, "c6-ensemble": ensemble}
    trained = [name for name in arguments.experiments if name not in without_runs]
    book, threads = Book(), max(1, cpu_count() // arguments.jobs)
    tasks = [(name, seed) for seed in range(arguments.seeds) for name in trained]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        outcomes = list(pool.map(lambda task: book.add(*task, arguments.override, threads), tasks))
    for name in dict.fromkeys(arguments.experiments):
        if name in without_runs:
            outcomes.append(book.measure(name, without_runs[name]))
    book.write()
    sys.exit(0 if all(outcomes) else 1)


class Book:
    """What `docs/book.json` holds; written with its page after each new figure."""

    def __init__(self) -> None:
        self.results = read_results()
        self.lock = Lock()

    def add(self, name: str, seed: int, overrides: Sequence[str], threads: int) -> bool:
        """Runs it, resumes it or finds it complete, and prints which. False for a run that failed."""
        if str(seed) in self.results.get(name, {}):
            print(f"{name} seed {seed}: in {RESULTS.name}", flush=True)
            return True
        path = RUNS / name / f"seed-{seed}"
        if not complete(path):
            fresh = [f"experiment=book/{name}", f"seed={seed}", f"run_dir={path}", *overrides]
            command = [f"resume={path}"] if path.exists() else fresh
            print(f"{name} seed {seed}: train.py {' '.join(command)}", flush=True)
            ended = _call("train.py", *command, threads=threads)
            if ended.returncode or not complete(path):
                print(f"{name} seed {seed}: failed\n{ended.stderr}", file=sys.stderr, flush=True)
                return False
        found = read_run(name, path)
        print(f"{name} seed {seed}: {found['figure']:.4f} in {found['seconds']:.0f} s", flush=True)
        with self.lock:
            self.results.setdefault(name, {})[str(seed)] = found
            self.write()
        return True

    def measure(self, name: str, function: Any) -> bool:
        """Keeps what the function finds; False where it has nothing to measure yet."""
        if name not in self.results:
            print(f"{name}: measuring", flush=True)
            found = function()
            if found is None:
                return False
            self.results[name] = found
        return True

    def write(self) -> None:
        RESULTS.write_text(json.dumps(_sorted(self.results), indent=1) + "\n")
        PAGE.write_text(page(read_results()))


def _sorted(results: Results) -> Results:
    return {
        name: dict(sorted(results[name].items(), key=lambda item: (len(item[0]), item[0]))) for name in sorted(results)
    }


def read_run(name: str, path: Path) -> dict[str, Any]:
    """What the page shows of a complete run: its published figure, that of validation, seconds and what is beside."""
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    metric, split = yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))["published"]["figure"].split(
        "/"
    )
    best = summary["best"]
    beside = {}
    for figure in BESIDE.get(name, []):
        epochs = [record[figure.metric] for record in records if record["split"] == figure.split]
        beside[f"{figure.split}, epoch {figure.epoch}"] = {
            "published": figure.published,
            "ours": epochs[figure.epoch - 1],
        }
    if name in ON_TRAINING_IMAGES:
        beside["training images"] = {"published": ON_TRAINING_IMAGES[name], "ours": on_training_images(path)}
    return {
        "figure": summary["test"][metric] if split == "test" else best[f"{metric}/{split}"],
        "val": best["accuracy/val"],
        "monitor": best["monitor"],
        "seconds": round(summary["train"]["seconds"], 1),
        "beside": beside,
    }


def on_training_images(path: Path) -> float:
    """Accuracy of the chosen checkpoint on the images it learned from, by the product's own evaluation."""
    (found,) = _evaluated(path, "evaluation-train-*.json", "split=train")
    return float(json.loads(found.read_text(encoding="utf-8"))["accuracy"])


def _evaluated(path: Path, pattern: str, *overrides: str) -> list[Path]:
    """The files that `evaluate.py` wrote there, now or before. Raises `RuntimeError`."""
    if not list(path.glob(pattern)):
        ended = _call("evaluate.py", f"run={path}", *overrides)
        if ended.returncode:
            raise RuntimeError(ended.stderr)
    return sorted(path.glob(pattern))


def _call(script: str, *arguments: str, threads: int | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, str(REPOSITORY / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPOSITORY)


def ensemble() -> dict[str, Any] | None:
    """The vote of the runs: each image is what most of them take it for, by the sum of probabilities at a tie."""
    paths = [path for path in sorted((RUNS / VOTERS).glob("seed-*")) if complete(path)]
    if len(paths) < 2:
        print(f"c6-ensemble: needs complete runs of {VOTERS} to vote, found {len(paths)}", file=sys.stderr)
        return None
    tables = [_predictions(path) for path in paths]
    labels = tables[0][0]
    votes = sum(nn.functional.one_hot(probabilities.argmax(1), 10) for _, probabilities in tables)
    total = votes + torch.stack([probabilities for _, probabilities in tables]).mean(0) / 2
    seconds = sum(json.loads((path / "summary.json").read_text(encoding="utf-8"))["train"]["seconds"] for path in paths)
    accuracy = float((total.argmax(1) == labels).double().mean())
    return {"accuracy": accuracy, "votes": len(paths), "seconds": seconds}


def _predictions(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels (N,) and probabilities (N, 10) of the test images, in the order of their file."""
    with _evaluated(path, "predictions-test-*.csv")[-1].open() as file:
        rows = list(csv.DictReader(file))
    labels = torch.tensor([int(row["label"]) for row in rows])
    return labels, torch.tensor([[float(row[f"p({digit})"]) for digit in range(10)] for row in rows])


def baselines() -> dict[str, float]:
    """Mean darkness, and scikit-learn's support vector machine, which takes ten minutes."""
    return {"darkness": mean_darkness(), "svm": support_vector_machine()}


def _images() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first 50,000 training images and labels, then the test ones; (N, 784) in [0, 1]."""
    source = check_config(resolved(cnnlab.compose("data=mnist")), Trust()).source
    train, test = source.read("train"), source.read("test")
    flat = [images.x_NCHW.flatten(1).float() / 255 for images in (train, test)]
    return flat[0][:50_000], train.y_N[:50_000], flat[1], test.y_N


def mean_darkness() -> float:
    """Test accuracy of naming the digit whose mean darkness in the training images is nearest."""
    x_train, y_train, x_test, y_test = _images()
    darkness_K = torch.stack([x_train[y_train == digit].sum(1).mean() for digit in range(10)])
    guesses = (x_test.sum(1)[:, None] - darkness_K).abs().argmin(1)
    return float((guesses == y_test).double().mean())


def support_vector_machine() -> float:
    from sklearn.svm import SVC  # type: ignore[import-untyped]

    x_train, y_train, x_test, y_test = (tensor.numpy() for tensor in _images())
    return float(SVC(gamma="auto", cache_size=2000).fit(x_train, y_train).score(x_test, y_test))


def vanishing(draws: int = 10) -> dict[str, list[list[float]]]:
    """For each number of hidden layers, the norms of each draw of the weights."""
    return {str(layers): [bias_gradients(layers, seed) for seed in range(draws)] for layers in VANISHING}


def bias_gradients(layers: int, seed: int) -> list[float]:
    """‖∂C/∂b‖ of each hidden layer before the first update, the cost over the first 1,000 training images."""
    more = [
        f"+model.blocks.{name}={{type: {block}, after: {before}}}"
        for k in range(3, layers + 1)
        for name, block, before in (
            (f"hidden{k}", "linear, out_features: 30", f"sigmoid{k - 1}"),
            (f"sigmoid{k}", "sigmoid", f"hidden{k}"),
        )
    ]
    plan = check_config(resolved(cnnlab.compose("experiment=book/c5-vanish", *more)), Trust())
    torch.manual_seed(seed)
    network = plan.network.build()
    x_ND, y_N, _, _ = _images()
    plan.loss(network(x_ND[:1000].reshape(-1, *plan.spec.input_shape)), y_N[:1000]).backward()
    biases = [p for name, p in network.named_parameters() if re.fullmatch(r"hidden\d\.bias", name)]
    return [float(bias.grad.norm()) for bias in biases if bias.grad is not None]


if __name__ == "__main__":
    main()
