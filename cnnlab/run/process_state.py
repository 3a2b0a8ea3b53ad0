"""Process-wide state that a run changes and restores: a notebook keeps its own generators and torch settings."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cnnlab.runtime.errors import ConfigError
from cnnlab.runtime.randomness import capture_generators, restore_generators

_TRAINING = threading.Lock()


@contextmanager
def the_only_training() -> Iterator[None]:
    """Raises `ConfigError` while another thread of this process trains."""
    if not _TRAINING.acquire(blocking=False):
        raise ConfigError(
            "another training runs in this process, and both would draw from the same random generators: expected one "
            "at a time, or a process for each"
        )
    try:
        yield
    finally:
        _TRAINING.release()


@contextmanager
def process_state_kept() -> Iterator[None]:
    """Restores torch's deterministic mode, cuDNN's benchmark mode, TF32 and every global generator at the end."""
    generators = capture_generators()
    mode = torch.get_deterministic_debug_mode()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    benchmark = torch.backends.cudnn.benchmark
    precision = torch.backends.cuda.matmul.fp32_precision
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = benchmark
        torch.backends.cuda.matmul.fp32_precision = precision
        restore_generators(generators)
