"""Measures cnnlab against its peers: `make bench`, or `make bench ARGS='cnn tiny --repeats 3'` for some of it."""

import argparse
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from measuring import Contestant, machine, measure, summary_of, versions
from report import Result, folder_of, table, write_report
from suites import BENCHMARKS, ON_CUDA


def main(names: list[str], repeats: int, also: list[str], write: bool) -> int:
    """Returns how many benchmarks failed; the others continue."""
    failures = 0
    for name in names or BENCHMARKS:
        if name == "images" and "CNNLAB_JPEGS" not in os.environ:
            print("images: left out; CNNLAB_JPEGS has to name a folder with train/CLASS/*.jpg and test/CLASS/*.jpg")
            continue
        try:
            run(name, repeats, also, write)
        except RuntimeError as error:
            print(f"error: {name}: {error}", file=sys.stderr, flush=True)
            failures += 1
    return failures


def run(name: str, repeats: int, also: list[str], write: bool) -> None:
    """Measures one benchmark and prints its table; on request, its result is kept. Raises `RuntimeError`."""
    benchmark, found = BENCHMARKS[name], machine()  # its load is that before we begin
    if name in ON_CUDA and not found["gpu"]:
        print(f"{name}: left out; there is no GPU")
        return
    print(f"{name}: {benchmark.title}", flush=True)
    contestants = with_overrides(benchmark.contestants(), also)
    result = {
        "title": benchmark.title,
        "figures": benchmark.figures,
        "machine": found,
        "versions": versions(),
        "repeats": repeats,
        "contestants": summary_of(contestants, measure(contestants, repeats, same_work=benchmark.same_work)),
    }
    print(table(result), flush=True)
    if write:
        keep(name, result)


def keep(name: str, result: Result) -> None:
    """Writes `results/NAME.json`, and the tables and plots made from it: README.md's, too."""
    folder = folder_of(result["machine"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    write_report()
    print(f"written: {folder / 'README.md'}", flush=True)


def with_overrides(contestants: list[Contestant], also: list[str]) -> list[Contestant]:
    """Each run of cnnlab's comes once more with `also` after its other overrides."""
    more = [
        replace(contestant, name=f"{contestant.name}, {' '.join(also)}", command=(*contestant.command, *also))
        for contestant in contestants
        if also and contestant.name.startswith("cnnlab")
    ]
    return [*contestants, *more]


def name_folders_absolutely() -> None:
    """Contestants run in folders of their own."""
    for variable in ("CNNLAB_DATA", "CNNLAB_JPEGS"):
        if variable in os.environ:
            os.environ[variable] = os.path.abspath(os.environ[variable])


@contextmanager
def images_in_files() -> Iterator[None]:
    """Names a folder of JPEGs in CNNLAB_JPEGS where none is named: $CNNLAB_DATA/cifar10-jpeg.zip, unpacked."""
    packed = Path(os.environ.get("CNNLAB_DATA", "data"), "cifar10-jpeg.zip")
    if "CNNLAB_JPEGS" in os.environ or not packed.exists():
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(packed).extractall(folder)
        os.environ["CNNLAB_JPEGS"] = folder
        yield


def known(name: str) -> str:
    if name not in BENCHMARKS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(BENCHMARKS)}; received {name}")
    return name


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, received {text}")
    return int(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", type=known, metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--also", action="append", default=[], metavar="KEY=VALUE", help="run cnnlab with it as well")
    parser.add_argument("--write", action="store_true", help="keep the results, and rewrite the tables of README.md")
    given = parser.parse_args()
    name_folders_absolutely()
    with images_in_files() if "images" in (given.names or BENCHMARKS) else nullcontext():
        failed = main(given.names, given.repeats, given.also, given.write)
    sys.exit(bool(failed))
