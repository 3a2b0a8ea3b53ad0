"""Muon for convolutions, too: a kernel is updated as the matrix of its rows."""

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """`torch.optim.Muon`, which takes matrices alone, for weights of two dimensions and more.

    The gradient's running mean is made orthogonal before it is added, so that a step moves all directions of a matrix
    alike (https://kellerjordan.github.io/posts/muon/). A weight (O, I, H, W) is the matrix (O, I·H·W), its columns in
    the order in which they lie in memory. `momentum` is that of the running mean, `ns_steps` the iterations that make
    it orthogonal, with `ns_coefficients` and `eps`; `adjust_lr_fn` is how `lr` follows from a matrix's shape: original,
    match_rms_adamw (arXiv 2502.16982: AdamW's lr and weight_decay suit it) or spectral_unclamped. Raises `ValueError`
    for a parameter of fewer than two dimensions.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
    ) -> None:
        matrix = [torch.empty(0, 0)]  # torch's constructor checks the values, and refuses anything but matrices
        super().__init__(matrix, lr, weight_decay, momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn)
        self.param_groups.clear()
        for group in params:
            self.add_param_group(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        for number, parameter in enumerate(self.param_groups[-1]["params"]):
            if parameter.dim() < 2:
                name = self.param_groups[-1].get("names", {number: f"parameter {number}"})[number]
                raise ValueError(
                    f"muon updates weights of two dimensions or more, and {name} has {parameter.dim()}: expected a "
                    f"name pattern for weights alone, such as conv*.weight"
                )

    def _init_group(
        self,
        group: MutableMapping[str, Any],
        params_with_grad: list[Tensor],
        grads: list[Tensor],
        muon_momentum_bufs: list[Tensor],
    ) -> bool:
        """Fills the lists that torch's step works on, with matrices that share the parameters' memory."""
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            order = 0, *sorted(range(1, parameter.dim()), key=parameter.stride, reverse=True)
            rows = len(parameter)
            params_with_grad.append(parameter.permute(order).view(rows, -1))  # a view: it is written to
            grads.append(parameter.grad.permute(order).reshape(rows, -1))
            muon_momentum_bufs.append(state["momentum_buffer"].permute(order).view(rows, -1))
        return False
