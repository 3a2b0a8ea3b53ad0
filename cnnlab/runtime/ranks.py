"""The ranks of a job: the processes that torchrun starts. Each finds its number in its environment."""

import os


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() and {"RANK", "WORLD_SIZE"} <= os.environ.keys() else default


def world_size() -> int:
    """How many processes train together, on all machines; 1 without torchrun."""
    return max(1, _number("WORLD_SIZE", 1))


def rank() -> int:
    """The number of this process among them, from 0."""
    return _number("RANK", 0)


def is_first() -> bool:
    """True for the one that prints and writes."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process among those of this machine, which is that of its GPU."""
    return _number("LOCAL_RANK", rank())


def local_world_size() -> int:
    """How many processes of the job are on this machine."""
    return max(1, _number("LOCAL_WORLD_SIZE", world_size()))


def max_restarts() -> int:
    """How often torchrun starts the job again after a rank has failed; 0 without torchrun."""
    return _number("TORCHELASTIC_MAX_RESTARTS", 0)
