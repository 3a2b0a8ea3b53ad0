"""One update, watched: the change of the loss that the gradient predicts, and the actual one."""

import bisect
import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate as running_sums
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from cnnlab.engine.execution import Execution
from cnnlab.engine.records import Contribution, Descent
from cnnlab.engine.step import StepResult, count_correct
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.randomness import capture_generators, restore_generators

FLAT = 0.1  # an activation is saturated where its slope is less than this fraction of its steepest
# the slope of each over its steepest, from its output
SLOPES: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.Sigmoid: lambda a: 4 * a * (1 - a),
    nn.Tanh: lambda a: 1 - a.square(),
}
COUNTED = (nn.ReLU, nn.Sigmoid, nn.Tanh)


class Probe:
    """Watches one training step on `batch`: a context around `train_step`; `read` reports what the step did.

    It changes no bit of the training. The loss after the update is that of the same function as before it: a copy of
    network and loss, made before the step, gets the updated parameters and the batch as it was, in the same modes and
    microbatches and with the same generators. So dropout draws the same masks, batch norm takes the batch's own
    statistics, and layers that work in place or keep state elsewhere than in buffers see what they saw.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        execution: Execution,
        batch: Batch,
        *,
        accumulate: int = 1,
        clip_norm: float | None = None,
    ) -> None:
        self.network = network
        self.loss = loss
        self.optimizer = optimizer
        self.execution = execution
        self.batch = batch
        self.accumulate = accumulate
        self.clip_norm = clip_norm
        self.activity = Activity()
        self._before: tuple[Tensor, Tensor] | None = None  # weights and gradient, right before the update

    def __enter__(self) -> Self:
        self._generators = capture_generators()
        self._copy, self._loss = copy.deepcopy((self.network, self.loss))
        self._batch = replace(self.batch, x_NCHW=self.batch.x_NCHW.clone())
        self._hooks = self.activity.watch(self.network)
        self._update = self.optimizer.step
        self.optimizer.step = self._watched_update  # type: ignore[method-assign]
        return self

    def __exit__(self, *error: object) -> None:
        self.optimizer.step = self._update  # type: ignore[method-assign]
        for hook in self._hooks:
            hook.remove()

    def _watched_update(self, *arguments: Any, **options: Any) -> Any:
        self._keep()
        return self._update(*arguments, **options)

    @torch.no_grad()
    def _keep(self) -> None:
        """Copies weights and gradient: some optimizers compute in the gradient's own memory."""
        trained = {name: p for name, p in self.network.named_parameters() if p.grad is not None}
        self._shapes = {name: parameter.shape for name, parameter in trained.items()}
        self._before = vector(trained.values()), vector(p.grad for p in trained.values() if p.grad is not None)

    @torch.no_grad()
    def read(self, result: StepResult, step: int, epoch: int, top: int) -> Descent | None:
        """The record of the step; None where fp16's scaler skipped the update. This waits for the device."""
        if self._before is None or not bool(self._before[1].isfinite().all()):
            return None
        weights_V, gradient_V = self._before
        if self.clip_norm is not None and result.gradient_norm is not None:
            gradient_V = gradient_V * _unclipped(result.gradient_norm, self.clip_norm)
        parameters = dict(self.network.named_parameters())
        change_V = vector(parameters[name] for name in self._shapes) - weights_V
        loss_after, correct_after = self._again()
        norms = [self._layer_norms(vector_V) for vector_V in (gradient_V, change_V, weights_V)]
        return Descent(
            step=step,
            epoch=epoch,
            images=len(self.batch),
            loss=float(result.loss),
            loss_change=float(loss_after - result.loss),
            predicted_change=float(torch.dot(_double(gradient_V), _double(change_V))),
            correct=int(result.correct),
            correct_change=int(correct_after - result.correct),
            gradient_norm=norms[0],
            update_ratio={name: norms[1][name] / size for name, size in norms[2].items() if size > 0},
            **self.activity.read(len(self.batch.chunks(self.accumulate))),
            contributions=self._largest(weights_V, gradient_V, top),
        )

    def _again(self) -> tuple[Tensor, Tensor]:
        """Loss and correct predictions with the new weights, through the old masks; see the class."""
        for mine, updated in zip(self._copy.parameters(), self.network.parameters(), strict=True):
            mine.copy_(updated)
        generators = capture_generators()
        restore_generators(self._generators)
        losses, corrects = [], []
        for microbatch in self._batch.chunks(self.accumulate):
            with self.execution.autocast(microbatch.x_NCHW.device):
                output_NK = self._copy(self.execution.arrange(microbatch.x_NCHW))
                loss = self._loss(output_NK, microbatch.target)
            losses.append(loss * microbatch.weight)
            corrects.append(count_correct(output_NK, microbatch.target))
        restore_generators(generators)
        return torch.stack(losses).sum(), torch.stack(corrects).sum()

    def _layer_norms(self, vector_V: Tensor) -> dict[str, float]:
        """The L2 norm over each layer, weight and bias of one module together."""
        slices = vector_V.split([shape.numel() for shape in self._shapes.values()])
        norms = torch.stack(torch._foreach_norm(slices)).tolist()
        layers: dict[str, float] = {}
        for name, norm in zip(self._shapes, norms, strict=True):
            layer = name.rpartition(".")[0] or name
            layers[layer] = math.hypot(layers.get(layer, 0.0), norm)
        return layers

    def _largest(self, weights_V: Tensor, gradient_V: Tensor, count: int) -> list[Contribution]:
        """The weights whose |w·∂C/∂w| is largest, the largest first."""
        contribution_V = (weights_V * gradient_V).abs()
        place_K = contribution_V.topk(min(count, len(contribution_V))).indices
        ends = list(running_sums(shape.numel() for shape in self._shapes.values()))
        names, found = list(self._shapes), []
        values = (place_K.tolist(), weights_V[place_K].tolist(), gradient_V[place_K].tolist())
        for place, weight, gradient in zip(*values, strict=True):
            which = bisect.bisect_right(ends, place)
            shape = self._shapes[names[which]]
            within = np.unravel_index(place - (ends[which] - shape.numel()), shape)
            index = ", ".join(str(position) for position in within)
            found.append(Contribution(f"{names[which]}[{index}]", weight, gradient))
        return found


