"""Reproduces the published experiments of `configs/experiment/book` and writes `docs/book.md`: see `make book`.

Each (experiment, seed) is one run of the product's own command in `runs/book/EXPERIMENT/seed-N`. What is complete is
not run again and what was interrupted goes on, so the table grows with every call.
"""

import argparse
import csv
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

import cnnlab
from cnnlab.assembly.check import check_config
from cnnlab.assembly.saved import resolved
from cnnlab.components import Trust

REPOSITORY = Path(__file__).resolve().parents[1]
PRESETS = REPOSITORY / "configs" / "experiment" / "book"
RUNS = REPOSITORY / "runs" / "book"
PAGE = REPOSITORY / "docs" / "book.md"
BASELINES = "baselines"  # what needs no network, by that name on the command line
VOTERS = "c6-dropout"  # whose runs vote in c6-ensemble


@dataclass(frozen=True)
class Also:
    """A figure beside the main one: `metric` of `split` at `epoch` (−1 is the last), as published."""

    metric: str
    split: str
    epoch: int
    published: float


ALSO = {
    "c1-30": [Also("accuracy", "test", 1, 0.9129), Also("accuracy", "test", 2, 0.9295)],
    "c1-slow": [Also("accuracy", "test", 1, 0.1139)],
    "c3-init30-large": [Also("accuracy", "val", 1, 0.8643)],
    "c3-init30-small": [Also("accuracy", "val", 1, 0.9270)],
}
ON_TRAINING_PICTURES = {"c3-overfit": 1.0, "c3-full": 0.9786, "c3-regfull": 0.9647}
BEST_OF = {"c6-fc": 3, "c6-conv1": 3, "c6-conv2": 3, "c6-relu": 3}  # runs of which the book took the best


