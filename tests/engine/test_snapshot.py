"""A snapshot: the figures by torch itself, and no trace in the training."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnlab.engine.execution import Execution
from cnnlab.engine.records import Snapshot
from cnnlab.engine.snapshot import IMAGES, sample, take_snapshot
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.randomness import capture_generators, same_generators


class Counting(nn.Module):
    """Scales by the number of its calls, kept in Python, and counts them in a buffer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.count += 1
        return x * self.calls


class DrawingLoss(nn.Module):
    """Draws from the global generator and keeps a running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.0))

    def forward(self, output_NK: Tensor, target: Tensor) -> Tensor:
        self.mean += torch.rand(())
        return F.cross_entropy(output_NK, target)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    first = [nn.LeakyReLU(0.5, inplace=True), Counting(), nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)]
    return nn.Sequential(*first, nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Flatten(), nn.Linear(27, 4))


def batch(count: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(1)
    x_NCHW = torch.randn(count, 1, 5, 5, generator=generator)
    return Batch(x_NCHW, torch.randint(0, 4, (count,), generator=generator), torch.arange(count))


def snapshot(model: nn.Module, loss: Any = F.cross_entropy) -> Snapshot:
    return take_snapshot(model, loss, Execution(), sample(batch()), step=3, epoch=1)


def test_weights_gradients_and_activations_are_those_of_evaluation_mode() -> None:
    model = network()
    reference = copy.deepcopy(model).eval()
    F.cross_entropy(reference(batch().x_NCHW), batch().target).backward()
    found = snapshot(model)
    assert list(found.weights) == list(found.gradients) == [name for name, _ in model.named_parameters()]
    for name, parameter in reference.named_parameters():
        assert torch.equal(found.weights[name], parameter)
        torch.testing.assert_close(found.gradients[name], parameter.grad)
    x = batch().x_NCHW
    for name, layer in copy.deepcopy(network()).eval().named_children():
        x = layer(x.clone())
        torch.testing.assert_close(found.activations[name], x)


def test_a_snapshot_changes_nothing() -> None:
    model, loss, images = network(), DrawingLoss(), batch()
    before, generators = copy.deepcopy((model.state_dict(), loss.state_dict(), images.x_NCHW)), capture_generators()
    take_snapshot(model, loss, Execution(), sample(images), step=3, epoch=1)
    assert same_generators(generators, capture_generators())
    for was, now in zip(before[0].values(), model.state_dict().values(), strict=True):
        assert torch.equal(was, now)
    assert loss.mean == before[1]["mean"]
    assert torch.equal(images.x_NCHW, before[2])
    assert model[1].calls == 0
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_does_not_train_is_left_out() -> None:
    model = network()
    model[2].requires_grad_(False)
    assert list(snapshot(model).weights) == ["3.weight", "3.bias", "7.weight", "7.bias"]


@pytest.mark.parametrize(("count", "shown"), [(6, 6), (IMAGES + 5, IMAGES)])
def test_a_sample_is_a_copy_of_the_first_images(count: int, shown: int) -> None:
    images = batch(count)
    first = sample(images)
    images.x_NCHW.zero_()
    assert torch.equal(first.x_NCHW, batch(count).x_NCHW[:shown])
    assert len(first.target) == len(first.index_N) == shown
