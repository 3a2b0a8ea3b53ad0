"""The device of a run, its memory, and the environment around it."""

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from cnnlab.runtime.errors import ConfigError, did_you_mean

DEVICES = ("auto", "cpu", "cuda")
CONTROL_GROUP = Path("/sys/fs/cgroup")  # as a container sees its own


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
            "device: cuda needs a usable GPU, and torch finds none: expected device=cpu or device=auto on this machine"
        )
    return torch.device(name)


def machine_memory() -> int:
    """Bytes of main memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_memory(device: torch.device) -> int:
    """Free bytes of the device; of main memory at most those of the process's control group (its container)."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    available = re.search(r"^MemAvailable: +(\d+) kB$", _content(Path("/proc/meminfo")), re.MULTILINE)
    free = 1024 * int(available[1]) if available else machine_memory()
    limit, used = (_content(CONTROL_GROUP / name) for name in ("memory.max", "memory.current"))
    if limit.isdigit() and used.isdigit():
        cached = re.search(r"^inactive_file (\d+)$", _content(CONTROL_GROUP / "memory.stat"), re.MULTILINE)
        free = min(free, int(limit) - int(used) + (int(cached[1]) if cached else 0))
    return max(free, 1)


def _content(path: Path) -> str:
    """A file's text, empty where it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def size_text(size: int) -> str:
    """Such as `188 MB`, in units of 1,000."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:,.{0 if size >= 10 * factor else 1}f} {unit}"
    return f"{size} bytes"


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
    result = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=5)
    return result.stdout.strip()
