"""Training mode and evaluation mode of modules."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Each submodule returns to its own mode: one that is frozen in evaluation mode stays so."""
    modes = [(module, module.training) for whole in modules for module in whole.modules()]
    for whole in modules:
        whole.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
