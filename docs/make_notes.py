"""Runs the walk through the notes and writes `docs/notes.md`: see `make notes`.

Each concept is computed with the product's own parts, drawn into `docs/notes/` and checked with a number; what it
trains lies in `runs/notes`. `docs/notes.json` keeps what the page shows, so that one concept can be made anew.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from laboratory import convolution, descent, layers, networks, neurons
from laboratory.shown import REPOSITORY, Shown
from matplotlib import style
from matplotlib.figure import Figure

RESULTS = REPOSITORY / "docs" / "notes.json"
PAGE = REPOSITORY / "docs" / "notes.md"
IMAGES = REPOSITORY / "docs" / "notes"
BAR = "\\|"  # within a table
TEMPLATE = REPOSITORY / "docs" / "notes.template.md"
STYLE = REPOSITORY / "docs" / "laboratory" / "notes.mplstyle"

CONCEPTS: dict[str, Callable[[], Shown]] = {
    "planted_filter": convolution.planted_filter,
    "frozen_filter": convolution.frozen_filter,
    "learned_filters": convolution.learned_filters,
    "weight_sharing": convolution.weight_sharing,
    "stride": convolution.stride,
    "padding": convolution.padding,
    "receptive_field": convolution.receptive_field,
    "relu": layers.relu,
    "pooling": layers.pooling,
    "dropout": layers.dropout,
    "overfitting": networks.overfitting,
    "four_steps": descent.four_steps,
    "backward_pass": descent.backward_pass,
    "perceptron": neurons.perceptron,
    "sigmoid": neurons.sigmoid,
    "quadratic_cost": neurons.quadratic_cost,
    "why_a_cost": neurons.why_a_cost,
    "rnn_or_cnn": networks.rnn_or_cnn,
    "gradient_descent": descent.gradient_descent,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="make notes", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("concepts", nargs="*", metavar="CONCEPT", help=f"of {', '.join(CONCEPTS)}; none: all of them")
    chosen = parser.parse_args().concepts or list(CONCEPTS)
    unknown = [name for name in chosen if name not in CONCEPTS]
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; expected some of {', '.join(CONCEPTS)}")
    style.use(STYLE)
    results = read_results()
    missed = 0
    for name in chosen:
        print(name, flush=True)
        try:
            shown = CONCEPTS[name]()
        except RuntimeError as error:
            sys.exit(f"error: {name}: {error}")
        results[name] = kept(name, shown)
        for claim in shown.claims:
            missed += not claim.holds
            print(f"  {'holds' if claim.holds else 'MISSED'}: {claim.what}: {claim.expected}; found {claim.found}")
        RESULTS.write_text(json.dumps({name: results[name] for name in CONCEPTS if name in results}, indent=1) + "\n")
        PAGE.write_text(page(results))
    print(f"written: {PAGE.relative_to(REPOSITORY)}")
    sys.exit(f"{missed} claims do not hold" if missed else 0)


def read_results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}


def kept(name: str, shown: Shown) -> dict[str, Any]:
    """What the page needs of a concept; its images are written."""
    IMAGES.mkdir(exist_ok=True)
    alts = {}
    for kind, image in shown.images.items():
        file = IMAGES / f"{name}-{kind}.png"
        if isinstance(image.drawn, Figure):
            image.drawn.savefig(file, metadata={"Software": None})
        else:
            shutil.copyfile(image.drawn, file)
        alts[file.name] = image.alt
    return {
        "commands": list(dict.fromkeys(shown.commands)),
        "images": alts,
        "claims": [asdict(claim) for claim in shown.claims],
        "text": shown.text,
    }


def page(results: dict[str, Any]) -> str:
    """The text of `docs/notes.md`: the template, each `<!-- CONCEPT -->` replaced by what it shows."""
    text = TEMPLATE.read_text(encoding="utf-8")
    for name in CONCEPTS:
        mark = f"<!-- {name} -->"
        assert mark in text, f"the template lacks {mark}"
        text = text.replace(
            mark, section(results[name]) if name in results else f"Not yet made: `make notes ARGS={name}`."
        )
    return text


def section(found: dict[str, Any]) -> str:
    """Commands, text, images and the table of claims."""
    parts = ["```sh\n" + "\n".join(found["commands"]) + "\n```"]
    if found["text"]:
        parts.append(found["text"])
    parts += [f"![{alt}](notes/{file})" for file, alt in found["images"].items()]
    rows = [
        [claim["what"], claim["expected"], claim["found"] + ("" if claim["holds"] else " **missed**")]
        for claim in found["claims"]
    ]
    table = [["check", "expected", "found"], ["---"] * 3, *rows]
    parts.append("\n".join(f"| {' | '.join(cell.replace('|', BAR) for cell in row)} |" for row in table))
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