@dataclass(frozen=True)
class Run:
    """One run of an experiment that is complete."""

    path: Path
    seed: int
    summary: dict[str, Any]
    records: list[dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> "Run | None":
        summary = path / "summary.json"
        if not summary.is_file() or json.loads(summary.read_text())["status"] != "completed":
            return None
        records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        return cls(path, int(path.name.removeprefix("seed-")), json.loads(summary.read_text()), records)

    def figure(self, tag: str) -> float:
        """`accuracy/test` and the like, of the checkpoint that the run chose."""
        metric, _, split = tag.partition("/")
        value = self.summary["test"][metric] if split == "test" else self.summary["best"][tag]
        return float(value)

    def at(self, also: Also) -> float:
        epochs = [record[also.metric] for record in self.records if record["split"] == also.split]
        return float(epochs[also.epoch - 1 if also.epoch > 0 else also.epoch])

    @property
    def seconds(self) -> float:
        return float(self.summary["train"]["seconds"])

    def on_training_pictures(self) -> float:
        """Accuracy of the chosen checkpoint on the pictures it learned from, by the product's own evaluation."""
        found = sorted(self.path.glob("evaluation-train-*.json"))
        if not found:
            _call("evaluate.py", f"run={self.path}", "split=train")
            found = sorted(self.path.glob("evaluation-train-*.json"))
        return float(json.loads(found[-1].read_text())["accuracy"])


def main() -> None:
    names = [path.stem for path in sorted(PRESETS.glob("c*.yaml"))]
    parser = argparse.ArgumentParser(
        prog="make book", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "experiments", nargs="*", metavar="EXPERIMENT", help=f"of {', '.join(names)}, baselines; none: the page"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each, with the seeds 0, 1, …")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; each has the cores divided by that")
    parser.add_argument("--override", action="append", default=[], help="passed on to each run, such as device=cuda")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.experiments) - {*names, BASELINES})
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; expected some of {', '.join(names)}")
    tasks = [(name, seed) for seed in range(arguments.seeds) for name in arguments.experiments if name != BASELINES]
    threads = max(1, len(os.sched_getaffinity(0)) // arguments.jobs)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        outcomes = list(pool.map(lambda task: reproduce(*task, arguments.override, threads), tasks))
    if BASELINES in arguments.experiments:
        measure_baselines()
    write_page(names)
    sys.exit(0 if all(outcomes) else 1)


def reproduce(name: str, seed: int, overrides: Sequence[str], threads: int) -> bool:
    """Runs, goes on with, or finds complete; says which. False for a run that failed."""
    path = RUNS / name / f"seed-{seed}"
    if Run.read(path):
        print(f"{name} seed {seed}: complete", flush=True)
        return True
    if path.exists():
        command = [f"resume={path}"]
    else:
        command = [f"experiment=book/{name}", f"seed={seed}", f"run_dir={path}", *overrides]
    print(f"{name} seed {seed}: train.py {' '.join(command)}", flush=True)
    ended = _call("train.py", *command, threads=threads)
    run = Run.read(path)
    if ended.returncode or run is None:
        print(f"{name} seed {seed}: failed\n{ended.stderr}", file=sys.stderr, flush=True)
        return False
    print(f"{name} seed {seed}: {run.summary['test']['accuracy']:.4f} in {run.seconds:.0f} s", flush=True)
    return True


def _call(script: str, *arguments: str, threads: int | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, str(REPOSITORY / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPOSITORY)


def write_page(names: Sequence[str]) -> None:
    rows, beside, untried = [], [], []
    for name in names:
        preset = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())
        runs = complete_runs(VOTERS if name == "c6-ensemble" else name)
        if name == "c6-ensemble":
            rows += [_ensemble_row(preset, runs)] if len(runs) > 1 else []
        elif runs:
            rows.append(_row(name, preset, runs))
            beside += _rows_beside(name, runs)
        if not runs:
            untried.append(f"`{name}`")
    page = REPOSITORY / "docs" / "book.template.md"
    text = page.read_text()
    for mark, value in {
        "experiments": _table(
            ("experiment", "published", "ours (%)", "runs", "difference", "chosen by", "minutes"), rows
        ),
        "beside": _table(("experiment", "figure", "published", "ours (%)"), beside),
        "baselines": _baselines(),
        "vanishing": _vanishing(),
        "untried": ", ".join(untried) or "none",
    }.items():
        text = text.replace(f"<!-- {mark} -->", value)
    PAGE.write_text(text)
    print(f"written: {PAGE.relative_to(REPOSITORY)}")


def complete_runs(name: str) -> list[Run]:
    paths = sorted((RUNS / name).glob("seed-*"), key=lambda path: int(path.name.removeprefix("seed-")))
    return [run for run in map(Run.read, paths) if run]


def _row(name: str, preset: dict[str, Any], runs: Sequence[Run]) -> list[str]:
    published = preset["published"]
    ours = [run.figure(published["figure"]) for run in runs]
    figure = statistics.mean(ours)
    shown = _mean(ours)
    if len(runs) >= BEST_OF.get(name, len(runs) + 1):
        best = max(runs, key=lambda run: run.figure("accuracy/val"))
        figure = best.figure(published["figure"])
        shown = f"**{100 * figure:.2f}** best of {len(runs)} by validation; {shown}"
    minutes = statistics.mean(run.seconds for run in runs) / 60
    return [
        f"`{name}`",
        f"{100 * published['value']:.2f}",
        shown,
        str(len(runs)),
        f"{100 * (figure - published['value']):+.2f}",
        _chosen_by(runs[0].summary["best"]["monitor"], published["figure"]),
        f"{minutes:.1f}",
    ]


def _chosen_by(monitor: str | None, figure: str) -> str:
    if monitor is None:
        return "last epoch" + (" (validation pictures)" if figure.endswith("/val") else "")
    return "test peak" if monitor.endswith("/test") else "validation"


def _rows_beside(name: str, runs: Sequence[Run]) -> Iterator[list[str]]:
    for also in ALSO.get(name, []):
        values = [run.at(also) for run in runs]
        yield [f"`{name}`", f"{also.split}, epoch {also.epoch}", f"{100 * also.published:.2f}", _mean(values)]
    if name in ON_TRAINING_PICTURES:
        values = [run.on_training_pictures() for run in runs]
        yield [f"`{name}`", "training pictures", f"{100 * ON_TRAINING_PICTURES[name]:.2f}", _mean(values)]


def _ensemble_row(preset: dict[str, Any], runs: Sequence[Run]) -> list[str]:
    """The vote of the runs: each picture is what most of them take it for, by the sum of probabilities at a tie."""
    tables = [_predictions(run) for run in runs]
    labels = tables[0][0]
    votes = sum(nn.functional.one_hot(probabilities.argmax(1), 10) for _, probabilities in tables)
    total = votes + torch.stack([probabilities for _, probabilities in tables]).mean(0) / 2
    accuracy = float((total.argmax(1) == labels).double().mean())
    published = preset["published"]["value"]
    minutes = sum(run.seconds for run in runs) / 60
    return [
        "`c6-ensemble`",
        f"{100 * published:.2f}",
        f"{100 * accuracy:.2f}",
        f"{len(runs)} votes",
        f"{100 * (accuracy - published):+.2f}",
        "validation",
        f"{minutes:.1f}",
    ]


def _predictions(run: Run) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels (N,) and probabilities (N, 10) of the test pictures, in the order of their file."""
    files = sorted(run.path.glob("predictions-test-*.csv"))
    if not files:
        _call("evaluate.py", f"run={run.path}")
        files = sorted(run.path.glob("predictions-test-*.csv"))
    with files[-1].open() as file:
        rows = list(csv.DictReader(file))
    labels = torch.tensor([int(row["label"]) for row in rows])
    return labels, torch.tensor([[float(row[f"p({digit})"]) for digit in range(10)] for row in rows])


def _mean(values: Sequence[float]) -> str:
    shown = f"{100 * statistics.mean(values):.2f}"
    return shown if len(values) < 2 else f"{shown} ± {100 * statistics.stdev(values):.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measure_baselines() -> None:
    """Mean darkness, and scikit-learn's support vector machine, which takes ten minutes: kept for later calls."""
    kept = RUNS / "baselines.json"
    if not kept.is_file():
        print("baselines: sklearn.svm.SVC learns 50,000 pictures", flush=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({"darkness": mean_darkness(), "svm": support_vector_machine()}))


def _baselines() -> str:
    kept = RUNS / "baselines.json"
    if not kept.is_file():
        return f"Not yet measured: `make book ARGS={BASELINES}`."
    found = json.loads(kept.read_text())
    rows = [
        ["mean darkness of the picture", "22.25", f"{100 * found['darkness']:.2f}"],
        ['`sklearn.svm.SVC(gamma="auto")`', "94.35", f"{100 * found['svm']:.2f}"],
    ]
    return _table(("baseline", "published", "ours (%)"), rows)


def _pictures() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first 50,000 training pictures and labels, then the test ones; (N, 784) in [0, 1]."""
    source = check_config(resolved(cnnlab.compose("data=mnist")), Trust()).source
    train, test = source.read("train"), source.read("test")
    flat = [pictures.x_NCHW.flatten(1).float() / 255 for pictures in (train, test)]
    return flat[0][:50_000], train.y_N[:50_000], flat[1], test.y_N


def mean_darkness() -> float:
    """Test accuracy of naming the digit whose mean darkness in the training pictures is nearest."""
    x_train, y_train, x_test, y_test = _pictures()
    darkness_K = torch.stack([x_train[y_train == digit].sum(1).mean() for digit in range(10)])
    guesses = (x_test.sum(1)[:, None] - darkness_K).abs().argmin(1)
    return float((guesses == y_test).double().mean())


def support_vector_machine() -> float:
    from sklearn.svm import SVC  # type: ignore[import-untyped]

    x_train, y_train, x_test, y_test = (tensor.numpy() for tensor in _pictures())
    return float(SVC(gamma="auto", cache_size=2000).fit(x_train, y_train).score(x_test, y_test))


def _vanishing(seeds: int = 10) -> str:
    published = {2: (0.066, 0.309), 3: (0.012, 0.060, 0.283), 4: (0.0030, 0.017, 0.070, 0.285)}
    rows = []
    for layers, norms in published.items():
        measured = torch.tensor([bias_gradients(layers, seed) for seed in range(seeds)])
        middle, spread = measured.mean(0), measured.std(0)
        ours = ", ".join(f"{m:.3f} ± {s:.3f}" for m, s in zip(middle.tolist(), spread.tolist(), strict=True))
        rows.append([str(layers), ", ".join(f"{norm:.3g}" for norm in norms), ours])
    return _table(("hidden layers", "published ‖∂C/∂b‖, first layer first", f"ours, {seeds} seeds"), rows)


def bias_gradients(layers: int, seed: int) -> list[float]:
    """‖∂C/∂b‖ of each hidden layer before the first update, the cost over the first 1,000 training pictures."""
    more = [
        f"+model.blocks.{name}={{type: {block}, after: {before}}}"
        for k in range(3, layers + 1)
        for name, block, before in (
            (f"hidden{k}", "linear, out_features: 30", f"sigmoid{k - 1}"),
            (f"sigmoid{k}", "sigmoid", f"hidden{k}"),
        )
    ]
    blueprint = check_config(resolved(cnnlab.compose("experiment=book/c5-vanish", *more)), Trust())
    torch.manual_seed(seed)
    network = blueprint.network.build()
    x_ND, y_N, _, _ = _pictures()
    blueprint.loss(network(x_ND[:1000].reshape(-1, *blueprint.spec.input_shape)), y_N[:1000]).backward()
    biases = [p for name, p in network.named_parameters() if re.fullmatch(r"hidden\d\.bias", name)]
    return [float(bias.grad.norm()) for bias in biases if bias.grad is not None]


if __name__ == "__main__":
    main()
