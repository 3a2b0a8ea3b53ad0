"""A layer that works in place is the only one that reads its input, or it is refused."""

import pytest
import torch
import yaml
from torch import nn

from cnnlab.network import build_network, plan_network
from cnnlab.runtime.errors import Complaints

RELU = "{type: relu, inplace: true}"
LATER = "{type: relu, inplace: true, from: stem}"
STEM = "stem: {type: conv, out_channels: 3, kernel_size: 1}\n"


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (
            f"act: {RELU}\nsum: {{type: add, from: [act, stem]}}",
            "act.inplace: IT 'sum' reads the output of 'stem', too",
        ),
        (
            f"a: tanh\nact: {LATER}\nsum: {{type: add, from: [act, a]}}",
            "act.inplace: IT 'a' reads the output of 'stem', too",
        ),
        (
            f"drop: dropout\nact: {RELU}\nsum: {{type: add, from: [act, stem]}}",
            "act.inplace: IT 'sum' reads the output of",
        ),
        (
            f"block: {{type: residual, blocks: {{act: {RELU}}}}}",
            "block.blocks.act.inplace: IT 'block' reads its input twice",
        ),
        (
            f"fire: {{type: branches, branches: {{x: identity, y: {{blocks: {{act: {RELU}}}}}}}}}",
            "fire.branches.y.blocks.act.inplace: IT 'x' reads the same input, too",
        ),
        (
            f"s: {{type: sequential, blocks: {{act: {RELU}, more: {RELU}}}}}\nsum: {{type: add, from: [s, stem]}}",
            "s.blocks.act.inplace: IT 'sum' reads the output of 'stem', too",
        ),
    ],
)
def test_a_second_reader_is_refused(blocks: str, message: str) -> None:
    complaints = Complaints()
    assert plan_network((3, 4, 4), yaml.safe_load(STEM + blocks), complaints) is None
    (found,) = complaints.messages
    assert found.startswith(f"model.blocks.{message.replace('IT', 'it would change what others see, as')}")


@pytest.mark.parametrize(
    "blocks",
    [
        f"drop: dropout\nact: {RELU}\nmore: {RELU}",
        f"act: {RELU}\na: tanh\nsum: {{type: add, from: [a, act]}}",
        f"block: {{type: residual, blocks: {{norm: batch_norm, act: {RELU}}}}}\nact: {RELU}",
        f"fire: {{type: branches, branches: {{x: identity, y: {{blocks: {{t: tanh, act: {RELU}}}}}}}}}\nact: {RELU}",
    ],
)
def test_what_nobody_else_reads_may_be_changed(blocks: str) -> None:
    specs = yaml.safe_load(STEM + blocks)
    network = build_network((3, 4, 4), specs).eval()
    copied = build_network((3, 4, 4), yaml.safe_load((STEM + blocks).replace("true", "false"))).eval()
    copied.load_state_dict(network.state_dict())
    x_NCHW = torch.randn(2, 3, 4, 4)
    assert any(getattr(module, "inplace", False) for module in network.modules() if isinstance(module, nn.ReLU))
    torch.testing.assert_close(network(x_NCHW), copied(x_NCHW), rtol=0, atol=0)
