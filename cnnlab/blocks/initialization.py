"""How weights start. Each entry makes a function of one module; it draws from torch's global generator.

A weight is whatever has two or more dimensions; norms keep their ones and zeros. Fans as in `torch.nn.init`.
"""

from collections.abc import Callable

from torch import nn
from torch.nn import init

from cnnlab.blocks.normalization import NORMS
from cnnlab.runtime.checks import number, one_of

Initializer = Callable[[nn.Module], None]
DISTRIBUTIONS = ("normal", "uniform")


def default() -> Initializer:
    """What the module's own constructor drew."""
    return lambda module: None


def he(
    distribution: str = "normal",
    mode: str = "fan_in",
    nonlinearity: str = "relu",
    negative_slope: float = 0.0,
) -> Initializer:
    """Variance gain²/fan (arXiv 1502.01852), biases 0; gain² = 2 for ReLU, 2/(1 + negative_slope²) for leaky ReLU."""
    fill: Callable[..., object] = {"normal": init.kaiming_normal_, "uniform": init.kaiming_uniform_}[
        one_of("distribution", distribution, DISTRIBUTIONS)
    ]
    one_of("mode", mode, ("fan_in", "fan_out"))
    one_of("nonlinearity", nonlinearity, ("relu", "leaky_relu", "tanh", "linear", "sigmoid", "selu"))
    number("negative_slope", negative_slope)
    return _weights(lambda weight: fill(weight, negative_slope, mode, nonlinearity))


def xavier(distribution: str = "uniform", gain: float = 1.0) -> Initializer:
    """Variance gain²·2/(fan_in + fan_out) (Glorot and Bengio 2010), biases 0."""
    fill = {"normal": init.xavier_normal_, "uniform": init.xavier_uniform_}[
        one_of("distribution", distribution, DISTRIBUTIONS)
    ]
    number("gain", gain, 0, open_minimum=True)
    return _weights(lambda weight: fill(weight, gain))


def normal(mean: float = 0.0, std: float = 1.0, bias_std: float = 0.0) -> Initializer:
    """Weights from N(mean, std²), biases from N(0, bias_std²)."""
    number("mean", mean)
    number("std", std, 0)
    number("bias_std", bias_std, 0)
    return _weights(lambda weight: init.normal_(weight, mean, std), bias_std)


def orthogonal(gain: float = 1.0) -> Initializer:
    """(Semi-)orthogonal weights (arXiv 1312.6120), biases 0."""
    number("gain", gain, 0, open_minimum=True)
    return _weights(lambda weight: init.orthogonal_(weight, gain))


def zeros() -> Initializer:
    """Every weight and bias 0."""
    return _weights(init.zeros_)


def _weights(fill: Callable[..., object], bias_std: float = 0.0) -> Initializer:
    def initialize(module: nn.Module) -> None:
        if isinstance(module, NORMS):
            return
        own = dict(module.named_parameters(recurse=False))
        weights = [parameter for parameter in own.values() if parameter.dim() >= 2]
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
    "orthogonal": orthogonal,
    "zeros": zeros,
}
