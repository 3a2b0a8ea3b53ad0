"""Perceptrons, sigmoid neurons, and why a cost that is smooth."""

import math
from itertools import pairwise
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from torch import Tensor, nn

import cnnlab
from cnnlab.blocks import BLOCKS
from cnnlab.config.saved_config import resolved
from cnnlab.data.digits import Digits
from cnnlab.data.logic_gates import TABLES, LogicGates
from cnnlab.engine.step import count_correct
from cnnlab.losses import LOSSES
from cnnlab.network import build_network
from laboratory.shown import Shown, accuracy
from laboratory.updates import gradients, update

QUADRATIC, CROSS_ENTROPY = LOSSES["quadratic"](), LOSSES["bce"](sum_classes=True)
POINT: dict[str, Any] = {"marker": "o", "linestyle": "", "color": "black", "ms": 9}  # a row of a truth table
IMAGE, WANTED = torch.ones(1, 1, 1, 1), torch.zeros(1, 1)  # Nielsen, chapter 3: input 1, desired output 0


def rows_of(gate: str) -> tuple[Tensor, Tensor]:
    """The inputs (4, 1, 1, 2) and outputs (4,) of a truth table."""
    rows = LogicGates(gate).read("train")
    return rows.x_NCHW / 255, rows.y_N


def correct_rows(network: nn.Module, gate: str) -> int:
    x_NCHW, y_N = rows_of(gate)
    return int((network(x_NCHW).argmax(1) == y_N).sum())


def nand() -> nn.Sequential:
    """One neuron with weights −2, −2 and bias 3."""
    given = {"type": "given", "weight": [[-2, -2]], "bias": [3]}
    blocks = {"flatten": "flatten", "nand": {"type": "linear", "out_features": 1, "init": given}, "step": "step"}
    return build_network((1, 1, 2), blocks)


def learns(model: dict[str, Any], gate: str) -> bool:
    """Whether a perceptron gets all four rows right within 25 passes."""
    network = build_network((1, 1, 2), model["blocks"], classes=2, init=model["init"])
    x_NCHW, y_N = rows_of(gate)
    for _ in range(25):
        for row in range(4):
            update(network, QUADRATIC, x_NCHW[row : row + 1], y_N[row : row + 1], lr=0.5)
        if correct_rows(network, gate) == 4:
            return True
    return False


def perceptron() -> Shown:
    shown = Shown()
    learned = shown.train("perceptron", "experiment=perceptron")
    failed = shown.train("perceptron_xor", "experiment=perceptron", "data.gate=xor")
    given = shown.train("xor_of_nands", "experiment=xor_of_nands")
    answers = [int(answer) for answer in nand()(rows_of("nand")[0]).flatten()]
    shown.claim("w = (−2, −2), b = 3, for 00, 01, 10, 11", [1, 1, 1, 0], answers)
    shown.claim("a perceptron that learned NAND: rows right", 4, round(4 * accuracy(learned)))
    best = round(4 * accuracy(failed))
    shown.claim("one that should learn XOR", "at most 3", best, best <= 3)
    shown.claim("XOR of four NANDs with given weights", 4, round(4 * accuracy(given)))
    model = resolved(cnnlab.compose("experiment=perceptron"))["model"]
    separable = [gate for gate in TABLES if learns(model, gate)]
    shown.claim("of 16 two-input functions, those that one perceptron learns", 14, len(separable))
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for axis, path, gate, title in (
        (axes[0], learned, "nand", "NAND, learned"),
        (axes[1], failed, "xor", "XOR, one perceptron"),
        (axes[2], given, "xor", "XOR, four NANDs"),
    ):
        grid = torch.linspace(-0.25, 1.25, 151)
        x_NCHW = torch.cartesian_prod(grid, grid)[:, None, None].flip(3)
        answer = cnnlab.load(path).network(x_NCHW).argmax(1).reshape(151, 151).numpy()
        axis.imshow(answer, extent=(-0.25, 1.25, -0.25, 1.25), origin="lower", cmap="Blues", vmin=0, vmax=2)
        inputs, outputs = rows_of(gate)
        for (a, b), wanted in zip(inputs.flatten(1).tolist(), outputs.tolist(), strict=True):
            axis.plot(a, b, **POINT, mfc="black" if wanted else "white")
        axis.set(title=title, xlabel="first input", xticks=[0, 1], yticks=[0, 1])
    axes[0].set_ylabel("second input")
    blues = colormaps["Blues"]
    legend = [
        Line2D([], [], **POINT, mfc="black", label="should be 1"),
        Line2D([], [], **POINT, mfc="white", label="should be 0"),
        Patch(facecolor=blues(0.5), edgecolor="0.5", label="the network answers 1"),
        Patch(facecolor=blues(0.0), edgecolor="0.5", label="it answers 0"),
    ]
    figure.legend(handles=legend, loc="outside lower center", ncols=2)
    shown.draw(
        "lines",
        figure,
        "What three networks answer to two inputs: for NAND a straight line separates the outputs; one perceptron gets "
        "XOR wrong; four NANDs in layers separate it.",
    )
    return shown


