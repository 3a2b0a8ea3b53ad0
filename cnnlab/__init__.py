"""cnnlab: a laboratory for convolutional networks, driven by YAML.

Importing the package is cheap: torch is loaded only by what needs it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnnlab.assembly.predictor import load
    from cnnlab.assembly.python_api import compose, train

__version__ = "0.1.0"
__all__ = ["compose", "load", "train"]


def __getattr__(name: str) -> Any:
    """`cnnlab.compose`, `cnnlab.train` and `cnnlab.load` import what they stand on when they are first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'cnnlab' has no attribute {name!r}")
    if name == "load":
        from cnnlab.assembly.predictor import load

        return load
    from cnnlab.assembly import python_api

    return {"compose": python_api.compose, "train": python_api.train}[name]
