"""Filters, stride, padding, and how far a unit sees."""

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

import cnnlab
from cnnlab.data.drawing import edge
from cnnlab.data.shapes import SHAPES, Shapes
from cnnlab.network import LayerRow, build_network, plan_network
from cnnlab.runtime.errors import Complaints
from cnnlab.visualization.tiles import tiles_figure
from laboratory.neurons import digits
from laboratory.shown import Shown, accuracy

VERTICAL = [[-1, 0, 1], [-1, 0, 1], [-1, 0, 1]]  # dark on the left, bright on the right
LAPLACE = [[0, 1, 0], [1, -4, 1], [0, 1, 0]]  # sums to 0
CONV = {"type": "conv", "out_channels": 20, "kernel_size": 5}


def filtering(kernel: Any, shape: tuple[int, int, int], **arguments: Any) -> nn.Sequential:
    """One convolution of given weights, 3×3 if `arguments` don't say otherwise."""
    given = {"type": "given", "weight": kernel}
    return build_network(
        shape, {"conv": {"type": "conv", "out_channels": 1, "kernel_size": 3, "init": given} | arguments}
    )


def rows_of(shape: tuple[int, ...], **blocks: Any) -> list[LayerRow]:
    """The layer table of these blocks."""
    plan = plan_network(shape, blocks, Complaints())
    assert plan is not None
    return plan.rows


def planted(x: float, angle: float = 0.0) -> Tensor:
    """(1, 1, 28, 28), black before the edge through (x, x) and white after it."""
    return edge(torch.tensor([[x, x]]), torch.tensor([angle]), (28, 28))[:, None]


def cp20_cp40(pool: str) -> dict[str, Any]:
    """The blocks of two convolutions, each followed by 2×2 pooling."""
    window = {"type": pool, "kernel_size": 2}
    return {"conv1": CONV, "pool1": window, "conv2": CONV | {"out_channels": 40}, "pool2": window}


@torch.no_grad()
def planted_filter() -> Shown:
    shown = Shown(["make notes ARGS=planted_filter"])
    network = filtering(VERTICAL, (1, 28, 28))
    for column in (3, 14, 24):
        response_HW = network(planted(column + 0.5))[0, 0]
        peaks = ", ".join(str(peak + 1) for peak in response_HW.argmax(1).unique().tolist())
        shown.claim(
            f"an edge in column {column}: where each row of the map has its peak", f"column {column}", f"column {peaks}"
        )
    shown.claim("its height, 3 rows of 1 − 0", 3.0, response_HW.max().item())
    across = network(planted(14.5, angle=torch.pi / 2)).abs().max().item()
    shown.claim("the strongest answer to an edge across", "< 1e-5", f"{across:.1g}", across < 1e-5)
    images = Shapes(28, 400, 8, (1, 3), 0.0, 0).read("train")
    response_NHW = network(images.x_NCHW / 255)[:, 0]
    strongest_N = response_NHW.abs().amax((1, 2))
    means = {name: strongest_N[images.y_N == label].mean().item() for label, name in enumerate(SHAPES)}
    ratio = means["vertical_edge"] / means["horizontal_edge"]
    shown.claim("drawn vertical edges against horizontal ones, strongest answer", "> 2 ×", f"{ratio:.1f} ×", ratio > 2)
    first = [int((images.y_N == label).nonzero()[0]) for label in range(len(SHAPES))]
    drawn_THW = torch.cat((images.x_NCHW[first, 0] / 255, planted(14.5)[0]))
    answers_THW = torch.cat((response_NHW[first], network(planted(14.5))[0]))
    names = [*(name.replace("_", " ") for name in SHAPES), "edge, column 14"]
    shown.draw(
        "shapes",
        tiles_figure(drawn_THW, "drawn shapes, and an edge planted in column 14", names, columns=5, label="brightness"),
        "Nine small images: an edge, a line, a corner and a curve of each kind, and a vertical edge in column 14.",
    )
    shown.draw(
        "answers",
        tiles_figure(
            answers_THW,
            "what a filter for vertical edges answers to each",
            names,
            signed=True,
            columns=5,
            label="response",
        ),
        "The responses to these images: strong along vertical edges and lines, nearly none to a horizontal edge.",
    )
    return shown


