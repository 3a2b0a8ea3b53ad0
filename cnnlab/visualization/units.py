"""The layers of a network as they are called, what excites their channels, and what their absence does."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.blocks.receptive_field import Reach, ReceptiveField

BATCH = 256
WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


@dataclass(frozen=True)
class Called:
    """A module that is called once for an image, and the shape of its output without the batch."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]


@torch.no_grad()
def called_layers(network: nn.Module, model: nn.Module, x_NCHW: Tensor) -> list[Called]:
    """The modules below `network` in the order in which they return; `model`, which takes images, calls it.

    Only those that return maps (N, C, H, W) or features (N, F), and are called once.
    """
    calls: list[tuple[str, nn.Module, Any]] = []
    hooks = [
        module.register_forward_hook(lambda module, _, output, name=name: calls.append((name, module, output)))
        for name, module in network.named_modules()
        if name
    ]
    try:
        model(x_NCHW)
    finally:
        for hook in hooks:
            hook.remove()
    times = [name for name, _, _ in calls]
    return [
        Called(name, module, tuple(output.shape[1:]))
        for name, module, output in calls
        if times.count(name) == 1
        and isinstance(output, Tensor)
        and output.dim() in (2, 4)
        and len(output) == len(x_NCHW)
    ]


def cam_layer(layers: Sequence[Called]) -> Called | None:
    """Where Grad-CAM looks: the last output at the size of the last convolution's maps; None without any.

    A map of one place is none.
    """
    chosen: Called | None = None
    for layer in layers:
        if isinstance(layer.module, nn.Conv2d) and _has_places(layer):
            chosen, open_ = layer, True
        elif chosen and open_ and layer.shape[1:] == chosen.shape[1:]:
            chosen = layer
        else:
            open_ = False
    return chosen


def _has_places(layer: Called) -> bool:
    return len(layer.shape) == 3 and layer.shape[1] * layer.shape[2] > 1


def stages(layers: Sequence[Called], most: int) -> list[Called]:
    """The channels of each layer with weights as the next such layer sees them, after norm, activation and pooling.

    Of many the first, the last and those evenly between them. The network's output is none.
    """
    found: list[Called] = []
    current: Called | None = None
    for layer in layers:
        if isinstance(layer.module, WEIGHTED):
            found += [current] if current else []
            current = layer
        elif current and _keeps_channels(current, layer):
            current = layer
        elif current:
            found.append(current)
            current = None
    if current and current.name != layers[-1].name:
        found.append(current)
    places = sorted({round(place * (len(found) - 1) / max(1, most - 1)) for place in range(most)}) if found else []
    return [found[place] for place in places]


def _keeps_channels(before: Called, layer: Called) -> bool:
    """True for a layer without layers of its own that changes neither channels nor, from many to one, places."""
    alike = len(layer.shape) == len(before.shape) and layer.shape[0] == before.shape[0]
    return alike and _has_places(layer) == _has_places(before) and not [*layer.module.children()]


def field_box(field: ReceptiveField, row: int, column: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(top, left, bottom, right), inclusive pixels that the unit at this place sees within an image (H, W)."""
    top, bottom = _seen(field.rows, row, size[0])
    left, right = _seen(field.columns, column, size[1])
    return top, left, bottom, right


def _seen(reach: Reach, unit: int, size: int) -> tuple[int, int]:
    if reach.whole:
        return 0, size - 1
    first, last = reach.first + unit * reach.jump, reach.last + unit * reach.jump
    return min(max(first, 0), size - 1), max(min(last, size - 1), 0)


@dataclass(frozen=True)
class Exciting:
    """For each channel the images that excite it most, (C, most): their rows, largest activations and places."""

    row_CM: Tensor
    value_CM: Tensor
    place_CM: Tensor  # in the flattened map; 0 for features


@torch.no_grad()
def exciting(model: nn.Module, layer: nn.Module, batches: Iterable[Tensor], most: int) -> Exciting:
    """Each image counts once, by the largest value of its map; of equal images the earlier comes first."""
    values, places = [], []
    for x_NCHW in batches:
        with outputs_of(layer) as outputs:
            model(x_NCHW)
        value_NC, place_NC = outputs[0].float().flatten(2).max(2) if outputs[0].dim() == 4 else _features(outputs[0])
        values.append(value_NC.cpu())
        places.append(place_NC.cpu())
    value_CN, place_CN = torch.cat(values).T, torch.cat(places).T
    row_CM = value_CN.argsort(dim=1, descending=True, stable=True)[:, :most]
    return Exciting(row_CM, value_CN.gather(1, row_CM), place_CN.gather(1, row_CM))


def _features(output_NF: Tensor) -> tuple[Tensor, Tensor]:
    return output_NF.float(), torch.zeros_like(output_NF, dtype=torch.int64)


@contextmanager
def outputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what the layer returns, before a later layer may work in place on it."""
    outputs: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, arguments, output: outputs.append(output.detach().clone()))
    try:
        yield outputs
    finally:
        hook.remove()


@contextmanager
def silenced_channel(layer: nn.Module, channel: int) -> Iterator[None]:
    """The layer's channel, or feature, is 0 for every image."""

    def silence(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        silent = output.clone()
        silent[:, channel] = 0
        return silent

    hook = layer.register_forward_hook(silence)
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def ablation(
    model: nn.Module, layer: nn.Module, channels: int, x_NCHW: Tensor, target_N: Tensor, classes: int
) -> tuple[Tensor, Tensor]:
    """The accuracy on each class as it is, (K,), and without each of the first channels, (channels, K).

    NaN for a class without images.
    """
    whole_K = _accuracy(model, x_NCHW, target_N, classes)
    each = []
    for channel in range(channels):
        with silenced_channel(layer, channel):
            each.append(_accuracy(model, x_NCHW, target_N, classes))
    return whole_K, torch.stack(each)


def _accuracy(model: nn.Module, x_NCHW: Tensor, target_N: Tensor, classes: int) -> Tensor:
    predicted_N = torch.cat([model(batch_NCHW).argmax(1).cpu() for batch_NCHW in x_NCHW.split(BATCH)])
    counts_K = torch.bincount(target_N, minlength=classes)
    return torch.bincount(target_N[predicted_N == target_N], minlength=classes) / counts_K
