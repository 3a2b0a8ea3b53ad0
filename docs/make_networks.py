"""Compares the known networks with their references, and draws README's network: see `make networks`.

Writes `docs/networks.md` and `docs/images/model.svg`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE, DIAGRAM = REPOSITORY / "docs" / "networks.md", REPOSITORY / "docs" / "images" / "model.svg"
sys.path.append(str(REPOSITORY / "tests"))

from known_networks import KNOWN, Known, compared  # noqa: E402 — the tests' own references

from cnnlab.network import plan_network  # noqa: E402
from cnnlab.run.network_diagram import diagram  # noqa: E402
from cnnlab.runtime.errors import Complaints  # noqa: E402

INTRODUCTION = """# Known networks

Composed from blocks in YAML, each in the lines of `configs/model/blocks/NAME.yaml`, for images of the size for which it
was published: `python train.py model=blocks/NAME`. `make networks` compares each with a reference of equal weights, and
writes this page. The reference is torchvision's network, or a plain module written as in the paper. Parameters and MACs
of both are the same; `difference` is the norm of that of their outputs over the norm of the reference's, in float64 and
in evaluation mode, for one image of noise.

"""
HEAD = ("network", "images", "lines", "parameters", "MACs (M)", "difference", "reference")


def main() -> None:
    argparse.ArgumentParser(prog="make networks", description=__doc__).parse_args()
    torch.manual_seed(0)
    rows = []
    for known in KNOWN:
        rows.append(row(known))
        print(" | ".join(rows[-1]), flush=True)
    PAGE.write_text(page(rows), encoding="utf-8")
    DIAGRAM.write_text(readme_diagram(), encoding="utf-8")


def row(known: Known) -> list[str]:
    """Raises `RuntimeError` where parameters or MACs differ."""
    found = compared(known)
    if len({*found.parameters}) > 1 or len({*found.macs}) > 1:
        raise RuntimeError(f"{known.name}: parameters {found.parameters}, MACs {found.macs}: expected equal ones")
    size = [f"{found.parameters[0]:,}", f"{found.macs[0] / 1e6:,.1f}"]
    return [*described(known), *size, f"{found.difference:.1g}", origin(known)]


def described(known: Known) -> list[str]:
    """A row's cells that need no comparison."""
    lines = known.path.read_text(encoding="utf-8").splitlines()
    return [f"`{known.name}`", "×".join(map(str, known.input_shape[1:])), str(len(lines))]


def origin(known: Known) -> str:
    """The reference in few words: a paper without its section."""
    return known.origin.partition(",")[0]


def page(rows: Sequence[Sequence[str]]) -> str:
    lines = [HEAD, ["---", "---", "--:", "--:", "--:", "--:", "---"], *rows]
    return INTRODUCTION + "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def readme_diagram() -> str:
    """The network of README's first YAML, for images of MNIST."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    model, complaints = yaml.safe_load(text), Complaints()
    plan = plan_network((1, 28, 28), model["blocks"], complaints, classes=10, init=model["init"])
    complaints.raise_if_any()
    assert plan is not None
    return diagram(plan)


if __name__ == "__main__":
    main()
