"""How a step is computed: precision, memory layout, compiled or not."""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.runtime.checks import one_of
from cnnlab.runtime.errors import ArgumentError

AUTO = "auto"
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
LAYOUTS = ("channels_last", "contiguous")
_NO_AUTOCAST = nullcontext()
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Execution:
    """How a step is computed. Raises `ArgumentError`.

    `precision` is that of forward pass and loss. fp32 is torch's default; tf32 also rounds the factors of matrix
    products on CUDA to 11 significant bits; bf16 and fp16 are autocast, and fp16 scales the loss. `layout` is that of
    4-D tensors: channels_last halves a small CNN's step on CPU, and changes no number's meaning. With `compile`,
    forward pass, loss and backward pass are one graph, compiled by Inductor. With `cuda_graph` the kernels that a step
    launches on CUDA are captured once, and launched together in each step; the bits stay the same. Each may be `auto`:
    chosen by timing before the first step, and until then its default here.
    """

    precision: str = "fp32"
    layout: str = "channels_last"
    compile: bool | str = False
    cuda_graph: bool | str = False

    def __post_init__(self) -> None:
        one_of("precision", self.precision, (*PRECISIONS, AUTO))
        one_of("layout", self.layout, (*LAYOUTS, AUTO))
        for name, value in (("compile", self.compile), ("cuda_graph", self.cuda_graph)):
            if not isinstance(value, bool) and value != AUTO:
                raise ArgumentError(name, f"expected true, false or auto, received {value!r}")
        if self.cuda_graph is True and self.precision == "fp16":
            reason = "a step with precision=fp16 cannot be captured: its scale is read after each"
            raise ArgumentError("cuda_graph", f"{reason}; expected auto or false, or precision=bf16")

    @property
    def resolved(self) -> bool:
        return AUTO not in asdict(self).values()

    def resolve(self, chosen: Mapping[str, Any]) -> "Execution":
        """With the `chosen` values in place of `auto`, where there are any. Raises `ArgumentError`."""
        return Execution(
            **{name: chosen.get(name, value) if value == AUTO else value for name, value in asdict(self).items()}
        )

    def check(self, device: torch.device) -> None:
        """Raises `ArgumentError` for what this machine's device does not support."""
        if self.precision == "tf32" and not has_tf32(device):
            raise ArgumentError(
                "precision", f"tf32 needs an NVIDIA GPU from Ampere on, and the device is {device}: expected fp32"
            )
        if self.precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise ArgumentError("precision", "this GPU does not compute in bf16: expected fp16 or fp32")
        if self.precision in _AUTOCAST and device.type == "mps":
            raise ArgumentError("precision", f"{self.precision} is not tried on mps: expected fp32 or auto")
        if self.compile is True and device.type == "mps":
            raise ArgumentError("compile", "the device is mps: expected auto or false")
        if self.cuda_graph is True and device.type != "cuda":
            raise ArgumentError("cuda_graph", f"the device is {device}: expected auto or false")

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.contiguous_format if self.layout == "contiguous" else torch.channels_last

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        if self.precision not in _AUTOCAST:
            return _NO_AUTOCAST
        return torch.autocast(device.type, dtype=_AUTOCAST[self.precision])

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Scales fp16 losses so that small gradients survive; does nothing otherwise."""
        return torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")

    def place(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network on the device, its 4-D weights in the layout."""
        network.to(device)
        network.to(memory_format=self.memory_format)
        return network

    def arrange(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW.contiguous(memory_format=self.memory_format) if x_NCHW.dim() == 4 else x_NCHW


def has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def allow_tf32(allowed: bool) -> None:
    """Whether matrix products on CUDA may round their factors to TF32; convolutions may, as torch has it."""
    torch.backends.cuda.matmul.fp32_precision = "tf32" if allowed else "none"


def make_deterministic(wanted: bool) -> None:
    """Asks torch for the same bits each time; on CUDA that costs speed, on CPU next to nothing."""
    if wanted:  # cuBLAS reads it when CUDA starts; torch refuses its matrix products without
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # the same as `use_deterministic_algorithms`, which imports torch's compiler: seconds, and nothing here is compiled
    torch.set_deterministic_debug_mode("error" if wanted else "default")
    # it takes seconds for each shape, gains 4 % of a step, and chooses anew each time
    torch.backends.cudnn.benchmark = False
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
