"""The device of a run, its memory, and the environment around it."""

import os
import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from cnnlab.runtime.errors import ConfigError, did_you_mean
from cnnlab.runtime.ranks import local_rank, local_world_size, world_size

DEVICES = ("auto", "cpu", "cuda", "mps")
CONTROL_GROUP = Path("/sys/fs/cgroup")  # as a container sees its own


def select_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one, and never MPS: a small network is often faster on an Apple CPU.

    Raises `ConfigError` for `cuda` or `mps` without a usable GPU.
    """
    if name not in DEVICES:
        raise ConfigError(
            f"device: expected auto, cpu, cuda or mps, received {name!r};{did_you_mean(name, DEVICES)}".rstrip(";")
        )
    usable = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = "cuda" if usable["cuda"] else "cpu"
    if not usable[name]:
        needed = "a usable GPU" if name == "cuda" else "a Mac with Apple silicon"
        raise ConfigError(
            f"device: {name} needs {needed}, and torch finds none: expected device=cpu or device=auto on this machine"
        )
    if world_size() > 1:
        return _of_rank(name)
    return torch.device(name)


def _of_rank(name: str) -> torch.device:
    """A GPU for each rank of this machine. Raises `ConfigError` where there are too few."""
    if name == "mps":
        raise ConfigError(
            "device: mps serves one process, and torchrun has started several: expected cpu, or no torchrun"
        )
    if name == "cpu":
        return torch.device(name)
    found, wanted = torch.cuda.device_count(), local_world_size()
    if wanted > found:
        raise ConfigError(
            f"device: torchrun has started {wanted} ranks on this machine, which has {found} "
            f"{'GPU' if found == 1 else 'GPUs'}: expected --nproc-per-node={found}, or device=cpu"
        )
    torch.cuda.set_device(local_rank())
    return torch.device(name, local_rank())


def cpu_count() -> int:
    """The processor cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        return os.cpu_count() or 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes on one thread: for many operations on little, where threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine_memory() -> int:
    """Bytes of main memory that this machine has."""
    return int(psutil.virtual_memory().total)


def synchronize(device: torch.device) -> None:
    """Waits for all work that a GPU was given; a CPU's is done already."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Transfer:
    """A tensor on its way to main memory, which is not waited for; `read` waits until it has arrived.

    On CUDA that needs no later work of the device to be done; other GPUs are waited for at once.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values.to("cpu", non_blocking=values.is_cuda)
        self._arrived = torch.cuda.Event() if values.is_cuda else None
        if self._arrived:
            self._arrived.record()

    def read(self) -> Tensor:
        if self._arrived:
            self._arrived.synchronize()
        return self._values


def free_memory(device: torch.device) -> int:
    """Free bytes of the device; of main memory at most those of the process's control group (its container)."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    free = int(psutil.virtual_memory().available)
    if device.type == "mps":  # which shares main memory
        return max(min(free, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()), 1)
    limit, used = (_content(CONTROL_GROUP / name) for name in ("memory.max", "memory.current"))
    if limit.isdigit() and used.isdigit():
        cached = re.search(r"^inactive_file (\d+)$", _content(CONTROL_GROUP / "memory.stat"), re.MULTILINE)
        free = min(free, int(limit) - int(used) + (int(cached[1]) if cached else 0))
    return max(free, 1)


def _content(path: Path) -> str:
    """A file's text, empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
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
        "device": torch.cuda.get_device_name(device) if on_cuda else device.type,
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
