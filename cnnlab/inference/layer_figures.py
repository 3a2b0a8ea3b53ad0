"""`python evaluate.py run=RUN layers=[conv1]`: a layer's filters, its response to an image, what maximises it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cnnlab.data.source import Images
from cnnlab.inference.predictor import Predictor
from cnnlab.inference.saved_run import SavedRun
from cnnlab.runtime.checks import integer
from cnnlab.runtime.errors import ArgumentError, ConfigError, did_you_mean, listing
from cnnlab.visualization.responses import grey_noise, maximise, response, unit_means
from cnnlab.visualization.tiles import filters_figure, images_figure, maps_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_UNITS = 64  # of a layer that are drawn
MOST_NAMES = 20  # of layers in a message
MOST_LETTERS = 16  # of a class's name in a caption


@dataclass(frozen=True)
class Drawing:
    """A figure, its file's name in `figures/` and its tag in TensorBoard."""

    file: str
    tag: str
    figure: "Figure"


@dataclass(frozen=True)
class Wanted:
    """What a command requests: layers by name, and the image's index in its split."""

    layers: tuple[str, ...]
    index: int

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> "Wanted":
        """From the keys `layers` and `index`. Raises `ConfigError`."""
        names = _names(request["layers"])
        index = integer("index", request["index"], 0)
        if names and request["images"] is not None:
            raise ConfigError(
                f"layers: their input is an image of a split: expected layers without images, received "
                f"images={request['images']}"
            )
        if index and not names:
            raise ConfigError(
                f"index: it selects the input of layers: expected layers=[…] beside it, received {index} alone"
            )
        return cls(names, index)


@dataclass(frozen=True)
class Study:
    """Layers of a run's network, an image of a split, and their responses to it."""

    run: SavedRun
    predictor: Predictor
    responses: dict[str, Tensor]  # by the layer's name, (1, C, H, W) or (1, F)
    x_1CHW: Tensor
    caption: str  # of the image
    file: str  # the same in a file's name

    @classmethod
    def of(cls, run: SavedRun, predictor: Predictor, wanted: Wanted, images: Images, split: str) -> "Study":
        """Raises `ConfigError` for an unknown layer, an index beyond the split, and a layer that cannot be drawn."""
        if wanted.layers and wanted.index >= len(images):
            raise ConfigError(
                f"index: expected a whole number from 0 to {len(images) - 1}, the images of the {split} split, "
                f"received {wanted.index}"
            )
        chosen = images.select(torch.tensor([wanted.index]))
        label = run.plan.spec.class_names[int(chosen.y_N)]
        x_1CHW = chosen.x_NCHW.to(predictor.shift_C11.device)
        responses = {name: _response(predictor, name, x_1CHW) for name in wanted.layers}
        caption = f"image {wanted.index} of the {split} split, labelled {label!r}"
        return cls(run, predictor, responses, x_1CHW, caption, f"{split}-{wanted.index}")

    def draw(self) -> Iterator[Drawing]:
        """Every figure of every layer."""
        step = self.run.checkpoint.folder.name
        for name, output in self.responses.items():
            layer = self.predictor.network.get_submodule(name)
            if isinstance(layer, nn.Conv2d):
                yield Drawing(f"filters-{name}-{step}.png", f"filters/{name}", self._filters(name, layer))
            if output.dim() == 4:
                title = (
                    f"{name}{_cut(output)}: response to {self.caption}\n"
                    "above each map: its channel and largest value, and the row and column of that"
                )
                figure = maps_figure(self.x_1CHW[0], output[0, :MOST_UNITS], title)
                yield Drawing(f"maps-{name}-{self.file}-{step}.png", f"maps/{name}/{self.file}", figure)
            yield Drawing(f"maximised-{name}-{step}.png", f"maximised/{name}", self._maximised(name, layer, output))

    def _filters(self, name: str, layer: nn.Conv2d) -> "Figure":
        weight_OIHW = layer.weight.detach()[:MOST_UNITS]
        first = next(module for module in self.predictor.network.modules() if isinstance(module, nn.Conv2d))
        read = weight_OIHW.shape[1]
        colour = layer is first and read == self.x_1CHW.shape[1] == 3
        note = f", mean over the {read} channels that each reads" if read > 1 else ""
        note = ", in the colours that each reads: 0 is grey" if colour else note
        return filters_figure(weight_OIHW, f"{name}: filters{_cut(layer.weight[None])}{note}", colour=colour)

    def _maximised(self, name: str, layer: nn.Module, output: Tensor) -> "Figure":
        units = min(output.shape[1], MOST_UNITS)
        start_CHW = grey_noise(tuple(self.x_1CHW.shape[1:])).to(self.x_1CHW.device)
        found = maximise(self.predictor, layer, start_CHW, units)
        values = zip(self._units(layer, units), found.value_U.tolist(), unit_means(output)[0].tolist(), strict=False)
        captions = [f"{unit}\n{most + 0.0:.3g} ({here + 0.0:.3g})" for unit, most, here in values]
        maximised, value = ("channel's mean", "mean") if output.dim() == 4 else ("unit", "value")
        title = (
            f"{name}{_cut(output)}: images that maximise each {maximised}\n"
            f"above each: that {value} (and that of {self.caption})"
        )
        return images_figure(found.x_UCHW, title, captions)

    def _units(self, layer: nn.Module, count: int) -> list[str]:
        """Names of a layer's units: the classes for the network's outputs, numbers for others."""
        names = self.run.plan.spec.class_names
        *_, last = self.predictor.network.children()
        numbers = range(count)
        if layer is not last or self.run.plan.network.output_shape != (len(names),):
            return [str(number) for number in numbers]
        return [name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…" for name in names[:count]]


def check_layers(network: nn.Module, tabled: Sequence[str], wanted: Wanted) -> None:
    """Raises `ConfigError` for a name that no layer has; `tabled` are the names in the layer table."""
    legal = [name for name, _ in network.named_modules() if name]
    for name in wanted.layers:
        if name not in legal:
            more = f", … ({len(tabled) - MOST_NAMES} more in model.txt)" if len(tabled) > MOST_NAMES else ""
            raise ConfigError(
                f"layers: expected some of {listing(tabled[:MOST_NAMES])}{more}, received {name!r};"
                f"{did_you_mean(name, legal)}".rstrip(";")
            )


def _names(given: Any) -> tuple[str, ...]:
    """One name or a list of them, each once; YAML takes a name of digits for a number."""
    names = given if isinstance(given, list) else [given]
    if not all(isinstance(name, str | int) and not isinstance(name, bool) for name in names):
        raise ConfigError(f"layers: expected a list of layers' names such as [conv1, conv2], received {given!r}")
    return tuple(dict.fromkeys(map(str, names)))


def _response(predictor: Predictor, name: str, x_1CHW: Tensor) -> Tensor:
    try:
        return response(predictor, predictor.network.get_submodule(name), x_1CHW)
    except ArgumentError as error:
        raise ConfigError(f"layers: {name}: {error.message}") from error


def _cut(output: Tensor) -> str:
    """The number of channels drawn, if not all are."""
    count = output.shape[1]
    return f" (the first {MOST_UNITS} of {count:,})" if count > MOST_UNITS else ""
