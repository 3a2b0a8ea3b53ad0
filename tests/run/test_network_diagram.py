"""The boxes of a network's layers."""

from xml.etree import ElementTree

import pytest
import yaml

from cnnlab.network import plan_network
from cnnlab.run.network_diagram import diagram
from cnnlab.runtime.errors import Complaints

CONV = "{type: conv, out_channels: 4, kernel_size: 3, padding: 1}"


def texts(blocks: str) -> str:
    """The texts from top to bottom and from left to right, without those of the input."""
    complaints = Complaints()
    plan = plan_network((3, 8, 8), yaml.safe_load(blocks), complaints)
    complaints.raise_if_any()
    assert plan is not None
    root = ElementTree.fromstring(diagram(plan))
    return " | ".join([one.text or "" for one in root.iter("{http://www.w3.org/2000/svg}text")][2:])


def test_a_residual_ends_with_its_addition() -> None:
    assert texts(f"block: {{type: residual, blocks: {{c: {CONV}, act: tanh}}}}") == (
        "block: residual | c | conv 3×3 | 4×8×8 | conv | conv 1×1 | 4×8×8 | "
        "act | tanh | norm | batch_norm | add | 4×8×8"
    )


def test_branches_end_with_their_join() -> None:
    branches = f"{{x: {CONV}, y: {{blocks: {{c: {CONV}, act: tanh}}}}}}"
    assert texts(f"fire: {{type: branches, join: mean, branches: {branches}}}") == (
        "fire: branches | x | conv 3×3 | 4×8×8 | y | c | conv 3×3 | 4×8×8 | act | tanh | mean | 4×8×8"
    )


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (f"blocks: {{c: {CONV}}}", "stage ×3 | c | conv 3×3 | 4×8×8"),
        ("blocks: {c: {type: conv, out_channels: 4 + index, kernel_size: 1}}", "stage ×3 | c | conv 1×1 | 4…6×8×8"),
        (
            f"first: {{c: {{stride: 2}}}}, blocks: {{c: {CONV}}}",
            "stage | r0 | c | conv 3×3 / 2 | 4×4×4 | r1…r2 ×2 | c | conv 3×3",
        ),
    ],
)
def test_repetitions_that_differ_only_in_sizes_are_drawn_once(own: str, expected: str) -> None:
    assert texts(f"stage: {{type: sequential, repeat: 3, {own}}}") == expected


def test_a_layer_called_input_has_a_box() -> None:
    assert texts("input: tanh\nact: relu") == "input | tanh | act | relu"


def test_layers_that_are_joined_by_name_stand_in_rows() -> None:
    network = f"stem: {CONV}\na: {CONV}\nb: {{type: tanh, from: stem}}\nc: {{type: add, from: [b, a, stem]}}"
    assert texts(network) == "stem | conv 3×3 | 4×8×8 | a | conv 3×3 | b | tanh | c | add | 4×8×8"
