import pytest
import torch
from torch import nn

from cnnlab.engine.ema import EMA


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2)).double()


def set_weights(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def averages(ema: EMA) -> list[float]:
    """Every parameter's first element."""
    return [float(parameter.flatten()[0]) for parameter in ema.network.parameters()]


def test_the_average_follows_its_recurrence_with_a_warm_up_of_the_decay() -> None:
    model = network()
    set_weights(model, 0.0)
    ema = EMA(model, decay=0.2)
    expected = 0.0
    # min(0.2, (1 + n) / (10 + n)) for n = 0, 1, 2, 3: 0.1, 2/11, then 3/12 and 4/13 are more than 0.2
    for decay, weight in zip([1 / 10, 2 / 11, 0.2, 0.2], [1.0, -2.0, 3.0, 5.0], strict=True):
        set_weights(model, weight)
        ema.update(model)
        expected = decay * expected + (1 - decay) * weight
        assert averages(ema) == pytest.approx([expected] * 4, rel=1e-12)


def test_buffers_are_copied_not_averaged() -> None:
    model = network()
    ema = EMA(model, decay=0.9)
    model(torch.randn(4, 1, 5, 5, dtype=torch.float64))
    ema.update(model)
    for mine, theirs in zip(ema.network.buffers(), model.buffers(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() != theirs.data_ptr()


def test_the_average_is_for_evaluation_and_leaves_the_trained_network_alone() -> None:
    model = network()
    ema = EMA(model, decay=0.5)
    set_weights(model, 2.0)
    ema.update(model)
    assert all(bool((parameter == 2).all()) for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.training
    assert not any(module.training for module in ema.network.modules())
    assert not any(parameter.requires_grad for parameter in ema.network.parameters())


def test_the_averaged_network_keeps_the_memory_layout() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
    assert EMA(model, decay=0.5).network[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_restored_average_continues_with_the_same_decay() -> None:
    model = network()
    ema = EMA(model, decay=0.9)
    for weight in (1.0, 2.0, 3.0):
        set_weights(model, weight)
        ema.update(model)
    restored = EMA(network(), decay=0.9)
    restored.network.load_state_dict(ema.network.state_dict())
    restored.load_state_dict(ema.state_dict())
    set_weights(model, 10.0)
    for each in (ema, restored):
        each.update(model)
    assert averages(restored) == averages(ema)
