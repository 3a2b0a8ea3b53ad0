"""`data.preprocess=pretrained`: images as the weights of the network expect them, in the numbers of other keys."""

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

from cnnlab.blocks.timm_networks import timm_config
from cnnlab.blocks.torchvision_networks import pretrained_weights, starts_pretrained
from cnnlab.data import SOURCES
from cnnlab.data.normalization import of_channels
from cnnlab.data.settings import PRETRAINED
from cnnlab.runtime.errors import ArgumentError, ConfigError

KEY = "data.preprocess"
RESIZED = ("size", "resize", "resize_size", "interpolation")  # arguments of a source that brings images to a size


def resolve_preprocess(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values under `data` that stand for `data.preprocess=pretrained`; none where the config has no such word.

    Resizing, centre crop, mean and standard deviation are those of torchvision's `weights.transforms()` or timm's
    `pretrained_cfg`. Raises `ConfigError`.
    """
    data, model = config.get("data"), config.get("model")
    if not isinstance(data, Mapping) or not isinstance(model, Mapping) or data.get("preprocess") != PRETRAINED:
        return {}
    networks = list(_networks(model.get("blocks"), "model.blocks"))
    if len(networks) != 1:
        raise ConfigError(
            f"{KEY}: {PRETRAINED} is for one network of torchvision or timm, as in model=resnet18 or "
            f"model=timm/resnet18.a1_in1k; the model has {len(networks) or 'none'}"
        )
    (network,) = networks
    mean, std, how = _of_timm(*network) if network[1]["type"] == "timm" else _of_torchvision(*network)
    channels = data.get("channels", 3)
    normalize = {"mean": [*of_channels(mean, channels)], "std": [*of_channels(std, channels)]}
    _check_source(data.get("type"), normalize)
    return {"preprocess": None, **how, "normalize": normalize}


def _networks(blocks: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The specs of libraries' networks with their keys, in nested blocks too."""
    if isinstance(blocks, Mapping):
        if blocks.get("type") in ("torchvision", "timm") and isinstance(blocks.get("name"), str):
            yield key, blocks
        for name, inner in blocks.items():
            yield from _networks(inner, f"{key}.{name}")


def _of_torchvision(key: str, spec: Mapping[str, Any]) -> tuple[list[float], list[float], dict[str, Any]]:
    weights, pretrained = spec.get("weights"), spec.get("pretrained", False)
    try:
        if not starts_pretrained(weights, pretrained):
            raise ConfigError(f"{KEY}: {PRETRAINED} needs the weights: expected {key}.pretrained=true beside it")
        expects = pretrained_weights(spec["name"], weights).transforms()
    except (ArgumentError, ValueError) as error:  # the network's own complaint says it, too
        raise ConfigError(f"{key}.{error}") from error
    (size,), (resize_size,) = expects.crop_size, expects.resize_size
    how = {"size": size, "resize": "crop", "resize_size": resize_size, "interpolation": expects.interpolation.value}
    return expects.mean, expects.std, how


def _of_timm(key: str, spec: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...], dict[str, Any]]:
    try:
        config = timm_config(spec["name"])
    except ArgumentError as error:
        raise ConfigError(f"{key}.{error}") from error
    height, width = config.input_size[1:]
    resize = {"center": "crop", "squash": "squash"}.get(config.crop_mode)
    if height != width or resize is None:
        raise ConfigError(
            f"{KEY}: {spec['name']} was trained on images of {height}×{width} with crop_mode {config.crop_mode}: "
            f"expected a square, cropped or squashed; give data.size and data.resize yourself"
        )
    how = {
        "size": height,
        "resize": resize,
        "resize_size": math.floor(height / config.crop_pct),  # as timm's `transforms_imagenet_eval` rounds it
        "interpolation": config.interpolation,
    }
    return config.mean, config.std, how


def _check_source(source: Any, normalize: Mapping[str, Any]) -> None:
    """One of our own sources has to bring its images to a size; a user's class is bound to its arguments later."""
    factory = SOURCES.get(source)
    if factory is not None and not set(RESIZED) <= set(inspect.signature(factory).parameters):
        raise ConfigError(
            f"{KEY}: the images of {source} have one size: expected data=image_folder, or the mean and sd alone: "
            f"'data.normalize={{mean: {normalize['mean']}, std: {normalize['std']}}}'"
        )
