"""Convolutions whose `init` is `whitening` get their filters from training images, before a run's first step."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.blocks.whitening import Whitening, describe_patch, patch_covariance, patch_size
from cnnlab.config.run_plan import RunPlan
from cnnlab.data.normalization import normalized
from cnnlab.data.source import Images
from cnnlab.network.trunk import reaching
from cnnlab.run.loaders import TrainingData
from cnnlab.run.starting_weights import apply_weights
from cnnlab.runtime.errors import ConfigError
from cnnlab.runtime.randomness import derive, put_back

BATCH = 256  # images at once through what stands before the convolution


def whiten(plan: RunPlan, data: TrainingData) -> RunPlan:
    """The plan with whitening filters among its starting weights; those that come from elsewhere stay.

    Draws nothing that another layer would see. Raises `ConfigError` for too few images.
    """
    with torch.device("meta"):
        marked = _marked(plan.network.build())
    wanted = [name for name in marked if f"{name}.weight" not in plan.starting_weights]
    if not wanted:
        return plan
    with put_back([]), torch.no_grad():
        torch.manual_seed(derive(plan.seed, "weights"))
        network = plan.network.build()
        apply_weights(network, plan.starting_weights)
        weights = _whitened(plan, data, network.eval(), wanted)
    return replace(plan, starting_weights={**plan.starting_weights, **weights})


def _marked(network: nn.Module) -> dict[str, Whitening]:
    return {name: module.whitening for name, module in network.named_modules() if "whitening" in vars(module)}


def _whitened(plan: RunPlan, data: TrainingData, network: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """The weights of the named convolutions, each for what those before it pass on."""
    keys = {path: layer.component.key for path, layer in plan.network.named_layers()}
    for name in names:
        conv: Any = network.get_submodule(name)
        images = _drawn(data.train, conv.whitening.images, plan.seed)
        _check_count(f"{keys.get(name, f'model.blocks.{name}')}.init", len(images), conv)
        inputs = (reaching(network, name, x_NCHW) for x_NCHW in _batches(images, data))
        covariance_DD = patch_covariance(inputs, conv)
        conv.weight.copy_(conv.whitening.filters(covariance_DD, conv))
        if conv.bias is not None:
            conv.bias.zero_()
    own = network.state_dict()
    return {tensor: own[tensor] for name in names for tensor in (f"{name}.weight", f"{name}.bias") if tensor in own}


def _drawn(images: Images, count: int, seed: int) -> Images:
    generator = torch.Generator().manual_seed(derive(seed, "whitening"))
    return images.select(torch.randperm(len(images), generator=generator)[:count].sort().values)


def _check_count(key: str, count: int, conv: nn.Conv2d) -> None:
    """Raises `ConfigError` where the images are fewer than what has to be estimated of them."""
    size = patch_size(conv)
    if count < size:
        raise ConfigError(
            f"{key}: whitening needs as many training images as a patch has numbers, for patches of one image are "
            f"alike: expected at least {describe_patch(conv)} = {size}, received {count}"
        )


def _batches(images: Images, data: TrainingData) -> Iterator[Tensor]:
    """The images as the network sees them, without augmentation."""
    tensors = data.normalization.tensors(torch.device("cpu"))
    for x_NCHW in images.chunks():
        for part_NCHW in x_NCHW.split(BATCH):
            yield normalized(part_NCHW, *tensors)