class Activity:
    """Counts zero and saturated outputs of ReLUs, sigmoids and tanhs while its hooks are registered."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._zero: dict[str, list[Tensor]] = {}  # () per call
        self._silent: dict[str, list[Tensor]] = {}  # (units,) per call: zero for every image and place
        self._flat: dict[str, list[Tensor]] = {}  # () per call

    def watch(self, network: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        return [
            module.register_forward_hook(self._hook(name))
            for name, module in network.named_modules()
            if isinstance(module, COUNTED)
        ]

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        @torch.no_grad()
        def count(module: nn.Module, arguments: Any, output: Tensor) -> None:
            self._sizes[name] = self._sizes.get(name, 0) + output.numel()
            slope = next((slope for type_, slope in SLOPES.items() if isinstance(module, type_)), None)
            if slope:
                self._flat.setdefault(name, []).append((slope(output) < FLAT).sum())
            else:
                self._zero.setdefault(name, []).append((output == 0).sum())
                others = [dim for dim in range(output.dim()) if dim != 1]
                self._silent.setdefault(name, []).append(output.amax(others) == 0)

        return count

    def read(self, microbatches: int) -> dict[str, dict[str, float]]:
        """Fractions by layer, over a batch of so many microbatches; a module may be called several times in each."""
        return {
            "zero": self._fractions(self._zero),
            "dead": {name: float(_double(_in_all(calls, microbatches)).mean()) for name, calls in self._silent.items()},
            "saturated": self._fractions(self._flat),
        }

    def _fractions(self, counts: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
        return {name: int(torch.stack(list(calls)).sum()) / self._sizes[name] for name, calls in counts.items()}


def _in_all(calls: Sequence[Tensor], microbatches: int) -> Tensor:
    """The units that were silent in all microbatches: each has the module's calls in the same order."""
    each = len(calls) // microbatches
    return torch.cat([torch.stack(list(calls[call::each])).all(0) for call in range(each)])


def _double(values: Tensor) -> Tensor:
    """In float64, which `mps` lacks: from there on the CPU."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def _unclipped(norm: Tensor, clip_norm: float) -> Tensor:
    """The factor that undoes clipping by `clip_grads_with_norm_`."""
    return ((norm + 1e-6) / clip_norm).clamp_min(1.0)


def vector(tensors: Any) -> Tensor:
    """(V,): all values in one new vector, in the order of their indices whatever the memory layout."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])
