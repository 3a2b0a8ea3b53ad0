"""Which device a run uses, and what machine that is."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from cnnlab.runtime.errors import ConfigError, did_you_mean

DEVICES = ("auto", "cpu", "cuda")


def select_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one. Raises `ConfigError` for `cuda` without a usable GPU."""
    if name not in DEVICES:
        raise ConfigError(
            f"device: expected auto, cpu or cuda, received {name!r};{did_you_mean(name, DEVICES)}".rstrip(";")
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device: cuda was asked for, but torch finds no usable GPU here; "
            "expected device=cpu or device=auto on this machine"
        )
    return torch.device(name)


def machine_memory() -> int:
    """Bytes of main memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and threads, as `environment.json` holds them."""
    on_cuda = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if on_cuda else "cpu",
        "cuda": torch.version.cuda if on_cuda else None,
        "threads": torch.get_num_threads(),
        "git_commit": git_commit(Path.cwd()),
    }


def git_commit(folder: Path) -> str | None:
    """The commit of the checkout around `folder`, with `+changes` where it has some; None without git."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    answer = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=5)
    return answer.stdout.strip()
