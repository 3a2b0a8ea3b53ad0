"""Weight initialization. Each entry makes a function of one module, which draws from torch's global generator.

A weight is any parameter of two or more dimensions. Norms keep their ones and zeros, and positional embeddings their
spread, unless they are `given` others. Fans as in `torch.nn.init`.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import init

from cnnlab.blocks.normalization import NORMS
from cnnlab.blocks.sequence import PositionalEmbedding
from cnnlab.blocks.whitening import Whitening
from cnnlab.runtime.checks import int_or_pair, integer, number, one_of
from cnnlab.runtime.errors import ArgumentError, listing

Initializer = Callable[[nn.Module], None]
DISTRIBUTIONS = ("normal", "uniform")
MOST = 1e6  # of a gain, a mean or a standard deviation: float32 squares it without overflow


def default() -> Initializer:
    """Keeps the initialization of the module's own constructor."""
    return lambda module: None


def he(
    distribution: str = "normal",
    mode: str = "fan_in",
    nonlinearity: str = "relu",
    negative_slope: float = 0.0,
) -> Initializer:
    """Variance gain²/fan (arXiv 1502.01852), biases 0; `torch.nn.init.kaiming_normal_` and `kaiming_uniform_`.

    `distribution` is normal or uniform, `mode` fan_in or fan_out. gain² follows from `nonlinearity`: 2 for relu,
    2/(1 + `negative_slope`²) for leaky_relu. Raises `ArgumentError`.
    """
    fill: Callable[..., object] = {"normal": init.kaiming_normal_, "uniform": init.kaiming_uniform_}[
        one_of("distribution", distribution, DISTRIBUTIONS)
    ]
    one_of("mode", mode, ("fan_in", "fan_out"))
    one_of("nonlinearity", nonlinearity, ("relu", "leaky_relu", "tanh", "linear", "sigmoid", "selu"))
    number("negative_slope", negative_slope, -MOST, MOST)
    return _weights(lambda weight: fill(weight, negative_slope, mode, nonlinearity))


def xavier(distribution: str = "uniform", gain: float = 1.0) -> Initializer:
    """Variance `gain`²·2/(fan_in + fan_out), `distribution` normal or uniform (Glorot and Bengio 2010); biases 0."""
    fill = {"normal": init.xavier_normal_, "uniform": init.xavier_uniform_}[
        one_of("distribution", distribution, DISTRIBUTIONS)
    ]
    number("gain", gain, 0, MOST, open_minimum=True)
    return _weights(lambda weight: fill(weight, gain))


def normal(mean: float = 0.0, std: float = 1.0, bias_std: float = 0.0) -> Initializer:
    """Weights from N(`mean`, `std`²), biases from N(0, `bias_std`²)."""
    number("mean", mean, -MOST, MOST)
    number("std", std, 0, MOST)
    number("bias_std", bias_std, 0, MOST)
    return _weights(lambda weight: init.normal_(weight, mean, std), bias_std)


