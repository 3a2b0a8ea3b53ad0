"""What several folders of tests need: the two commands run in this process, and composed configs."""

import copy
import io
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import open_dict

from cnnlab.config.compose import CONFIGS
from cnnlab.config.saved_config import resolved


@dataclass(frozen=True)
class Answer:
    """A command's exit status and output."""

    code: int
    out: str
    err: str


def run(command: Callable[[], None], *arguments: str) -> Answer:
    """Runs `train` or `evaluate` as if from a shell; what it does not catch is raised."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["cnnlab", *arguments])
        patch.setattr(sys, "path", list(sys.path))
        patch.setenv("HYDRA_FULL_ERROR", "0")
        try:
            command()
        except SystemExit as end:
            code = end.code
    return Answer(code, out.getvalue(), err.getvalue())


def ok(answer: Answer) -> Answer:
    """The answer of a command that succeeded."""
    assert answer.code == 0, answer.err
    return answer


def composed(*overrides: str) -> dict[str, Any]:
    """The resolved config of `python train.py OVERRIDES`, by Hydra's rules alone."""
    return copy.deepcopy(_composed(overrides))


@cache
def _composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", overrides=list(overrides))
    with open_dict(config):
        for key in ("hydra", "sweep"):  # no run has them
            config.pop(key, None)
    return resolved(config)
