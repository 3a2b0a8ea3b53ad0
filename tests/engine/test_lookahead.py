"""Lookahead against its recurrence by hand."""

import pytest
import torch
from torch import nn

from cnnlab.engine.lookahead import Lookahead, LookaheadSettings
from cnnlab.runtime.errors import ArgumentError


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1)).double()


def set_all(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(value)


def values(model: nn.Module) -> list[float]:
    """All that is averaged: weights, and batch norm's statistics."""
    return [one.item() for one in (*model.parameters(), *model.buffers()) if one.is_floating_point()]


def test_the_slow_weights_move_by_alpha_and_the_trained_ones_return_to_them() -> None:
    model = network()
    set_all(model, 0.0)
    lookahead = Lookahead(model, LookaheadSettings(every=2, alpha=0.25), None)
    seen = []
    for weight in (1.0, 4.0, 5.0, 9.0):
        set_all(model, weight)
        lookahead.update(model)
        seen.append((values(lookahead.network)[0], values(model)[0]))
    # 0 + 0.25 · (4 − 0) = 1, then 1 + 0.25 · (9 − 1) = 3
    assert seen == [(0.0, 1.0), (1.0, 1.0), (1.0, 5.0), (3.0, 3.0)]
    assert values(model) == values(lookahead.network) == [3.0] * 5
    assert int(lookahead.network[1].num_batches_tracked) == 9


def test_with_a_power_alpha_falls_from_one_as_the_run_ends() -> None:
    """0.95⁵ · (step / total steps)³ is what the slow weights keep: arXiv 2404.00498."""
    model = network()
    set_all(model, 0.0)
    lookahead = Lookahead(model, LookaheadSettings(5, 1 - 0.95**5, 3.0), 10)
    expected = 0.0
    for step in range(1, 11):
        set_all(model, float(step))
        lookahead.update(model)
        if step % 5 == 0:
            kept = 0.95**5 * (step / 10) ** 3
            expected = kept * expected + (1 - kept) * step
    assert values(model) == values(lookahead.network) == pytest.approx([expected] * 5, rel=1e-12)


def test_it_continues_from_its_counter() -> None:
    model = network()
    lookahead = Lookahead(model, LookaheadSettings(every=3), None)
    lookahead.load_state_dict({"updates": 2})
    set_all(model, 8.0)
    before = values(lookahead.network)
    lookahead.update(model)
    assert values(model) == pytest.approx([(one + 8.0) / 2 for one in before])
    assert lookahead.state_dict() == {"updates": 3}


@pytest.mark.parametrize(
    ("settings", "argument"),
    [({"every": 0}, "every"), ({"alpha": 0.0}, "alpha"), ({"alpha": 1.5}, "alpha"), ({"power": -1}, "power")],
)
def test_values_out_of_range_are_refused(settings: dict[str, float], argument: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        LookaheadSettings(**settings)  # type: ignore[arg-type]
    assert caught.value.argument == argument
