"""A layer's response to an image, and the image to which each of its units responds most."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional

from cnnlab.runtime.errors import ArgumentError
from cnnlab.runtime.eval_mode import in_evaluation_mode

STEPS = 128
RATE = 4.0  # grey levels that a pixel moves in a step, at most: 64 steps from black to white
GREY = 127.5
NOISE = 8.0  # standard deviation of the first image around grey
LEAST_BLUR = 0.2  # pixels: less changes nothing
LEAK = 0.01  # a silent ReLU's slope, for gradients only


@torch.no_grad()
def response(network: nn.Module, layer: nn.Module, x_NCHW: Tensor) -> Tensor:
    """The output of `layer`, a module within `network`, for the images in evaluation mode, float32.

    (N, C, H, W) maps or (N, F) features; of a layer that is called several times, the first output. Raises
    `ArgumentError` for a layer that is not called or returns anything else.
    """
    with in_evaluation_mode(network):
        return _output(network, layer, x_NCHW)


@dataclass(frozen=True)
class Maximised:
    """`x_UCHW`, images of 0…255, one for each unit; `value_U`, the mean activation that each of them reaches."""

    x_UCHW: Tensor
    value_U: Tensor


def maximise(
    network: nn.Module,
    layer: nn.Module,
    start_CHW: Tensor,
    units: int,
    *,
    steps: int = STEPS,
    rate: float = RATE,
    jitter: int = 0,
    blur: float = 0.0,
    chosen: Sequence[int] | None = None,
) -> Maximised:
    """For each of the layer's first `units` channels or features, or the `chosen`, the image that makes its mean large.

    `network` takes images of 0…255. By gradient ascent on the pixels from `start_CHW`, which stay in that range
    (Erhan et al. 2009, *Visualizing Higher-Layer Features of a Deep Network*). Gradients pass silent ReLUs, too (as in
    Olah et al. 2017, *Feature Visualization*): a unit that is silent at the start would stay so. Without regularisation
    each unit's best image of all steps is kept. With it the last is: in each step the image moves by up to `jitter`
    pixels, and is blurred by a Gaussian whose standard deviation falls from `blur` pixels to 0, so that what is left
    does not depend on single pixels. The network is in evaluation mode meanwhile; its weights receive no gradient.
    """
    units_U = torch.arange(units) if chosen is None else torch.tensor(chosen)
    generator = torch.Generator().manual_seed(0)
    x_UCHW = start_CHW.detach().float().expand(len(units_U), *start_CHW.shape).clone().requires_grad_()
    best = Maximised(x_UCHW.detach().clone(), torch.full((len(units_U),), -torch.inf, device=x_UCHW.device))
    # gradients of a mean over many places, after saturated layers, are far below Adam's usual eps
    adam = torch.optim.Adam([x_UCHW], lr=rate, eps=1e-16, maximize=True)
    with in_evaluation_mode(network), torch.enable_grad(), _leaky(network), without_cudnn_rnn(network):
        for step in range(steps + 1):
            last = step == steps
            shown_UCHW = x_UCHW if last or not jitter else _moved(x_UCHW, jitter, generator)
            mean_UU = unit_means(_output(network, layer, shown_UCHW))
            value_U = mean_UU.gather(1, units_U.to(mean_UU.device)[:, None])[:, 0]
            if last or not (jitter or blur):
                _keep(best, x_UCHW.detach(), value_U.detach())
            if last or not value_U.requires_grad:
                break
            (x_UCHW.grad,) = torch.autograd.grad(value_U.sum(), x_UCHW)
            adam.step()
            with torch.no_grad():
                x_UCHW.copy_(_blurred(x_UCHW, blur * (1 - (step + 1) / steps)).clamp(0, 255))
    return best


def _moved(x_UCHW: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """What leaves the image on one side comes in on the other."""
    rows, columns = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
    return x_UCHW.roll((rows, columns), (2, 3))


def _blurred(x_UCHW: Tensor, deviation: float) -> Tensor:
    reach = math.ceil(3 * deviation)
    if deviation < LEAST_BLUR or min(x_UCHW.shape[2:]) <= reach:
        return x_UCHW
    places = torch.arange(-reach, reach + 1, device=x_UCHW.device)
    weights = torch.exp(-(places**2) / (2 * deviation**2))
    weights = (weights / weights.sum()).expand(x_UCHW.shape[1], 1, 1, -1)
    for padding, kernel in (((reach, reach, 0, 0), weights), ((0, 0, reach, reach), weights.transpose(2, 3))):
        padded = functional.pad(x_UCHW, padding, mode="replicate")
        x_UCHW = functional.conv2d(padded, kernel, groups=x_UCHW.shape[1])
    return x_UCHW


def grey_noise(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """An image of the shape around the middle of 0…255, the same on each machine."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (GREY + NOISE * noise).clamp(0, 255)


def unit_means(output: Tensor) -> Tensor:
    """(N, U): each map's mean of (N, U, H, W), or the features (N, U) themselves."""
    return output.flatten(2).mean(2) if output.dim() == 4 else output


def _keep(best: Maximised, x_UCHW: Tensor, value_U: Tensor) -> None:
    better_U = value_U > best.value_U
    best.x_UCHW[better_U] = x_UCHW[better_U]
    best.value_U[better_U] = value_U[better_U]


class _ReachedError(Exception):
    """Carries a layer's output out of the network: later layers need not be computed."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


def _output(network: nn.Module, layer: nn.Module, x_NCHW: Tensor) -> Tensor:
    def stop(module: nn.Module, arguments: Any, output: Any) -> NoReturn:
        raise _ReachedError(output)

    hook = layer.register_forward_hook(stop)
    try:
        network(x_NCHW)
    except _ReachedError as reached:
        output = reached.output
    else:
        raise ArgumentError("layer", "the network does not call it: expected a layer that images go through")
    finally:
        hook.remove()
    if not isinstance(output, Tensor) or output.dim() not in (2, 4) or len(output) != len(x_NCHW):
        received = f"a tensor of {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ArgumentError(
            "layer",
            f"expected a layer that returns maps (images, channels, height, width) or features (images, features), "
            f"received {received} for {tuple(x_NCHW.shape)}",
        )
    return output.float()


@contextmanager
def _leaky(network: nn.Module) -> Iterator[None]:
    """The network's ReLUs keep their outputs to the bit, with the gradient of a leaky ReLU."""

    def leak(module: nn.Module, arguments: tuple[Tensor], output: Tensor) -> Tensor:
        leaking = functional.leaky_relu(arguments[0], LEAK)
        return leaking + (output - leaking).detach()

    hooks = [module.register_forward_hook(leak) for module in network.modules() if isinstance(module, nn.ReLU)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def without_cudnn_rnn(network: nn.Module) -> AbstractContextManager[object]:
    """cuDNN computes gradients of recurrent layers only in training mode."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in network.modules())
    return torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()
