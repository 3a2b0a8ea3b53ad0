"""The classification networks of torchvision, each by its name."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cnnlab.runtime.checks import integer
from cnnlab.runtime.errors import ArgumentError, did_you_mean, listing

FILES = (".pth", ".pt", ".safetensors")  # what a file of weights is called
# without the outputs of auxiliary heads, and initialised as published, without a warning
_OPTIONS: dict[str, dict[str, Any]] = {
    "inception_v3": {"aux_logits": False, "init_weights": True},
    "googlenet": {"aux_logits": False, "init_weights": True},
}


def torchvision_network(
    name: str,
    num_classes: int | None = None,
    weights: str | None = None,
    pretrained: bool | str = False,
    **options: Any,
) -> nn.Module:
    """torchvision's network `name`: (N, 3, H, W) → (N, num_classes), or 1000 where `num_classes` is not given.

    Grey images are expanded to 3 equal channels. `weights` names pretrained ones, such as `IMAGENET1K_V1` or `DEFAULT`,
    which are loaded when a run starts; `pretrained` is true for `DEFAULT`, or a file of the network's weights: .pth,
    .pt or .safetensors. `options` go to torchvision's builder, such as `dropout` or `stochastic_depth_prob`. Raises
    `ArgumentError`.
    """
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise ArgumentError(
            "name",
            f"torchvision has no classification network {name!r};{did_you_mean(name, names)} "
            f"expected one of its {len(names)}, such as resnet18",
        )
    if starts_pretrained(weights, pretrained):
        pretrained_weights(name, weights)
    arguments = _OPTIONS.get(name, {}) | options
    if num_classes is not None:
        arguments["num_classes"] = integer("num_classes", num_classes, 1)
    if starts_pretrained(weights, pretrained) and name in _OPTIONS:
        arguments.setdefault("transform_input", True)  # they were trained on images of another scale
    network = _build(name, arguments, options)
    network.register_forward_pre_hook(_three_channels)
    return network


def starts_pretrained(weights: str | None, pretrained: bool | str) -> bool:
    """True if a network starts from trained weights. Raises `ArgumentError` for two of them."""
    if not isinstance(pretrained, bool) and not str(pretrained).endswith(FILES):
        raise ArgumentError("pretrained", f"expected true, false or a file ({listing(FILES)}), received {pretrained!r}")
    if weights is not None and pretrained:
        raise ArgumentError("pretrained", f"expected one of weights and pretrained, received weights={weights} as well")
    return weights is not None or bool(pretrained)


def pretrained_weights(name: str, weights: str | None) -> Any:
    """Torchvision's entry for these weights, by default `DEFAULT`. Raises `ArgumentError` with the available ones."""
    from torchvision import models

    weights = weights or "DEFAULT"
    legal = models.get_model_weights(name).__members__
    if weights not in legal:
        raise ArgumentError(
            "weights",
            f"{name} has no weights {weights!r};{did_you_mean(weights, legal)} expected null, {listing(legal)}",
        )
    return legal[weights]


def _build(name: str, arguments: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    from torchvision import models

    # RegNets compute their widths with tensors, which have no values while a network is planned on the meta device
    widths: AbstractContextManager[object] = _NumbersOnCpu() if name.startswith("regnet") else nullcontext()
    with widths, unknown_option_refused(f"torchvision's {name}", options, ("name", "num_classes", "weights")):
        network = models.get_model(name, weights=None, **arguments)
    assert isinstance(network, nn.Module)
    return network


@contextmanager
def unknown_option_refused(network: str, options: Iterable[str], legal: Sequence[str]) -> Iterator[None]:
    """A library's `TypeError` for one of the `options` as an `ArgumentError` with the nearest `legal` name."""
    try:
        yield
    except TypeError as error:
        unknown = next((option for option in options if f"unexpected keyword argument {option!r}" in str(error)), None)
        if unknown is None:
            raise
        message = f"{network} has no argument {unknown!r};{did_you_mean(unknown, legal)}".rstrip(";")
        raise ArgumentError(unknown, message) from error


class _NumbersOnCpu(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.arange, torch.tensor):
            kwargs = {"device": "cpu"} | kwargs
        return func(*args, **kwargs)


def _three_channels(network: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Expands grey images to 3 channels. Raises `ValueError` for images of neither 1 nor 3 channels."""
    (x_NCHW,) = inputs
    if x_NCHW.dim() != 4:
        raise ValueError("expected an image, received features")
    if x_NCHW.shape[1] not in (1, 3):
        raise ValueError(f"expected an image of 1 channel (grey) or 3, received {x_NCHW.shape[1]} channels")
    return (x_NCHW.expand(-1, 3, -1, -1),)
