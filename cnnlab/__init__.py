"""cnnlab: a laboratory for convolutional networks, driven by YAML.

Importing the package is cheap: torch is loaded only by what needs it.
"""

from typing import TYPE_CHECKING, Any

from cnnlab.version import __version__

if TYPE_CHECKING:
    from cnnlab.api import compose, evaluate, history, train
    from cnnlab.inference.predictor import load

__all__ = ["__version__", "compose", "evaluate", "history", "load", "train"]


def __getattr__(name: str) -> Any:
    """The functions import what they stand on when they are first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'cnnlab' has no attribute {name!r}")
    if name == "load":
        from cnnlab.inference.predictor import load

        return load
    from cnnlab import api

    return getattr(api, name)
