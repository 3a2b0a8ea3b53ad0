"""The networks of timm, each by its name; the package is imported where one is used."""

import importlib.util
import inspect
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.blocks.facts import Shape
from cnnlab.blocks.torchvision_networks import unknown_option_refused
from cnnlab.runtime.checks import integer
from cnnlab.runtime.errors import ArgumentError, did_you_mean, listing

# what the data or `pretrained` decide, or what makes something else than a classifier on the run's device
_WITHHELD = ("in_chans", "img_size", "features_only", "device", "dtype", "pretrained_model_args")

_COMMON = ("name", "num_classes", "pretrained", "drop_rate", "drop_path_rate", "global_pool")  # a typo is near one


def timm_network(
    name: str,
    input_shape: Shape,
    num_classes: int | None = None,
    pretrained: bool | str = False,
    **options: Any,
) -> nn.Module:
    """timm's network `name`: (N, C, H, W) → (N, num_classes), or its weights' classes where `num_classes` is not given.

    The name may have a tag for its weights, as in `convnext_tiny.fb_in1k`; it is looked up in timm's registry and
    nowhere else. `input_shape` (C, H, W) is its `in_chans`, and its `img_size` where the architecture is for one size.
    With `pretrained` it starts from the name's weights, or from a file of them, .safetensors or .pth, that it names;
    they are read when a run starts. `options` go to timm's builder, such as `drop_rate` or `drop_path_rate`. Raises
    `ArgumentError`.
    """
    config = timm_config(name)
    if pretrained is True and not config.has_weights:
        raise ArgumentError("pretrained", f"timm has no weights for {name}; expected {_known_tags(name)}, or false")
    return _create(name, input_shape, num_classes, options)


def timm_config(name: str) -> Any:
    """timm's `PretrainedCfg` of a name of its registry. Raises `ArgumentError` with the nearest name."""
    if importlib.util.find_spec("timm") is None:
        raise ArgumentError("name", f"model=timm/{name} needs timm: pip install 'cnnlab[timm]'")
    import timm

    architectures = _names()
    architecture, _, tag = name.partition(".")
    if architecture in architectures and (not tag or name in _names(tagged=True)):
        return timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    if architecture in architectures:
        raise ArgumentError("name", f"timm's {architecture} has no weights {tag!r}; expected {_known_tags(name)}")
    raise ArgumentError(
        "name",
        f"timm has no network {name!r};{did_you_mean(architecture, architectures)} "
        f"expected one of its {len(architectures):,}, such as resnet50 or resnet50.a1_in1k",
    )


def timm_weights(
    name: str, input_shape: Shape, num_classes: int | None = None, pretrained: bool | str = True, **options: Any
) -> tuple[dict[str, Tensor], str]:
    """The pretrained tensors of a `timm_network` by its own names, and where they come from.

    timm reads them as data alone (`weights_only`), from the Hugging Face hub's cache or downloaded into it, and fits
    them to the channels and the size of the images. Those of a head for another number of classes are left out. Raises
    `ArgumentError`.
    """
    config = timm_config(name)
    if isinstance(pretrained, str) and not Path(pretrained).is_file():
        raise ArgumentError(
            "pretrained", f"expected true, false or a file of weights, received {pretrained!r}: no such file"
        )
    file = {"file": pretrained} if isinstance(pretrained, str) else None
    with torch.random.fork_rng(devices=[]):
        network = _create(name, input_shape, None, options, pretrained=True, pretrained_cfg_overlay=file)
    state = network.state_dict()
    if num_classes not in (None, config.num_classes):
        classifiers = [config.classifier] if isinstance(config.classifier, str) else config.classifier or ()
        state = {key: tensor for key, tensor in state.items() if key.rpartition(".")[0] not in classifiers}
    return state, str(pretrained) if file else f"timm's {config.hf_hub_id or config.url}"


def _create(name: str, input_shape: Shape, num_classes: int | None, options: dict[str, Any], **how: Any) -> nn.Module:
    import timm

    withheld = {*inspect.signature(timm.create_model).parameters, *_WITHHELD} - {"kwargs"}
    for option in options:
        if option in withheld:
            raise ArgumentError(option, "expected no such argument: 'pretrained', the data and the device decide it")
    if len(input_shape) != 3:
        raise ValueError("expected an image, received features")
    arguments = {"in_chans": input_shape[0], **options}
    if num_classes is not None:
        arguments["num_classes"] = integer("num_classes", num_classes, 0)
    if timm_config(name).fixed_input_size:
        arguments["img_size"] = tuple(input_shape[1:])
    with unknown_option_refused(f"timm's {name}", options, _COMMON):
        network = timm.create_model(name, **how, **arguments)
    assert isinstance(network, nn.Module)
    return network


@cache
def _names(*, tagged: bool = False) -> frozenset[str]:
    import timm

    return frozenset(timm.list_models(include_tags=tagged))


def _known_tags(name: str) -> str:
    architecture = name.partition(".")[0]
    return listing(sorted(known for known in _names(tagged=True) if known.startswith(f"{architecture}.")))
