"""configs/model/resnet20.yaml against the network of arXiv 1512.03385, section 4.2, written by hand."""

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from cnnlab.config.compose import CONFIGS
from cnnlab.network import build_network


class Shortcut(nn.Module):
    """Every second pixel, and as many channels of zeros again (option A)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, x.shape[1]))


class ByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        blocks = [BasicBlock(16, 16) for _ in range(3)]
        for channels in (16, 32):
            blocks.append(BasicBlock(channels, 2 * channels, stride=2, downsample=Shortcut()))
            blocks += [BasicBlock(2 * channels, 2 * channels) for _ in range(2)]
        self.blocks = nn.Sequential(*blocks)
        self.output = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.conv(x))))
        return self.output(x.mean((2, 3)))


@pytest.fixture
def network() -> nn.Sequential:
    model = yaml.safe_load((CONFIGS / "model" / "resnet20.yaml").read_text())
    return build_network((3, 32, 32), model["blocks"], classes=10, init=model["init"])


@pytest.mark.parametrize("training", [True, False])
def test_it_computes_what_the_network_written_by_hand_does(network: nn.Sequential, training: bool) -> None:
    by_hand = ByHand()
    assert sum(parameter.numel() for parameter in network.parameters()) == 269_722  # as published
    with torch.no_grad():
        for buffer in network.buffers():  # statistics that are no ones and zeros
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    # both list their tensors in the order of the forward pass
    by_hand.load_state_dict(dict(zip(by_hand.state_dict(), network.state_dict().values(), strict=True)))
    x_NCHW = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(network.train(training)(x_NCHW), by_hand.train(training)(x_NCHW))


def test_its_convolutions_begin_with_the_variance_of_he(network: nn.Sequential) -> None:
    weight = network.get_parameter("stage3.r1.block.blocks.conv2.weight")
    assert float(weight.detach().var()) == pytest.approx(2 / (9 * 64), rel=0.05)
