"""The four steps of training, and how the gradient leads down."""

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from cnnlab.losses import LOSSES
from cnnlab.network import build_network
from cnnlab.visualization.tiles import tiles_figure
from laboratory.neurons import QUADRATIC, digits, sigmoid_network
from laboratory.shown import Shown, lines_of, signed
from laboratory.updates import gradients, update


def four_steps() -> Shown:
    """w ← w − η·∂C/∂w, and with weight decay λ/n w ← (1 − ηλ/n)·w − η·∂C/∂w (Nielsen, chapter 3)."""
    shown = Shown(["make notes ARGS=four_steps"])
    torch.manual_seed(0)
    blocks = {
        "conv": {"type": "conv", "out_channels": 4, "kernel_size": 3},
        "a1": "sigmoid",
        "flatten": "flatten",
        "output": {"type": "linear", "out_features": 10},
        "a2": "sigmoid",
    }
    network, (x_NCHW, y_N) = build_network((1, 8, 8), blocks).double(), digits(100)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    cost = QUADRATIC(network(x_NCHW), y_N).item()
    update(network, QUADRATIC, x_NCHW, y_N, lr=0.5)  # a power of two: no product is rounded
    after = QUADRATIC(network(x_NCHW), y_N).item()
    parameters = {name: (p.detach(), p.grad) for name, p in network.named_parameters() if p.grad is not None}
    exact = sum(int((now == before[name] - 0.5 * grad).sum()) for name, (now, grad) in parameters.items())
    count = sum(p.numel() for p in network.parameters())
    shown.claim(f"weights that are w − η·∂C/∂w to the bit, of {count:,}", f"{count:,}", f"{exact:,}")
    shown.claim("the cost of 100 digits after the update", f"< {cost:.4f}", f"{after:.4f}", after < cost)
    decayed, eta, decay = sigmoid_network(), 0.5, 5.0 / 50_000
    old = decayed.hidden.weight.detach().clone()
    grad = gradients(decayed, QUADRATIC, x_NCHW, y_N)["hidden.weight"]
    update(decayed, QUADRATIC, x_NCHW, y_N, eta, weight_decay=decay)
    factor = ((decayed.hidden.weight.detach() + eta * grad) / old).mean().item()
    shown.claim("with λ = 5, n = 50,000, η = 0.5: the factor 1 − ηλ/n", f"{1 - eta * decay:.6f}", f"{factor:.6f}")
    now, grad_OIHW = parameters["conv.weight"]
    change = -0.5 * grad_OIHW
    shown.draw(
        "update",
        tiles_figure(
            torch.cat((before["conv.weight"], change * 20, now))[:, 0],
            "four filters: before the update, 20 × its change, and after it",
            [f"filter {k}, {kind}" for kind in ("before", "20·Δw", "after") for k in range(4)],
            signed=True,
            columns=4,
            label="weight",
        ),
        "Four 3×3 filters before an update, twenty times what it changes, and after it: nearly as before.",
    )
    return shown


def small_cnn() -> nn.Sequential:
    """A convolution, sigmoid, pooling and an output layer for 6×6, in float64."""
    torch.manual_seed(0)
    blocks: dict[str, Any] = {
        "conv": {"type": "conv", "out_channels": 3, "kernel_size": 3},
        "a1": "sigmoid",
        "pool": {"type": "max_pool", "kernel_size": 2},
        "flatten": "flatten",
        "output": {"type": "linear", "out_features": 4},
    }
    return build_network((1, 6, 6), blocks).double()


