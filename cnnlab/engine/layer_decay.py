"""Layer-wise decay of the learning rate: the nearer a layer is to the input, the less it moves (arXiv 1801.06146)."""

from collections.abc import Iterator

from torch import nn

from cnnlab.blocks.normalization import NORMS

NETWORKS = ("torchvision", "timm")  # packages whose networks are one block here, and are decayed by their own blocks


def layer_scales(network: nn.Module, layer_decay: float) -> dict[str, float]:
    """Parameter's name → layer_decayⁿ for the layer that is followed by n others with parameters.

    A layer is one of `model.blocks`, of a whole network of torchvision's or timm's a block of its own. A norm belongs
    to the layer before it.
    """
    layers: list[list[str]] = []
    for name, layer in _layers(network):
        parameters = [f"{name}.{inner}" for inner, _ in layer.named_parameters()]
        if isinstance(layer, NORMS) and layers:
            layers[-1] += parameters
        elif parameters:
            layers.append(parameters)
    followers = {name: len(layers) - 1 - index for index, names in enumerate(layers) for name in names}
    first = len(layers) - 1  # for what belongs to no layer, such as a class token: it joins the input
    return {name: layer_decay ** followers.get(name, first) for name, _ in network.named_parameters()}


def _layers(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """In order; plain sequentials within a whole network are looked into."""
    for name, child in network.named_children():
        whole = not prefix and type(child).__module__.partition(".")[0] in NETWORKS
        if whole or type(child) is nn.Sequential:
            yield from _layers(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child
