"""HYDRA_FULL_ERROR: set while Hydra runs, so that it raises; jobs get the environment as the user left it."""

import os
from contextvars import ContextVar

FULL_ERROR = "HYDRA_FULL_ERROR"
show_traceback = ContextVar("show_traceback", default=False)  # whether the user set it


def environment_of_jobs() -> dict[str, str]:
    """The environment as the user left it, for processes that are started while Hydra runs."""
    return {name: value for name, value in os.environ.items() if name != FULL_ERROR or show_traceback.get()}