def sigmoid() -> Shown:
    shown = Shown(["make notes ARGS=sigmoid"])
    step, smooth = BLOCKS["step"](), BLOCKS["sigmoid"]()
    away = torch.cat((torch.linspace(-5, -0.1, 50), torch.linspace(0.1, 5, 50))).double()
    for c in (1, 10, 100):
        gap = (smooth(c * away) - step(away)).abs().max().item()
        expected = 1 / (1 + math.exp(0.1 * c))
        shown.claim(f"largest distance of σ({c}·z) from the step, |z| ≥ 0.1", f"{expected:.3g}", f"{gap:.3g}",
                    math.isclose(gap, expected, rel_tol=1e-6))  # fmt: skip
    blocks = {"flatten": "flatten", "neuron": {"type": "linear", "out_features": 3}, "step": "step"}
    network = build_network((1, 4, 4), blocks, init="book_large")
    x_NCHW = torch.randn(100, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    found = gradients(network, QUADRATIC, x_NCHW, torch.zeros(100, dtype=torch.int64))
    largest = max(gradient.abs().max().item() for gradient in found.values())
    shown.claim("the largest gradient before a step, of 51 weights and biases", 0.0, largest)
    z = torch.linspace(-5, 5, 401)
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(z, step(z), color="black", linestyle="-", lw=1, label="step")
    for c in (1, 3, 10):
        axes.plot(z, smooth(c * z), label=f"σ({c}·z)" if c > 1 else "σ(z)")
    axes.set(xlabel="z = w·x + b", ylabel="output", title="the larger the weights, the closer to a step")
    axes.legend(loc="upper left")
    shown.draw(
        "curves", figure, "The step function and σ(z), σ(3·z), σ(10·z): S-shaped curves, ever closer to the step."
    )
    return shown


def neuron(weight: float, bias: float, *, sigmoid: bool = True) -> nn.Sequential:
    """One neuron with one input."""
    start = {"type": "given", "weight": weight, "bias": bias}
    blocks: dict[str, Any] = {"flatten": "flatten", "z": {"type": "linear", "out_features": 1, "init": start}}
    return build_network((1, 1, 1), blocks | ({"a": "sigmoid"} if sigmoid else {}))


def outputs(weight: float, bias: float, *, cross_entropy: bool = False) -> list[float]:
    """Of a sigmoid neuron before each of 300 updates with η = 0.15, and after the last."""
    network, loss = neuron(weight, bias, sigmoid=not cross_entropy), CROSS_ENTROPY if cross_entropy else QUADRATIC
    found = []
    for update_ in range(301):
        output = network(IMAGE)
        found.append((output.sigmoid() if cross_entropy else output).item())
        if update_ < 300:
            update(network, loss, IMAGE, WANTED, lr=0.15)
    return found


def quadratic_cost() -> Shown:
    shown = Shown(["make notes ARGS=quadratic_cost"])
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    starts = ((0.6, 0.9, "0.82 → 0.09", 6.7), (2.0, 2.0, "0.98 → 0.20", 56.6))
    for axis, (weight, bias, published, ratio) in zip(axes, starts, strict=True):
        found = outputs(weight, bias)
        shown.claim(f"start w = {weight}, b = {bias}: output over 300 steps, η = 0.15", published,
                    f"{found[0]:.2f} → {found[-1]:.2f}")  # fmt: skip
        if weight == 2.0:
            shown.claim("the first step with an output below 0.5", 232, next(n for n, a in enumerate(found) if a < 0.5))
        by_quadratic = gradients(neuron(weight, bias), QUADRATIC, IMAGE, WANTED)["z.weight"].item()
        logits = neuron(weight, bias, sigmoid=False)
        by_entropy = gradients(logits, CROSS_ENTROPY, IMAGE, WANTED)["z.weight"].item()
        shown.claim("cross-entropy's first gradient, of the quadratic cost's: 1/σ′(z)", ratio,
                    round(by_entropy / by_quadratic, 1))  # fmt: skip
        axis.plot(found, label="quadratic cost")
        axis.plot(outputs(weight, bias, cross_entropy=True), label="cross-entropy")
        axis.set(title=f"start w = {weight}, b = {bias}", xlabel="step (η = 0.15)", ylim=(0, 1))
    axes[0].set_ylabel("output; 0 is wanted")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    shown.draw(
        "learning",
        figure,
        "A neuron's output over 300 steps: under cross-entropy it falls at once; under the quadratic cost slowly, and "
        "from a start near 1 hardly at all for 150 steps.",
    )
    return shown


def digits(count: int) -> tuple[Tensor, Tensor]:
    """The first UCI digits, in [0, 1] and float64."""
    read = Digits().read("train")
    return read.x_NCHW[:count].double() / 255, read.y_N[:count]


def sigmoid_network() -> nn.Sequential:
    """64 inputs, 30 hidden sigmoid neurons, 10 outputs, in float64."""
    torch.manual_seed(0)
    blocks = {
        "flatten": "flatten",
        "hidden": {"type": "linear", "out_features": 30},
        "a1": "sigmoid",
        "output": {"type": "linear", "out_features": 10},
        "a2": "sigmoid",
    }
    return build_network((1, 8, 8), blocks, init="book_small").double()


@torch.no_grad()
def nudged(by: float, trials: int = 200) -> tuple[int, int]:
    """In how many trials a nudge to one weight moves the cost of 500 digits, and the number of correct predictions."""
    network, (x_NCHW, y_N) = sigmoid_network(), digits(500)
    weights = [p for p in network.parameters() if p.dim() == 2]
    output_NK = network(x_NCHW)
    cost, correct = QUADRATIC(output_NK, y_N).item(), count_correct(output_NK, y_N).item()
    generator = torch.Generator().manual_seed(1)
    costs_moved = counts_moved = 0
    for trial in range(trials):
        weight = weights[trial % 2].view(-1)
        place = int(torch.randint(len(weight), (), generator=generator))
        while trial % 2 == 0 and not x_NCHW.flatten(1)[:, place % 64].any():  # a pixel that is black in every image
            place = int(torch.randint(len(weight), (), generator=generator))
        before = weight[place].item()
        weight[place] += by
        output_NK = network(x_NCHW)
        costs_moved += QUADRATIC(output_NK, y_N).item() != cost
        counts_moved += count_correct(output_NK, y_N).item() != correct
        weight[place] = before
    return costs_moved, counts_moved


@torch.no_grad()
def why_a_cost() -> Shown:
    shown = Shown(["make notes ARGS=why_a_cost"])
    costs_moved, counts_moved = nudged(1e-6)
    shown.claim("nudges of 1e-6 to one weight that move the cost, of 200", 200, costs_moved)
    shown.claim("and the number of correct predictions", "under 1 %", counts_moved, counts_moved < 2)
    network, (x_NCHW, y_N) = sigmoid_network(), digits(500)
    with torch.enable_grad():
        for _ in range(300):
            update(network, QUADRATIC, x_NCHW, y_N, lr=1.0)
    weight = network.output.weight
    place, start = (3, 7), weight[3, 7].item()
    nudges = torch.linspace(-0.5, 0.5, 201).double()
    costs, counts = [], []
    for nudge in nudges:
        weight[place] = start + nudge
        output_NK = network(x_NCHW)
        costs.append(QUADRATIC(output_NK, y_N).item())
        counts.append(count_correct(output_NK, y_N).item())
    flat = sum(a == b for a, b in pairwise(counts))
    shown.claim(
        "of 200 steps along one weight, those that change the cost", 200, sum(a != b for a, b in pairwise(costs))
    )
    shown.claim("those that leave the number of correct predictions as it is", "> 100", flat, flat > 100)
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    left = figure.add_subplot()
    right = left.twinx()
    left.plot(nudges, costs, label="cost (left scale)")
    right.step(nudges, counts, color="C1", linestyle="-", where="mid", label="correct predictions (right scale)")
    left.set(
        xlabel="nudge to one weight of the output layer",
        ylabel="quadratic cost",
        title="the cost changes smoothly, the number of correct ones in jumps",
    )
    right.yaxis.get_major_locator().set_params(integer=True)
    right.set_ylabel("correct predictions of 500")
    figure.legend(loc="outside lower center", ncols=2)
    shown.draw(
        "nudges",
        figure,
        "As one weight is nudged, the cost follows a smooth curve, while the number of correct predictions stays and "
        "jumps.",
    )
    return shown