@torch.no_grad()
def frozen_filter() -> Shown:
    """The filter of `planted_filter` in a network that trains around it."""
    shown = Shown()
    path = shown.train(
        "planted",
        "data=shapes",
        "data.noise=0",
        "model.blocks.conv1.out_channels=1",
        f"model.blocks.conv1.init={{type: given, weight: {VERTICAL}}}",
        "model.freeze=[conv1]",
        "trainer.epochs=3",
    )
    conv = cnnlab.load(path).network.conv1
    kept = conv.weight[0, 0].tolist()
    shown.claim("the filter's weights after the training", VERTICAL, kept)
    images = Shapes(28, 4000, 1000, (1, 3), 0.0, 0).read("test")
    x_NHW = images.x_NCHW[:, 0].float()
    brighter_N = x_NHW[:, :, -4:].mean((1, 2)) - x_NHW[:, :, :4].mean((1, 2))
    vertical_N = images.y_N == list(SHAPES).index("vertical_edge")
    number = int((vertical_N * brighter_N).argmax())  # dark on the left
    steepest = (x_NHW[number, 14, 2:] - x_NHW[number, 14, :-2]).argmax().item() + 1
    peak = conv(images.x_NCHW[number : number + 1].float())[0, 0, 14].argmax().item()
    shown.claim(f"image {number}: where its middle row rises most, and the map's peak there", steepest, peak)
    shown.evaluate(path, "layers=[conv1]", f"index={number}")
    shown.draw(
        "maps",
        newest(path, "maps-conv1-*.png"),
        "An image, black on the left and white on the right, and the filter's response: a red line along the edge.",
    )
    return shown


def learned_filters() -> Shown:
    shown = Shown()
    path = shown.train("shapes", "data=shapes", "model.blocks.conv1.kernel_size=7", "trainer.epochs=6")
    shown.evaluate(path, "layers=[conv1,relu2]")
    found = accuracy(path)
    shown.claim("accuracy on 1,000 new drawings, 8 classes", "> 97 %", f"{100 * found:.1f} %", found > 0.97)
    for kind, alt in {
        "filters-conv1": "The learned 7×7 filters of the first convolution, several of them with a positive and a "
        "negative side.",
        "maps-conv1": "An image of a vertical edge and the responses of the learned filters: some follow the edge, "
        "others the bright side.",
        "maximised-relu2": "For each channel after the second convolution the image that it responds to most: many "
        "show stripes.",
    }.items():
        shown.draw(kind, newest(path, f"{kind}-*.png"), alt)
    return shown


def newest(path: Path, pattern: str) -> Path:
    """An image that an evaluation drew."""
    return max((path / "figures").glob(pattern), key=lambda file: file.stat().st_mtime)


def weight_sharing() -> Shown:
    shown = Shown()
    output = "output: {type: linear, out_features: classes}"
    for first in (
        "conv: {type: conv, out_channels: 20, kernel_size: 5}, flatten: flatten",
        "flatten: flatten, dense: {type: linear, out_features: 11520}",
    ):
        shown.table("data=mnist", "model=none", f"model.blocks={{{first}, {output}}}")
    (shared,) = rows_of((1, 28, 28), conv=CONV)
    dense = rows_of((1, 28, 28), flatten="flatten", dense={"type": "linear", "out_features": 20 * 24 * 24})[-1]
    shown.claim("parameters of 20 filters of 5×5", f"{20 * (5 * 5 + 1):,}", f"{shared.parameters:,}")
    shown.claim("of a dense layer with as many outputs", f"{785 * 20 * 24 * 24:,}", f"{dense.parameters:,}")
    return shown


@torch.no_grad()
def stride() -> Shown:
    shown = Shown(["make notes ARGS=stride"])
    images = Shapes(28, 8, 8, (2, 2), 0.0, 0).read("train")
    curve = images.x_NCHW[images.y_N == list(SHAPES).index("curve")][:1] / 255
    figure = Figure(figsize=(6.4, 1.9), layout="constrained")
    axes = figure.subplots(1, 4)
    axes[0].imshow(curve[0, 0].numpy(), cmap="gray")
    axes[0].set_title("image: 28×28", loc="left", fontsize=10)
    axes[0].set(xticks=[], yticks=[])
    for step in (1, 2, 3):
        (row,) = rows_of((1, 7, 7), conv={"type": "conv", "out_channels": 1, "kernel_size": 3, "stride": step})
        size = (7 - 3) / step + 1
        expected = f"{int(size)}×{int(size)}" + ("" if size == int(size) else ", drops 1 row, 1 column")
        found = "×".join(map(str, row.output_shape[1:])) + (f", {row.remark}" if row.remark else "")
        shown.claim(f"7×7 under a 3×3 kernel, stride {step}: (7 − 3)/{step} + 1 = {size:.3g}", expected, found)
        map_HW = filtering(VERTICAL, (1, 28, 28), stride=step)(curve)[0, 0].numpy()
        side = map_HW.shape[0]
        drawn = axes[step].imshow(map_HW, cmap="RdBu_r", vmin=-3, vmax=3, extent=(0, side, side, 0))
        axes[step].add_patch(Rectangle((0, 0), side, side, fill=False, color="0.5", clip_on=False))
        axes[step].set_title(f"stride {step}: {side}×{side}", loc="left", fontsize=10)
        axes[step].set(xlim=(0, 28), ylim=(28, 0))
        axes[step].set_axis_off()
    figure.colorbar(drawn, ax=axes, label="response")
    shown.draw("maps", figure, "An image of a curve and its feature maps with stride 1, 2 and 3, each smaller.")
    return shown


