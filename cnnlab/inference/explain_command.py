"""`python evaluate.py run=RUN explain=true`: what a network looks at, what its channels do, where it fails."""

import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from cnnlab.blocks.receptive_field import WHOLE, Field
from cnnlab.data.source import Images
from cnnlab.inference.layer_figures import Drawing
from cnnlab.inference.predictor import Predictor
from cnnlab.inference.projector import write_projector
from cnnlab.inference.reporting import Predictions
from cnnlab.inference.saved_run import SavedRun
from cnnlab.losses import probabilities
from cnnlab.metrics import BINS, calibration_bins, calibration_error
from cnnlab.runtime.errors import ConfigError
from cnnlab.runtime.repeatable import Repeatable
from cnnlab.runtime.terminal import print_wrapped, printable, waiting
from cnnlab.visualization.attribution import grad_cam, integrated_gradients, occlusion
from cnnlab.visualization.embedding import features, neighbours, principal_components
from cnnlab.visualization.explained import (
    Box,
    Row,
    ablation_figure,
    attribution_figure,
    boundary_figure,
    boxes_figure,
    reliability_figure,
    scatter_figure,
)
from cnnlab.visualization.responses import grey_noise, maximise
from cnnlab.visualization.tiles import images_figure
from cnnlab.visualization.units import (
    BATCH,
    Called,
    ablation,
    called_layers,
    cam_layer,
    exciting,
    field_box,
    stages,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "explain"
MOST_LAYERS = 3  # by default
MOST_MISTAKES = 24
MOST_EXPLAINED = 5  # mistakes, and as many correct predictions, that are attributed to pixels
MOST_EXCITING = 8  # images of a channel
MOST_CHANNELS = 8  # of a layer in the figures of images
MOST_SILENCED = 64  # of a layer
MOST_ROWS = 24  # of the figure of ablations
MOST_CLASSES = 20  # named in a figure
MOST_POINTS = 2000
MOST_ABLATED = 1000  # images
MOST_SEARCHED = 10_000  # images, for the most exciting
# MACs of one part, about 20 s of two CPU cores: a bound that chooses the same images on each machine
BUDGET = 400_000_000_000
FEWEST = 32  # images, whatever the network costs
PASSES = 300  # of an image that is attributed: about 120 windows, and 50 forward and backward passes
BACKWARD = 3  # passes: forward, and backward twice as long
STEPS = 192  # of the ascent to an image that maximises a channel
GRID = 128  # values of each pixel where a boundary is drawn
LETTERS = 15  # of a class's name
PATH_LETTERS = 16  # of the end of a path


class NotApplicableError(Exception):
    """A part that this network or these data do not have; its text says why."""


@dataclass(frozen=True)
class Explanation:
    """A run's network, a split of its data and the predictions for it, in the order of the split."""

    run: SavedRun
    predictor: Predictor
    images: Images
    split: str
    predictions: Predictions
    paths: Sequence[str] | None
    wanted: Sequence[str]  # layers by name; none for a choice of them

    @cached_property
    def model(self) -> Repeatable:
        """Takes images of 0…255."""
        return Repeatable(self.predictor)

    @cached_property
    def layers(self) -> list[Called]:
        return called_layers(self.predictor.network, self.model, self.shown(torch.tensor([0])))

    @cached_property
    def studied(self) -> list[Called]:
        if not self.wanted:
            return stages(self.layers, MOST_LAYERS)
        return [layer for layer in self.layers if layer.name in self.wanted]

    @cached_property
    def macs(self) -> int:
        return max(1, sum(row.macs for row in self.run.plan.network.rows))

    @cached_property
    def ablations(self) -> dict[str, Tensor]:
        """Of each studied layer, (channels, K): what each channel's absence changes in the accuracy on each class."""
        plan = self.run.plan
        found = {}
        for layer in self.studied:
            channels = min(layer.shape[0], self.within(MOST_SILENCED, FEWEST * len(self.studied), 4))
            rows = self.ablated(channels)
            target_N = self.predictions.target_N[rows]
            x_NCHW = self.shown(rows)
            whole_K, without_CK = ablation(self.model, layer.module, channels, x_NCHW, target_N, plan.spec.classes)
            found[layer.name] = without_CK - whole_K
        return found

    def ablated(self, channels: int) -> Tensor:
        """Rows of the images that are predicted without each of so many channels."""
        return self.some(self.within(MOST_ABLATED, channels * len(self.studied), FEWEST))

    @cached_property
    def mistakes(self) -> Tensor:
        """Rows of the wrongly predicted images, the largest loss first."""
        wrong = (self.predictions.predicted != self.predictions.target_N).nonzero()[:, 0]
        loss_N = self.predictions.loss_N[wrong].nan_to_num(nan=torch.inf)
        return wrong[loss_N.argsort(descending=True, stable=True)]

    @cached_property
    def baseline_C(self) -> Tensor:  # noqa: N802 — its shape is part of the name
        """The colour that stands for nothing: the median of each channel over some images."""
        x_NCHW = self.images.select(self.some(256)).x_NCHW
        values_C = x_NCHW.float().transpose(0, 1).flatten(1).median(1).values
        return values_C.to(self.device)

    @property
    def device(self) -> torch.device:
        return self.predictor.shift_C11.device

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image."""
        _, height, width = self.run.plan.spec.input_shape
        return height, width

    def within(self, most: int, passes: int, fewest: int) -> int:
        """How many of what takes so many passes of an image each: what the budget allows, between fewest and most."""
        return min(most, max(fewest, BUDGET // (self.macs * passes)))

    def some(self, count: int) -> Tensor:
        """Rows of so many images, evenly over the split."""
        total = len(self.images)
        return torch.arange(min(count, total)) * total // min(count, total)

    def shown(self, rows: Tensor) -> Tensor:
        """(N, C, H, W) of 0…255 on the network's device."""
        return self.images.select(rows).x_NCHW.to(self.device)

    def batches(self, rows: Tensor) -> Iterator[Tensor]:
        for part in rows.split(BATCH):
            yield self.shown(part)

    def name(self, k: int) -> str:
        """A class, shortened for a caption."""
        return _short(self.run.plan.spec.class_names[k], LETTERS)

    def where(self, row: int) -> str:
        """An image's path, its end, or its index."""
        index = int(self.predictions.index_N[row])
        if self.paths is None:
            return f"image {index}"
        path = self.paths[index]
        return path if len(path) <= PATH_LETTERS else f"…{path[1 - PATH_LETTERS :]}"

    def predicted(self, row: int) -> str:
        """The prediction, as long as its probability leaves room, and that."""
        predicted = int(self.predictions.predicted[row])
        name = _short(self.run.plan.spec.class_names[predicted], LETTERS - 5)
        return f"{name} ({100 * float(self.predictions.probability_NK[row, predicted]):.0f} %)"

    def verdict(self, row: int) -> str:
        """Label → prediction, in two lines."""
        return f"{self.name(int(self.predictions.target_N[row]))} →\n{self.predicted(row)}"


Part = Callable[[Explanation], Iterator[tuple[str, "Figure", str]]]  # name of the figure, figure, line of the terminal


def check_explain(request: Mapping[str, Any]) -> bool:
    """Whether an explanation is wanted. Raises `ConfigError` where it cannot be had."""
    wanted = request["explain"]
    if not isinstance(wanted, bool):
        raise ConfigError(f"explain: expected true or false, received {wanted!r}")
    for key, unset in (("images", None), ("export", []), ("compare", []), ("tta", "none")):
        if wanted and request[key] not in (unset, None):
            raise ConfigError(f"explain: expected it without {key}, received {key}={request[key]} beside it")
    if wanted and importlib.util.find_spec("captum") is None:
        raise ConfigError("explain: it needs Captum: pip install 'cnnlab[explain]'")
    return wanted


def explain(explanation: Explanation) -> Iterator[Drawing]:
    """Every figure of every part, with a line in the terminal for each part."""
    tail = f"{explanation.split}-{explanation.run.checkpoint.folder.name}"
    for title, part in PARTS.items():
        started, lines = time.perf_counter(), []
        try:
            with waiting(f"explaining: {title}"):
                for name, figure, line in part(explanation):
                    lines.append(line)
                    tag = f"{FOLDER}/{name}/{explanation.split}"
                    yield Drawing(f"{FOLDER}/{name}-{tail}.png", tag, figure)
        except NotApplicableError as reason:
            lines = [f"not drawn: {reason}"]
        said = "; ".join(filter(None, lines))
        print_wrapped(f"{title + ':':<22} {printable(said)} ({time.perf_counter() - started:.1f} s)", flush=True)


def _mistakes(e: Explanation) -> Iterator[tuple[str, "Figure", str]]:
    if not len(e.mistakes):
        raise NotApplicableError(f"no mistakes on {len(e.images):,} images")
    rows = e.mistakes[:MOST_MISTAKES].tolist()
    captions = [f"{e.verdict(row)}\n{e.where(row)}" for row in rows]
    title = (
        f"The {len(rows)} of {len(e.mistakes):,} mistakes with the largest loss, {e.split} split\n"
        "label → prediction with its probability"
    )
    figure = images_figure(e.images.select(torch.tensor(rows)).x_NCHW, title, captions)
    worst = f"{e.where(rows[0])}: {e.verdict(rows[0])}".replace("\n", " ")
    yield "worst-mistakes", figure, f"{len(e.mistakes):,} of {len(e.images):,} images, the worst {worst}"


def _attributions(e: Explanation) -> Iterator[tuple[str, "Figure", str]]:
    layer = cam_layer(e.layers)
    correct = (e.predictions.predicted == e.predictions.target_N).nonzero()[:, 0]
    count = e.within(MOST_EXPLAINED, 3 * PASSES, 1)  # mistakes are explained for two classes
    window = _window(e.size)
    notes = [f"Grad-CAM of {layer.name}" if layer else "no Grad-CAM: the network has no convolution with places left"]
    notes.append(f"occlusion by {window[0]}×{window[1]} pixels")
    names = ["Grad-CAM"] * bool(layer) + ["occlusion", "integrated\ngradients"]
    wrong = e.mistakes[:count]
    if len(wrong):
        predicted, label = e.predictions.predicted[wrong], e.predictions.target_N[wrong]
        for_predicted, for_label = _maps(e, layer, wrong, predicted, window), _maps(e, layer, wrong, label, window)
        rows = [
            Row(
                e.images.select(wrong[i : i + 1]).x_NCHW[0],
                f"{e.where(row)}\n{e.verdict(row)}",
                [*(m[i] for m in for_predicted), *(m[i] for m in for_label)],
            )
            for i, row in enumerate(wrong.tolist())
        ]
        columns = [f"{name}:\n{what}" for what in ("prediction", "label") for name in names]
        title = f"What speaks for the wrong prediction, and what for the label ({e.split} split)\n{'; '.join(notes)}"
        yield "why-mistakes", attribution_figure(rows, columns, title), f"{len(rows)} mistakes"
    chosen = _one_of_each_class(correct, e.predictions.target_N, count)
    if len(chosen):
        maps = _maps(e, layer, chosen, e.predictions.predicted[chosen], window)
        rows = [
            Row(
                e.images.select(chosen[i : i + 1]).x_NCHW[0],
                f"{e.where(row)}\n{e.predicted(row)}",
                [m[i] for m in maps],
            )
            for i, row in enumerate(chosen.tolist())
        ]
        title = f"What speaks for the correct prediction ({e.split} split)\n" + "\n".join(notes)
        yield (
            "why-correct",
            attribution_figure(rows, names, title),
            f"{len(rows)} correct predictions; {'; '.join(notes)}",
        )


def _window(size: tuple[int, int]) -> tuple[int, int]:
    """About a sixth of the image's shorter side, at least two pixels where there are so many."""
    side = max(2, round(min(size) / 6))
    return min(side, size[0]), min(side, size[1])


def _maps(e: Explanation, layer: Called | None, rows: Tensor, class_N: Tensor, window: tuple[int, int]) -> list[Tensor]:
    x_NCHW, class_N = e.shown(rows), class_N.to(e.device)
    maps = [grad_cam(e.model, layer.module, x_NCHW, class_N)] if layer else []
    return [
        *maps,
        occlusion(e.model, x_NCHW, class_N, e.baseline_C, window),
        integrated_gradients(e.model, x_NCHW, class_N, e.baseline_C),
    ]


def _one_of_each_class(rows: Tensor, target_N: Tensor, count: int) -> Tensor:
    """The first row of each class, of so many classes evenly over those that there are."""
    firsts = [int(rows[target_N[rows] == k][0]) for k in target_N[rows].unique()]
    count = min(count, len(firsts))
    return torch.tensor([firsts[i * len(firsts) // count] for i in range(count)], dtype=torch.int64)


def _exciting(e: Explanation) -> Iterator[tuple[str, "Figure", str]]:
    _expect_studied(e)
    rows = e.some(e.within(MOST_SEARCHED, len(e.studied), FEWEST))
    for layer in e.studied:
        found = exciting(e.model, layer.module, e.batches(rows), MOST_EXCITING)
        field = _field(e, layer)
        drawn = []
        for channel in _important(e, layer):
            chosen = rows[found.row_CM[channel]]
            boxes = [_box(e, layer, field, int(place)) for place in found.place_CM[channel]]
            labels = [e.name(int(e.predictions.target_N[row])) for row in chosen.tolist()]
            values = found.value_CM[channel].tolist()
            below = [f"{value:.2g}\n{label}" for value, label in zip(values, labels, strict=True)]
            drawn.append((f"channel\n{channel}", list(e.images.select(chosen).x_NCHW), boxes, below))
        what = "channel" if len(layer.shape) == 3 else "unit"
        boxed = f"; box: the {field} pixels that the {what} sees there" if field and field != WHOLE else ""
        title = (
            f"{layer.name}: the images that excite a {what} most (of {len(rows):,}, {e.split} split)\n"
            f"below each: its largest activation, and the image's label{boxed}"
        )
        yield f"exciting-{layer.name}", boxes_figure(drawn, title), layer.name


def _expect_studied(e: Explanation) -> None:
    if not e.studied:
        raise NotApplicableError("no layer before the output returns maps or features")


def _field(e: Explanation, layer: Called) -> Field:
    rows = [row for row in e.run.plan.network.rows if row.path == layer.name]
    return rows[0].field if rows and len(layer.shape) == 3 else None


def _box(e: Explanation, layer: Called, field: Field, place: int) -> Box | None:
    if field is None or field == WHOLE:
        return None
    return field_box(field, *divmod(place, layer.shape[2]), e.size)


def _important(e: Explanation, layer: Called) -> list[int]:
    """The channels whose absence lowers the accuracy of some class most."""
    change_CK = e.ablations[layer.name]
    worst_C = change_CK.nan_to_num(nan=0).amin(1)
    return worst_C.argsort(stable=True)[:MOST_CHANNELS].tolist()


def _ablations(e: Explanation) -> Iterator[tuple[str, "Figure", str]]:
    _expect_studied(e)
    names = e.run.plan.spec.class_names
    for layer in e.studied:
        change_CK = 100 * e.ablations[layer.name]
        order = change_CK.nan_to_num(nan=0).amin(1).argsort(stable=True)[:MOST_ROWS]
        shown_K = torch.arange(len(names))
        if len(names) > MOST_CLASSES:
            damage_K = change_CK.nan_to_num(nan=0).abs().amax(0)
            shown_K = damage_K.argsort(descending=True, stable=True)[:MOST_CLASSES].sort().values
        images = len(e.ablated(len(change_CK)))
        notes = [f"{images:,} images of the {e.split} split"]
        if len(order) < layer.shape[0]:
            tried = f"the first {len(change_CK)}" if len(change_CK) < layer.shape[0] else f"{layer.shape[0]}"
            notes.append(f"the {len(order)} that matter most of {tried} channels")
        if len(shown_K) < len(names):
            notes.append(f"the {len(shown_K)} most affected of {len(names):,} classes")
        title = f"{layer.name}: what each class loses without a channel\n({', '.join(notes)})"
        figure = ablation_figure(
            change_CK[order][:, shown_K].numpy(),
            [str(c) for c in order.tolist()],
            [e.name(int(k)) for k in shown_K],
            title,
        )
        channel, k = int(order[0]), int(change_CK[order[0]].nan_to_num(nan=0).argmin())
        worst = f"{layer.name} without channel {channel}: {e.name(k)} {float(change_CK[channel, k]):+.0f} points"
        yield f"ablation-{layer.name}", figure, worst


def _embedding(e: Explanation) -> Iterator[tuple[str, "Figure", str]]:
    rows = e.some(e.within(MOST_POINTS, 1, FEWEST))
    last = _last_linear(e)
    feature_NF = features(e.model, last.module if last else None, e.batches(rows))
    if len(rows) < 4 or not feature_NF.isfinite().all():
        raise NotApplicableError("it takes four images or more, and finite features")
    target_N = e.predictions.target_N[rows].numpy()
    names = e.run.plan.spec.class_names
    labels, counts = np.unique(target_N, return_counts=True)
    most = sorted(labels[np.argsort(-counts, kind="stable")[:MOST_CLASSES]].tolist())
    named = {int(k): e.name(int(k)) for k in most}
    cut = f", {len(named)} of {len(names):,} classes in colour" if len(labels) > len(named) else ""
    what = f"what reaches {last.name} ({feature_NF.shape[1]} features)" if last else "the network's outputs"
    of = f"{what}\n{len(rows):,} images of the {e.split} split{cut}"
    place_NR, (first, second) = principal_components(feature_NF)
    axes = tuple(
        f"principal component {i} ({100 * part:.0f} % of the variance)" for i, part in ((1, first), (2, second))
    )
    yield "embedding-pca", scatter_figure(place_NR[:, :2], target_N, named, (axes[0], axes[1]), f"PCA of {of}"), "PCA"
    place_N2 = neighbours(place_NR)
    title = f"t-SNE of {of}; near points are alike to the network"
    yield (
        "embedding-tsne",
        scatter_figure(place_N2, target_N, named, ("t-SNE 1", "t-SNE 2"), title),
        "t-SNE; TensorBoard's projector",
    )
    predicted = [names[int(k)] for k in e.predictions.predicted[rows]]
    columns = {
        "label": [names[int(k)] for k in target_N],
        "prediction": predicted,
        "image": [_path_of(e, row) for row in rows.tolist()],
    }
    write_projector(e.run.directory, feature_NF, columns, e.images.select(rows).x_NCHW)


def _path_of(e: Explanation, row: int) -> str:
    index = int(e.predictions.index_N[row])
    return str(index) if e.paths is None else e.paths[index]


def _last_linear(e: Explanation) -> Called | None:
    """The linear layer that makes the network's outputs."""
    linear = [layer for layer in e.layers if isinstance(layer.module, nn.Linear)]
    classes = e.run.plan.spec.classes
    return linear[-1] if linear and linear[-1].shape == (classes,) else None


def _reliability(e: Explanation) -> Iterator[tuple[str, "Figure", str]]:
    confidence_N = e.predictions.probability_NK.amax(1)
    correct_N = e.predictions.predicted == e.predictions.target_N
    error = calibration_error(confidence_N, correct_N)
    title = (
        f"Is the network as sure as it is right? {len(e.images):,} images, {e.split} split\n"
        f"expected calibration error {100 * error:.2f} %"
    )
    figure = reliability_figure(calibration_bins(confidence_N, correct_N), BINS, title)
    yield "reliability", figure, f"expected calibration error {error:.4f}"


def _maximised(e: Explanation) -> Iterator[tuple[str, "Figure", str]]:
    _expect_studied(e)
    shorter = min(e.size)
    start_CHW = grey_noise(e.run.plan.spec.input_shape).to(e.device)
    for layer in e.studied:
        passes = BACKWARD * len(e.studied)
        channels = _important(e, layer)[: e.within(MOST_CHANNELS, STEPS * passes, 1)]
        steps = e.within(STEPS, len(channels) * passes, FEWEST)
        found = maximise(
            e.model,
            layer.module,
            start_CHW,
            len(channels),
            steps=steps,
            jitter=max(1, round(shorter / 16)) if shorter > 4 else 0,
            blur=shorter / 28 if shorter > 4 else 0.0,
            chosen=channels,
        )
        captions = [f"channel {channel}\n{value:.3g}" for channel, value in zip(channels, found.value_U, strict=True)]
        title = (
            f"{layer.name}: images made to excite the channels that matter most\n"
            "above each: the channel and its mean activation, reached by ascent with jitter and blur"
        )
        yield f"made-for-{layer.name}", images_figure(found.x_UCHW, title, captions), layer.name


def _boundary(e: Explanation) -> Iterator[tuple[str, "Figure", str]]:
    shape = e.run.plan.spec.input_shape
    if math.prod(shape) != 2:
        raise NotApplicableError(f"the data have {math.prod(shape):,} dimensions, not two")
    grid_G = torch.linspace(0, 255, GRID)
    second_GG, first_GG = torch.meshgrid(grid_G, grid_G, indexing="ij")
    x_NCHW = torch.stack((first_GG.flatten(), second_GG.flatten()), 1).reshape(-1, *shape)
    with torch.no_grad():
        output_NK = torch.cat([e.model(part.to(e.device)).cpu() for part in x_NCHW.split(BATCH)])
    probability_NK = probabilities(e.run.plan.loss.cpu(), output_NK)
    rows = e.some(MOST_POINTS)
    figure = boundary_figure(
        output_NK.argmax(1).reshape(GRID, GRID).numpy(),
        probability_NK.amax(1).reshape(GRID, GRID).numpy(),
        grid_G.numpy(),
        e.images.select(rows).x_NCHW.flatten(1).numpy(),
        e.predictions.target_N[rows].numpy(),
        [e.name(k) for k in range(e.run.plan.spec.classes)],
        "The predicted class for each pair of pixels; stronger colour: surer",
    )
    yield "boundary", figure, "the predicted class for each pair of pixels"


def _short(name: str, letters: int) -> str:
    name = printable(name)
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


PARTS: Mapping[str, Part] = {
    "worst mistakes": _mistakes,
    "why": _attributions,
    "ablation": _ablations,
    "exciting images": _exciting,
    "embedding": _embedding,
    "reliability": _reliability,
    "made images": _maximised,
    "decision boundary": _boundary,
}
