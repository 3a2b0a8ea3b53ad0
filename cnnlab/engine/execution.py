"""How the arithmetic is carried out: precision, memory layout, compiled or not."""

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
COMPILED = ("none", "network", "step")
_NO_AUTOCAST = nullcontext()
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Execution:
    """How a step is computed. Raises `ArgumentError`.

    `precision` is that of forward pass and loss. fp32 is what torch does by itself; tf32 also rounds the factors of
    matrix products on CUDA to 11 significant bits; bf16 and fp16 are autocast, and fp16 scales the loss. `layout` is
    that of 4-D tensors: channels_last halves a small CNN's step on CPU, and changes no number's meaning. `compile` says
    what becomes a graph of its own: none of it, the network, or the whole step. With `cuda_graph` the kernels that a
    step launches on CUDA are captured once, and launched together in each step; the numbers stay the same. Each may be
    `auto`: chosen by timing where a run begins, and until then what stands here first.
    """

    precision: str = "fp32"
    layout: str = "channels_last"
    compile: str = "none"
    cuda_graph: bool | str = False
    trace: bool | str = False

    def __post_init__(self) -> None:
        one_of("precision", self.precision, (*PRECISIONS, AUTO))
        one_of("layout", self.layout, (*LAYOUTS, AUTO))
        one_of("compile", self.compile, (*COMPILED, AUTO))
        for name, value in (("cuda_graph", self.cuda_graph), ("trace", self.trace)):
            if not isinstance(value, bool) and value != AUTO:
                raise ArgumentError(name, f"expected true, false or auto, received {value!r}")
        if self.precision == "fp16" and self.compile == "step":
            raise ArgumentError(
                "compile",
                "step cannot be compiled with precision=fp16, whose scale is read after each step: expected "
                "precision=bf16 or compile=network",
            )
        if self.cuda_graph is True and not self.allows_cuda_graph:
            raise ArgumentError(
                "cuda_graph",
                "a step is not captured with precision=fp16, whose scale is read after each step, nor with "
                "compile=network, which makes graphs of its own: expected auto or false",
            )
        if self.trace is True and not self.allows_trace:
            raise ArgumentError(
                "trace",
                "a step is not traced with precision=fp16, whose scale changes, nor where compile or cuda_graph leave "
                "Python nothing to do in it: expected auto or false",
            )

    @property
    def allows_cuda_graph(self) -> bool:
        return self.precision != "fp16" and self.compile != "network"

    @property
    def allows_trace(self) -> bool:
        return self.precision != "fp16" and self.compile in ("none", AUTO) and self.cuda_graph is not True

    @property
    def resolved(self) -> bool:
        return AUTO not in asdict(self).values()

    def resolve(self, chosen: Mapping[str, Any]) -> "Execution":
        """With the `chosen` values where there is an `auto`, as far as it has them. Raises `ArgumentError`."""
        return Execution(
            **{name: chosen.get(name, value) if value == AUTO else value for name, value in asdict(self).items()}
        )

    def check(self, device: torch.device) -> None:
        """Raises `ArgumentError` for what this machine's device does not have."""
        if self.precision == "tf32" and not has_tf32(device):
            raise ArgumentError(
                "precision", f"tf32 is done by NVIDIA's GPUs from Ampere on, and the device is {device}: expected fp32"
            )
        if self.precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise ArgumentError("precision", "this GPU does not compute in bf16: expected fp16 or fp32")
        if self.cuda_graph is True and device.type != "cuda":
            raise ArgumentError("cuda_graph", f"the device is {device}: expected auto or false")
        if self.trace is True and device.type != "cpu":
            raise ArgumentError("trace", f"it is for the CPU, and the device is {device}: expected auto or false")

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
