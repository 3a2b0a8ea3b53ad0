"""How the arithmetic is carried out: precision and memory layout."""

import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from cnnlab.runtime.checks import one_of

PRECISIONS = ("fp32", "bf16", "fp16")
LAYOUTS = ("channels_last", "contiguous")
_NO_AUTOCAST = nullcontext()
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Execution:
    """`precision` of forward pass and loss (autocast for bf16 and fp16; fp16 scales the loss), `layout` of 4-D tensors.

    channels_last halves a small CNN's step on CPU; it changes no number's meaning. Raises `ArgumentError`.
    """

    def __init__(self, precision: str = "fp32", layout: str = "channels_last") -> None:
        self.precision = one_of("precision", precision, PRECISIONS)
        self.layout = one_of("layout", layout, LAYOUTS)
        self.memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        if self.precision == "fp32":
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


def make_deterministic(wanted: bool) -> None:
    """Asks torch for the same bits each time; on CUDA that costs speed, on CPU next to nothing."""
    if wanted:  # cuBLAS reads it when CUDA starts; torch refuses its matrix products without
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # the same as `use_deterministic_algorithms`, which imports torch's compiler: seconds, and nothing here is compiled
    torch.set_deterministic_debug_mode("error" if wanted else "default")
    torch.backends.cudnn.benchmark = not wanted
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
