"""What the ranks of a job do together. Where there is one rank, each function returns what it was given.

Every rank has to call the same functions in the same order. A rank that ends or does not answer makes the calls of the
others raise `RankLostError`, so that none of them waits for ever, or saves what not all have computed.
"""

import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cnnlab.runtime.errors import ConfigError, Interrupted, TrainingError
from cnnlab.runtime.ranks import is_first, rank, world_size

POLL = 0.02  # seconds
PATIENCE = timedelta(minutes=30)  # before training: one rank may decode images or time steps while others wait
Value = TypeVar("Value")


class RankLostError(TrainingError):
    """Another rank ended or did not answer: what this one computes from now on would be of no use."""


@dataclass
class _Groups:
    """Who takes part: `objects` for plain values and tensors on the CPU, `tensors` for those on the device."""

    objects: Any = None
    tensors: Any = None
    timeout: timedelta = PATIENCE


_groups = _Groups()
_meeting = ""  # the name of this connection of the ranks; a process may train several times


@contextmanager
def joined() -> Iterator[None]:
    """Connects the ranks of the job; at the end each waits until all have come so far, unless one has failed."""
    global _groups, _meeting
    if world_size() == 1 or dist.is_initialized():
        yield
        return
    with answering():
        _meeting = _meet(_store())
        store = dist.PrefixStore(_meeting, _store())
        dist.init_process_group("gloo", store=store, rank=rank(), world_size=world_size(), timeout=PATIENCE)
    _groups = _Groups()
    connected = True
    try:
        yield
        _wait_for_all()
    except Interrupted:
        _wait_for_all()
        raise
    except RankLostError:
        connected = False  # to disconnect might wait for the lost rank
        raise
    finally:
        if connected:
            dist.destroy_process_group()


def _wait_for_all() -> None:
    """Torchrun ends all ranks once one has ended with an error: the first may still be writing."""
    with answering():
        dist.barrier(group=_groups.objects)


def start_training(device: torch.device, timeout: float) -> None:
    """From here on a rank that does not answer within `timeout` seconds counts as lost; the GPUs are connected."""
    global _groups
    if world_size() == 1:
        return
    most = timedelta(seconds=timeout)
    with answering():
        objects = dist.new_group(backend="gloo", timeout=most)
        tensors = dist.new_group(backend="nccl", timeout=most) if device.type == "cuda" else objects
    _groups = _Groups(objects, tensors, most)


def gathered(value: Value) -> list[Value]:
    """The plain value of each rank, in their order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with answering():
        dist.all_gather_object(values, value, group=_groups.objects)
    return values


def from_first(call: Callable[[], Value]) -> Value:
    """What `call`, which the first rank alone makes, returns there, a plain value. What it raises, all raise."""
    return call() if world_size() == 1 else _all_or_none(call if is_first() else None, callers=1)[0]


def everywhere(call: Callable[[], Value]) -> Value:
    """What `call` returns on this rank. Where a rank raises a `ConfigError` or `TrainingError`, all do."""
    if world_size() == 1:
        return call()
    made: list[Value] = []
    _all_or_none(lambda: made.append(call()), callers=world_size())
    return made[0]


def _all_or_none(call: Callable[[], Any] | None, callers: int) -> list[Any]:
    """What each rank's call returns; None without one. An error names its rank unless it is every caller's."""
    value: Any = None
    failure: tuple[bool, str] | None = None
    try:
        value = call() if call else None
    except (ConfigError, TrainingError) as error:
        failure = isinstance(error, ConfigError), str(error)
    outcomes = gathered((value, failure, socket.gethostname()))
    failures = [(number, *failed, host) for number, (_, failed, host) in enumerate(outcomes) if failed]
    if not failures:
        return [value for value, _, _ in outcomes]
    number, is_config, text, host = failures[0]
    of_all = len(failures) == callers and len({text for _, _, text, _ in failures}) == 1
    raise (ConfigError if is_config else TrainingError)(text if of_all else f"rank {number} on {host}: {text}")


def training_group() -> Any:
    """What torch's own parallel modules need to know of the ranks that train together; None for one rank."""
    return _groups.tensors


def summed(tensor: Tensor) -> Tensor:
    """The tensor, on the training device, with the values of all ranks added up in place."""
    if world_size() > 1:
        with answering():
            dist.all_reduce(tensor, group=_groups.tensors)
    return tensor


@torch.no_grad()
def copied_from_first(tensors: Iterable[Tensor]) -> None:
    """Gives the tensors, on the training device, the values of the first rank's."""
    if world_size() == 1:
        return
    for tensor in tensors:
        sent = tensor.contiguous()
        with answering():
            dist.broadcast(sent, 0, group=_groups.tensors)
        tensor.copy_(sent)


def is_first_to_report() -> bool:
    """True for the rank that is the first to have failed: what happens to the others follows from it."""
    if world_size() == 1:
        return True
    try:
        # before the ranks have met, those of each machine find out for themselves
        started = "/".join(os.environ.get(name, "") for name in ("GROUP_RANK", "TORCHELASTIC_RESTART_COUNT"))
        return _store().add(f"reports/{_meeting or started}", 1) == 1
    except (RuntimeError, ValueError):  # what torchrun started is gone, or its address is missing
        return True


@cache
def _store() -> dist.Store:
    store, _, _ = next(dist.rendezvous("env://", rank(), world_size()))
    return dist.PrefixStore("cnnlab", store)


def _meet(store: dist.Store) -> str:
    """A name that the ranks agree on, and that no earlier start of them had.

    Torchrun keeps its store when it starts the ranks again, so what is there may be of ranks that are dead: the first
    answers what each one asks with a name of its own, until all have got the answer.
    """
    mine = uuid.uuid4().hex
    if not is_first():
        store.set(f"asking/{rank()}", mine)
        while not store.check([f"answer/{mine}"]):
            time.sleep(POLL)
        meeting = store.get(f"answer/{mine}").decode()
        store.add(f"{meeting}/met", 1)
        return meeting
    asking = [f"asking/{other}" for other in range(1, world_size())]
    while store.add(f"{mine}/met", 0) < len(asking):
        for key in asking:
            if store.check([key]):
                store.set(f"answer/{store.get(key).decode()}", mine)
        time.sleep(POLL)
    return mine


@contextmanager
def answering() -> Iterator[None]:
    """Torch raises RuntimeError where a rank has closed its connection, or does not answer in time."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if world_size() == 1 or not (isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text):
            raise
        late = "timed out" in text.lower() or "timeout" in text.lower()
        what = f"did not answer within {_groups.timeout.total_seconds():g} s" if late else "has ended"
        raise RankLostError(
            f"another rank {what}: this one, rank {rank()} on {socket.gethostname()}, ends without saving. "
            f"What was saved before is whole, and the run can be resumed"
        ) from error
