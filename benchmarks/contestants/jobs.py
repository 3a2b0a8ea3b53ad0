"""What a job of a sweep takes beyond its training: `jobs.py`, or `jobs.py --fresh` with a new interpreter for each."""

import argparse
import csv
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from statistics import median

from cnnlab.cli import train
from cnnlab.sweep import launcher
from cnnlab.sweep.processes import start_fresh

JOBS = 8


def overheads(sweep: Path) -> list[float]:
    """Seconds of each job's process beyond those of its training and its validations."""
    with (sweep / "sweep.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    summaries = [json.loads(Path(row["directory"], "summary.json").read_text(encoding="utf-8")) for row in rows]
    return [float(row["seconds"]) - found["train"]["seconds"] for row, found in zip(rows, summaries, strict=True)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true")
    if parser.parse_args().fresh:
        launcher.starter = lambda environment, jobs: nullcontext(start_fresh)  # type: ignore[assignment]
    seeds = ",".join(map(str, range(JOBS)))
    sys.argv[1:] = ["-m", f"seed={seeds}", "trainer.epochs=1", "hydra.sweep.dir=sweep"]
    train()
    first, *others = overheads(Path("sweep"))  # the first waits for the imports
    print(json.dumps({"first_overhead_seconds": first, "overhead_seconds": median(others)}))
