"""ReLU, max pooling and dropout."""

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from cnnlab.data.shapes import Shapes
from cnnlab.network import build_network
from cnnlab.visualization.tiles import tiles_figure
from laboratory.convolution import CONV, VERTICAL, rows_of
from laboratory.shown import Shown, lines_of

POOL = {"type": "max_pool", "kernel_size": 2}


def images(count: int, size: int = 28) -> Tensor:
    """(count, 1, size, size) of noise in [0, 1]."""
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(1))


def built(**blocks: Any) -> nn.Sequential:
    """A network of these blocks for 28×28, its weights drawn with seed 0."""
    torch.manual_seed(0)
    return build_network((1, 28, 28), blocks, init="book_conv")


def relu() -> Shown:
    shown = Shown()
    path = shown.train("watched_outputs", "trainer.watch_every=20", "trainer.epochs=6")
    network = built(conv=CONV, relu="relu")
    z_NCHW = network.conv(images(50)).detach().requires_grad_()
    a_NCHW = network.relu(z_NCHW)
    a_NCHW.sum().backward()
    assert z_NCHW.grad is not None
    below = (z_NCHW <= 0).double().mean().item()
    silent, flat = ((x == 0).double().mean().item() for x in (a_NCHW, z_NCHW.grad))
    shown.claim("fraction of z ≤ 0, and of outputs that are 0", f"{100 * below:.2f} %", f"{100 * silent:.2f} %")
    shown.claim("fraction of z whose gradient is 0", f"{100 * below:.2f} %", f"{100 * flat:.2f} %")
    figure = Figure(figsize=(6.4, 5), layout="constrained")
    axes = figure.subplot_mosaic("ab;cc")
    grid = torch.linspace(-3, 3, 121)
    axes["a"].plot(grid, network.relu(grid))
    axes["a"].set(xlabel="z", ylabel="output", xlim=(-3, 3), title="ReLU: max(0, z)")
    edges = torch.linspace(-3, 3, 61)
    for values, label in ((z_NCHW[z_NCHW <= 0], "z ≤ 0, silent"), (z_NCHW[z_NCHW > 0], "z > 0, passed on")):
        axes["b"].hist(values.detach(), edges, label=label)
    axes["b"].set(xlabel="z", ylabel="outputs", xlim=(-3, 3), title="z after a convolution")
    axes["b"].legend(loc="upper right", fontsize=9)
    axes["b"].margins(y=0.5)  # room for the legend
    axes["b"].yaxis.set_major_formatter("{x:,.0f}")
    watched = lines_of(path / "gradients.jsonl")
    for layer in watched[0]["zero"]:
        axes["c"].plot([line["step"] for line in watched], [100 * line["zero"][layer] for line in watched], label=layer)
    axes["c"].set(xlabel="step", ylabel="outputs that are 0 (%)", ylim=(0, 100), title="while a CNN learns digits")
    axes["c"].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    shown.draw(
        "relu",
        figure,
        "ReLU is 0 up to z = 0 and then rises; about half of the z after a convolution are below 0; while a CNN learns "
        "digits, about half of the third ReLU's outputs are 0, and fewer of the first two's, which follow max pooling.",
    )
    return shown


@torch.no_grad()
def pooling() -> Shown:
    shown = Shown()
    dense = {"flatten": "flatten", "dense": {"type": "linear", "out_features": 100}}
    plain, pooled = (
        {row.path: row for row in rows_of((1, 28, 28), **blocks, **dense)}
        for blocks in ({"conv": CONV}, {"conv": CONV, "pool": POOL})
    )
    shown.table("data=mnist", "experiment=book/c6-conv1")
    kept = pooled["flatten"].output_shape[0] / plain["flatten"].output_shape[0]
    shown.claim("what 2×2 max pooling keeps", "25 %", f"{100 * kept:g} %")
    weights = [f"{rows['dense'].parameters - 100:,}" for rows in (plain, pooled)]
    shown.claim("weights of a dense layer of 100, after 20 maps of 24×24 and pooled", "1,152,000 and 288,000",
                " and ".join(weights))  # fmt: skip
    x_NCHW = Shapes(28, 8, 8, (2, 2), 0.0, 0).read("train").x_NCHW[4:5] / 255
    filtered = build_network(
        (1, 28, 28), {"conv": {"type": "conv", "out_channels": 1, "kernel_size": 3, "padding": 1,
                               "init": {"type": "given", "weight": VERTICAL}}, "relu": "relu"}
    )(x_NCHW)  # fmt: skip
    smaller = build_network((1, 28, 28), {"pool": POOL})(filtered)
    windows = filtered.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    same = torch.equal(smaller, windows.max(4).values)
    shown.claim("each output is the largest of its window, to the bit", True, same)
    bigger = smaller.repeat_interleave(2, 2).repeat_interleave(2, 3)
    shown.draw(
        "pooled",
        tiles_figure(
            torch.cat((x_NCHW[0], filtered[0], bigger[0])),
            "max pooling: 28×28 to 14×14",
            ["image", "filtered, 28×28", "pooled, 14×14"],
            label="value",
        ),
        "A line, the same line after a filter, and after max pooling, in pixels twice as large.",
    )
    return shown


@torch.no_grad()
def dropout(p: float = 0.5, masks: int = 10_000) -> Shown:
    """Each output is Σ w·x·m/(1 − p), of variance Σ (w·x)²·p/(1 − p) over the masks."""
    shown = Shown(["make notes ARGS=dropout"])
    network = built(flatten="flatten", dropout={"type": "dropout", "p": p}, dense={"type": "linear", "out_features": 5})
    x_NCHW = images(1)
    evaluated_K = network.eval()(x_NCHW)[0]
    masked_MK = network.train()(x_NCHW.expand(masks, -1, -1, -1))
    sd_K = ((network.dense.weight * x_NCHW.flatten()) ** 2).sum(1).mul(p / (1 - p) / masks).sqrt()
    away = ((masked_MK.mean(0) - evaluated_K).abs() / sd_K).max().item()
    shown.claim(f"mean of {masks:,} masks beside evaluation's output, the furthest of 5", "< 3 sd", f"{away:.1f} sd",
                0 < away < 3)  # fmt: skip
    fraction = (masked_MK[:, 0] != evaluated_K[0]).double().mean().item()
    shown.claim("passes that differ from evaluation's", "> 99 %", f"{100 * fraction:.1f} %", fraction > 0.99)
    figure = Figure(figsize=(6.4, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.hist(masked_MK[:, 0], 60, alpha=0.5, label=f"training, {masks:,} masks")
    axes.axvline(evaluated_K[0].item(), color="black", label="evaluation")
    axes.set(
        xlabel="value of the first output", ylabel="forward passes", title=f"one image under dropout with p = {p:g}"
    )
    figure.legend(loc="outside lower center", ncols=2)
    shown.draw(
        "masks",
        figure,
        "A histogram of one output under 10,000 dropout masks, shaped like a bell, with the output in evaluation at "
        "its middle.",
    )
    return shown
