"""Stages and branches against networks of torchvision's that are made of them."""

from typing import Any

import torch
import yaml
from torch import nn
from torchvision import models

from cnnlab.network import NetworkPlan, plan_network
from cnnlab.runtime.errors import Complaints

INPUT_SHAPE, CLASSES = (3, 64, 64), 10


def planned(blocks: dict[str, Any]) -> NetworkPlan:
    complaints = Complaints()
    plan = plan_network(INPUT_SHAPE, blocks, complaints, classes=CLASSES)
    complaints.raise_if_any()
    assert plan is not None
    return plan


def assert_equal_outputs(network: nn.Module, published: nn.Module) -> None:
    """With the same weights: both list their tensors in the order of the forward pass."""
    network, published = network.double().eval(), published.double().eval()
    network.load_state_dict(dict(zip(network.state_dict(), published.state_dict().values(), strict=True)))
    x_NCHW = torch.randn(2, *INPUT_SHAPE, dtype=torch.float64)
    with torch.no_grad():
        expected = published(x_NCHW)
        assert expected.any()
        torch.testing.assert_close(network(x_NCHW), expected, rtol=1e-9, atol=0)


RESNET = """
conv1: {type: conv, out_channels: 64, kernel_size: 7, stride: 2, padding: 3, bias: false}
norm1: batch_norm
relu: relu
pool: {type: max_pool, kernel_size: 3, stride: 2, padding: 1}
"""
STAGE = """
layer%d:
  type: sequential
  repeat: 2
  first: {block: {blocks: {conv1: {out_channels: %d, stride: %d}}}}
  blocks:
    block:
      type: residual
      blocks:
        conv1: {type: conv, out_channels: in_channels, kernel_size: 3, padding: 1, bias: false}
        norm1: batch_norm
        relu: relu
        conv2: {type: conv, out_channels: in_channels, kernel_size: 3, padding: 1, bias: false}
        norm2: batch_norm
    relu: relu
"""
HEAD = """
average: global_avg_pool
output: {type: linear, out_features: classes}
"""


def test_stages_whose_first_repetition_differs_make_resnet18() -> None:
    stages = [STAGE % (number, 64 * 2**number, 1 + (number > 0)) for number in range(4)]
    assert_equal_outputs(
        planned(yaml.safe_load(RESNET + "".join(stages) + HEAD)).build(), models.resnet18(num_classes=10)
    )


DENSE = """
dense%d:
  type: sequential
  repeat: %d
  blocks:
    layer:
      type: branches
      branches:
        x: identity
        new:
          blocks:
            norm1: batch_norm
            relu1: relu
            conv1: {type: conv, out_channels: 32, kernel_size: 1, bias: false}
            norm2: batch_norm
            relu2: relu
            conv2: {type: conv, out_channels: 8, kernel_size: 3, padding: 1, bias: false}
"""
TRANSITION = """
transition:
  type: sequential
  blocks:
    norm: batch_norm
    relu: relu
    conv: {type: conv, out_channels: in_channels // 2, kernel_size: 1, bias: false}
    pool: {type: avg_pool, kernel_size: 2}
"""


def test_branches_that_keep_their_input_make_a_densenet() -> None:
    start = RESNET.replace("64", "16")
    blocks = start + DENSE % (1, 2) + TRANSITION + DENSE % (2, 3) + "norm5: batch_norm\nrelu5: relu" + HEAD
    published = models.DenseNet(growth_rate=8, block_config=(2, 3), num_init_features=16, num_classes=10)
    assert_equal_outputs(planned(yaml.safe_load(blocks)).build(), published)