@torch.no_grad()
def padding() -> Shown:
    shown = Shown(["make notes ARGS=padding"])
    image = digits(1)[0].float()
    bordered, names = [image[0, 0]], ["image"]
    for mode, value in (("zeros", None), ("constant", 0.5), ("reflect", None), ("replicate", None), ("circular", None)):
        border = {"padding": 3, "padding_mode": mode} | ({} if value is None else {"padding_value": value})
        copy = filtering(1, tuple(image.shape[1:]), kernel_size=1, **border)  # type: ignore[arg-type]
        bordered.append(copy(image)[0, 0])
        names.append(mode if value is None else f"{mode} {value:g}")
    same = filtering(LAPLACE, (1, 6, 6), padding="same")(torch.rand(1, 1, 6, 6)).shape[2:]
    shown.claim("6×6 under a 3×3 kernel with padding 1", "6×6", "×".join(map(str, same)))
    for value, zero in ((0.75, True), (0.0, False)):
        border = {"padding": 1, "padding_mode": "constant", "padding_value": value}
        response_HW = filtering(LAPLACE, (1, 6, 6), **border)(torch.full((1, 1, 6, 6), 0.75))[0, 0]
        rim = torch.cat((response_HW[0], response_HW[-1], response_HW[1:-1, 0], response_HW[1:-1, -1]))
        inner = response_HW[1:-1, 1:-1].count_nonzero().item()
        shown.claim(
            f"an image that is 0.75 throughout, padded with {value:g}: places where a filter of sum 0 answers",
            "0 within, " + ("0 at the rim" if zero else "20 at the rim"),
            f"{inner} within, {rim.count_nonzero().item()} at the rim",
        )
    side = max(map_HW.shape[0] for map_HW in bordered)
    framed = torch.full((len(bordered), side, side), float("nan"))
    for place, map_HW in enumerate(bordered):
        start = (side - map_HW.shape[0]) // 2
        framed[place, start : start + map_HW.shape[0], start : start + map_HW.shape[1]] = map_HW
    shown.draw(
        "borders",
        tiles_figure(framed, "three pixels of padding, by padding_mode", names, columns=3, label="brightness"),
        "A digit 0 without padding, and with borders of zeros, of grey, of its reflection, of its outermost pixels "
        "repeated, and of its opposite side.",
    )
    return shown


def receptive_field() -> Shown:
    shown = Shown()
    shown.table("data=mnist", "experiment=book/c6-conv2")
    reached, names = [], []
    rows = rows_of((1, 28, 28), **cp20_cp40("max_pool"))
    for layers, (row, field) in enumerate(zip(rows, (5, 6, 14, 16), strict=True), 1):
        shown.claim(f"field of {row.path} in the layer table", f"{field}×{field}", row.receptive_field)
        blocks = dict(list(cp20_cp40("avg_pool").items())[:layers])  # a mean cuts no path off
        network = build_network((1, 28, 28), blocks, init={"type": "given", "weight": 1}).double()
        x_NCHW = torch.zeros(1, 1, 28, 28, dtype=torch.float64, requires_grad=True)
        network(x_NCHW)[0, 0, 1, 1].backward()
        assert x_NCHW.grad is not None
        touched = x_NCHW.grad[0, 0] != 0
        height, width = int(touched.any(1).sum()), int(touched.any(0).sum())
        shown.claim("pixels that the gradient of one of its units reaches", f"{field}×{field}", f"{height}×{width}")
        reached.append(x_NCHW.grad[0, 0] / x_NCHW.grad.max())
        names.append(f"{row.path}: {field}×{field}")
    shown.draw(
        "reach",
        tiles_figure(
            torch.stack(reached),
            "the gradient of one unit of each layer with respect to the 28×28 image",
            names,
            label="gradient / largest",
        ),
        "The pixels that one unit depends on, in white on black: a larger square after each of the four layers.",
    )
    return shown