def gradients_both_ways() -> dict[str, tuple[Tensor, Tensor]]:
    """By parameter of `small_cnn`: ∂C/∂w from the backward pass, and from (C(w + ε) − C(w − ε)) / 2ε, ε = 1e-5."""
    network, target = small_cnn(), torch.tensor([0, 3, 1])
    loss = LOSSES["cross_entropy"]()
    x_NCHW = torch.randn(3, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    by_autograd, found = gradients(network, loss, x_NCHW, target), {}
    for name, parameter in network.named_parameters():
        by_differences = torch.empty_like(parameter).view(-1)
        values = parameter.detach().view(-1)
        for place in range(len(values)):
            before, costs = values[place].item(), []
            for nudged in (before + 1e-5, before - 1e-5):
                values[place] = nudged
                costs.append(loss(network(x_NCHW), target).item())
            values[place] = before
            by_differences[place] = (costs[0] - costs[1]) / 2e-5
        found[name] = by_autograd[name].flatten(), by_differences.detach()
    return found


def backward_pass() -> Shown:
    shown = Shown()
    path = shown.train("watched_gradients", "trainer.watch_every=20", "trainer.epochs=6")
    both = gradients_both_ways()
    worst = max(((a - d).norm() / a.norm()).item() for a, d in both.values())
    shown.claim("backward pass against finite differences, relative error in float64", "< 1e-6", f"{worst:.0e}",
                worst < 1e-6)  # fmt: skip
    watched = lines_of(path / "gradients.jsonl")
    figure = Figure(figsize=(6.4, 5.8), layout="constrained")
    upper, lower = figure.subplots(2, 1)
    for layer in watched[0]["gradient_norm"]:
        kind = layer.rstrip("0123456789")
        upper.semilogy(
            [line["step"] for line in watched],
            [line["gradient_norm"][layer] for line in watched],
            color={"conv": "C0", "norm": "C1"}.get(kind, "black"),
            linestyle={"2": "--", "3": ":"}.get(layer.removeprefix(kind), "-"),
            label=layer,
        )
    upper.set(xlabel="step", ylabel="norm of ∂C/∂w", title="the gradient of each layer")
    upper.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    top = watched[-1]["contributions"][:8][::-1]
    lower.barh([c["name"] for c in top], [c["weight"] * c["gradient"] for c in top])
    lower.tick_params(axis="y", labelsize=9)
    lower.locator_params(axis="x", nbins=5)
    lower.set(xlabel="w·∂C/∂w", title=f"the weights that contribute most at step {watched[-1]['step']}")
    shown.draw(
        "backward",
        figure,
        "Above, the norm of each layer's gradient, which falls during training; below, the eight weights with the "
        "largest w·∂C/∂w at the last step.",
    )
    return shown


def descent(lr: float, updates_before: int = 0) -> tuple[float, float]:
    """The change of the cost that ∇C·Δv predicts for Δv = −η∇C, and the one that an update makes."""
    network, (x_NCHW, y_N) = sigmoid_network(), digits(200)
    for _ in range(updates_before):
        update(network, QUADRATIC, x_NCHW, y_N, lr=1.0)
    before = QUADRATIC(network(x_NCHW), y_N).item()
    update(network, QUADRATIC, x_NCHW, y_N, lr)
    squared = sum((p.grad**2).sum().item() for p in network.parameters() if p.grad is not None)
    return -lr * squared, QUADRATIC(network(x_NCHW), y_N).item() - before


def relative_error(lr: float) -> float:
    predicted, actual = descent(lr)
    return abs(actual - predicted) / abs(predicted)


def gradient_descent() -> Shown:
    shown = Shown()
    path = shown.train("watched_updates", "trainer.watch_every=20", "trainer.epochs=6")
    rates = [2.0**-k * 1e-3 for k in range(5, -12, -1)]
    errors = [relative_error(lr) for lr in rates]
    halved = relative_error(2e-3) / relative_error(1e-3)
    shown.claim("half the η: the relative error of ∇C·Δv is divided by", "2.0", f"{halved:.1f}")
    shown.claim("that error at η = 0.001", "< 1 %", f"{100 * relative_error(1e-3):.2f} %", relative_error(1e-3) < 0.01)
    small, huge = descent(1e-3, updates_before=200)[1], descent(1e3, updates_before=200)[1]
    shown.claim("ΔC after an update with η = 0.001", "< 0", signed(small, ".1e"), small < 0)
    shown.claim("and with η = 1,000", "> 0", signed(huge), huge > 0)
    figure = Figure(figsize=(6.4, 5.8), layout="constrained")
    upper, lower = figure.subplots(2, 1)
    upper.loglog(rates, errors, "o-", ms=4)
    upper.set(xlabel="learning rate η", ylabel="|ΔC − ∇C·Δv| / |∇C·Δv|", title="∇C·Δv is close to ΔC for small steps")
    watched = lines_of(path / "gradients.jsonl")
    steps = [line["step"] for line in watched]
    lower.plot(steps, [line["predicted_change"] for line in watched], label="promised: ∇C·Δv")
    lower.plot(steps, [line["loss_change"] for line in watched], label="actual: ΔC")
    lower.axhline(0, color="gray", linestyle="-", lw=0.5)
    lower.set(xlabel="step", ylabel="change of the batch's cost", title="a CNN on digits, SGD with momentum")
    lower.legend(loc="lower right")
    shown.draw(
        "descent",
        figure,
        "Above, the error of the promised change of the cost, small for small learning rates; below, the promised and "
        "the actual change at updates of a CNN, which meet as the training ends.",
    )
    return shown