def trunc_normal(mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Initializer:
    """Weights from N(`mean`, `std`²), those outside of [`a`, `b`] drawn again; biases 0 (`torch.nn.init`)."""
    number("mean", mean, -MOST, MOST)
    number("std", std, 0, MOST, open_minimum=True)
    number("a", a, -MOST, MOST)
    number("b", b, a, MOST, open_minimum=True)
    return _weights(lambda weight: init.trunc_normal_(weight, mean, std, a, b))


def orthogonal(gain: float = 1.0) -> Initializer:
    """(Semi-)orthogonal weights times `gain` (arXiv 1312.6120), biases 0."""
    number("gain", gain, 0, MOST, open_minimum=True)
    return _weights(lambda weight: init.orthogonal_(weight, gain))


def zeros() -> Initializer:
    """Every weight and bias 0; those of a norm where it is the norm's own `init`.

    That of the last norm in a residual's `blocks` makes the residual begin as its shortcut (arXiv 1706.02677,
    section 5.1): `norm2: {type: batch_norm, init: zeros}`.
    """
    return _weights(init.zeros_)


def dirac() -> Initializer:
    """Of a convolution with `in_channels` inputs, the first `in_channels` filters each pass one of them on.

    Further filters, and all other layers, keep the initialization of their constructors (`torch.nn.init.dirac_`, as
    used by arXiv 2404.00498, section 3.1). With groups, the first filters of each group pass on its own channels.
    """

    def initialize(module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
            for weight in module.weight.detach().chunk(module.groups):
                init.dirac_(weight[: weight.shape[1]])

    return initialize


def whitening(images: int = 5000, eps: float = 5e-4) -> Initializer:
    """Filters that whiten the patches which reach a convolution: their outputs are uncorrelated, of variance 1.

    For a `conv` alone, mostly the first, as its own `init`: with windows of k×k pixels of C channels it has
    2·k·k·C `out_channels`. Half of the filters are v / √(λ + `eps`) for each eigenvector v of the patches' covariance
    and its eigenvalue λ, the largest first; the other half are their negatives; biases are 0 (arXiv 2404.00498, section
    3.2). The patches are those of `images` training images, drawn by the run's seed, or of all where there are fewer:
    normalised, not augmented. This is computed before a run's first step, and never when it is resumed. Raises
    `ArgumentError`; a run with fewer training images than numbers in a patch is refused.
    """
    return Whitening(integer("images", images, 1), number("eps", eps, 0, MOST))


def book_large() -> Initializer:
    """Weights and biases from N(0, 1) (Nielsen, *Neural Networks and Deep Learning*, chapter 1)."""
    return normal(bias_std=1.0)


def book_small() -> Initializer:
    """Weights of variance 1/fan_in, biases from N(0, 1) (Nielsen, chapter 3)."""
    return _weights(lambda weight: init.kaiming_normal_(weight, nonlinearity="linear"), bias_std=1.0)


def book_conv(pool_size: int | tuple[int, int] = 2) -> Initializer:
    """Weights of variance 1/fan_out, biases from N(0, 1) (Nielsen, chapter 6, `network3.py`).

    There each convolution is followed by a pooling of `pool_size`, which divides its fan_out; those without one take
    1. The softmax layer has an `init: zeros` of its own.
    """
    rows, columns = int_or_pair("pool_size", pool_size, 1)

    def fill(weight: Tensor) -> None:
        pooled = rows * columns if weight.dim() == 4 else 1
        fan_out = weight.shape[0] * weight[0, 0].numel()
        init.normal_(weight, 0.0, math.sqrt(pooled / fan_out))

    return _weights(fill, bias_std=1.0)


def given(weight: Any, bias: Any = None) -> Initializer:
    """These numbers: `weight` and `bias` in the parameter's own shape, or in one that torch broadcasts to it.

    `[[-2, -2]]` is the weight of a linear layer with two inputs and one output, and a 3×3 list is the kernel of every
    filter on every channel. Biases are 0 where none are given. Raises `ArgumentError`; the initializer does, too, for
    a module that has other parameters.
    """
    values = {"weight": _tensor("weight", weight)} | ({} if bias is None else {"bias": _tensor("bias", bias)})

    def initialize(module: nn.Module) -> None:
        own = dict(module.named_parameters(recurse=False))
        if not own:
            return
        for name, value in values.items():
            if name not in own:
                raise ArgumentError(name, f"the layer has no {name}; its parameters are {listing(own)}")
            _fill(name, own[name], value)
        if "bias" in own and bias is None:
            init.zeros_(own["bias"])

    return initialize


def _tensor(argument: str, value: Any) -> Tensor:
    try:
        return torch.tensor(value, dtype=torch.float32, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(
            argument,
            f"expected a number or lists of numbers, each as long as the others, received {_as_lists(value)!r}",
        ) from error


def _as_lists(value: Any) -> Any:
    """Lists, as in YAML."""
    return [_as_lists(item) for item in value] if isinstance(value, tuple) else value


@torch.no_grad()
def _fill(argument: str, parameter: Tensor, value: Tensor) -> None:
    try:
        broadcast = value.expand(parameter.shape)
    except RuntimeError as error:
        wanted, received = list(parameter.shape), list(value.shape)
        raise ArgumentError(argument, f"expected numbers of shape {wanted}, received {received}") from error
    parameter.copy_(broadcast)


def _weights(fill: Callable[..., object], bias_std: float = 0.0) -> Initializer:
    def initialize(module: nn.Module) -> None:
        if isinstance(module, (*NORMS, PositionalEmbedding)):
            return
        own = dict(module.named_parameters(recurse=False))
        # on the meta device there is nothing to fill, and drawing there imports seconds' worth of torch
        weights = [parameter for parameter in own.values() if parameter.dim() >= 2 and not parameter.is_meta]
        for weight in weights:
            fill(weight)
        if weights:
            for name, parameter in own.items():
                if name.startswith("bias"):
                    init.normal_(parameter, 0.0, bias_std)

    return initialize


INITIALIZERS: dict[str, Callable[..., Initializer]] = {
    "default": default,
    "he": he,
    "xavier": xavier,
    "normal": normal,
    "trunc_normal": trunc_normal,
    "orthogonal": orthogonal,
    "dirac": dirac,
    "whitening": whitening,
    "zeros": zeros,
    "given": given,
    "book_large": book_large,
    "book_small": book_small,
    "book_conv": book_conv,
}
