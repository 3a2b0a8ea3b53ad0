"""Filters computed from training images: which images, when, and what else changes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import composed
from torch import Tensor

from cnnlab.blocks.conv import Conv
from cnnlab.blocks.initialization import whitening
from cnnlab.blocks.whitening import patch_covariance
from cnnlab.components import Trust
from cnnlab.config.check import check_config
from cnnlab.config.run_plan import RunPlan
from cnnlab.data.normalization import normalized
from cnnlab.run.loaders import TrainingData, read_training_data
from cnnlab.run.resolve import resolve
from cnnlab.run.train_state import build_train_state
from cnnlab.run.whitening import whiten
from cnnlab.runtime.errors import ConfigError
from cnnlab.runtime.randomness import capture_generators, derive, same_generators

BLOCKS = (
    "model=none",
    "+model.blocks={first: {type: conv, out_channels: 8, kernel_size: 2, init: INIT}, norm: batch_norm, relu: relu, "
    "second: {type: conv, out_channels: 4, kernel_size: 3}, pool: global_avg_pool, "
    "output: {type: linear, out_features: classes}}",
)


def blocks(init: str) -> tuple[str, ...]:
    return tuple(part.replace("INIT", init) for part in BLOCKS)


def planned(init: str, *overrides: str) -> tuple[RunPlan, TrainingData]:
    plan = check_config(composed("experiment=debug/fast", *blocks(init), *overrides), Trust())
    return plan, read_training_data(plan)


def weights(plan: RunPlan) -> dict[str, Tensor]:
    return build_train_state(plan).network.state_dict()


def test_the_filters_are_of_normalised_images_drawn_by_the_seed() -> None:
    plan, data = planned("{type: whitening, images: 200}", "seed=5", "+data.augment.noise={type: shift, pixels: 2}")
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(derive(5, "whitening")))
    x_NCHW = data.train.x_NCHW[order[:200]]
    conv = Conv(1, 8, 2)
    covariance_DD = patch_covariance([normalized(x_NCHW, *data.normalization.tensors(torch.device("cpu")))], conv)
    initializer: Any = whitening()
    found = weights(whiten(plan, data))
    torch.testing.assert_close(found["first.weight"], initializer.filters(covariance_DD, conv))
    assert found["first.bias"].eq(0).all()


def test_other_layers_start_as_without_it_and_the_generators_are_untouched() -> None:
    plan, data = planned("whitening")
    before = capture_generators()
    whitened = whiten(plan, data)
    assert same_generators(before, capture_generators())
    usual, found = weights(planned("default")[0]), weights(whitened)
    different = [name for name in usual if not torch.equal(usual[name], found[name])]
    assert different == ["first.weight", "first.bias"]


def test_a_later_convolution_is_whitened_for_what_reaches_it() -> None:
    plan, data = planned(
        "whitening", "+model.blocks.second.init={type: whitening, eps: 0}", "model.blocks.second.out_channels=144"
    )
    network = build_train_state(whiten(plan, data)).network.eval()
    x_NCHW = normalized(data.train.x_NCHW, *data.normalization.tensors(torch.device("cpu")))
    with torch.no_grad():
        reaching_NCHW = network.relu(network.norm(network.first(x_NCHW)))  # type: ignore[operator]
        responses_KP = network.second(reaching_NCHW).transpose(0, 1).flatten(1)[:10]  # type: ignore[operator]
    torch.testing.assert_close(responses_KP.cov(correction=0), torch.eye(10), rtol=0, atol=1e-3)


def test_weights_from_elsewhere_stay() -> None:
    plan, data = planned("whitening")
    given = torch.randn(8, 1, 2, 2)
    object.__setattr__(plan, "starting_weights", {"first.weight": given})
    assert torch.equal(weights(whiten(plan, data))["first.weight"], given)


@pytest.mark.parametrize("limit", [2, 3])
def test_fewer_images_than_a_patch_has_numbers_are_refused(limit: int) -> None:
    plan, data = planned("whitening", f"data.limit={limit}", "data.batch_size=2")
    with pytest.raises(ConfigError, match=rf"^model.blocks.first.init: .* at least 2·2·1 = 4, received {limit}$"):
        whiten(plan, data)


def test_a_resumed_run_computes_it_no_more() -> None:
    plan, data = planned("whitening")
    started, _ = resolve(plan, data, None)
    assert set(started.starting_weights) == {"first.weight", "first.bias"}
    checkpoint: Any = SimpleNamespace(meta={"environment": {}})
    resumed, _ = resolve(plan, data, checkpoint)
    assert resumed.starting_weights == {}
