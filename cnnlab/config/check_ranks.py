"""What several ranks can train together, and that all of them are about to train the same."""

import platform
import socket

import torch
from torch import nn

from cnnlab.config.check_training import check_microbatches
from cnnlab.config.run_config import RunConfig, differences
from cnnlab.config.run_plan import RunPlan
from cnnlab.data.mixing import Mixing
from cnnlab.runtime.distributed import gathered
from cnnlab.runtime.errors import Complaints, ConfigError
from cnnlab.runtime.ranks import max_restarts, world_size
from cnnlab.version import __version__

OF_A_MACHINE = ("data.root", "data.workers", "data.memory_fraction", "observers", "trust")  # may differ among ranks
MOST_DIFFERENCES = 3


def check_alike(config: RunConfig) -> None:
    """Raises `ConfigError` on every rank where one has another config or other versions than the first."""
    versions = {"cnnlab": __version__, "torch": torch.__version__, "Python": platform.python_version()}
    of_ranks = gathered((versions, config.values, socket.gethostname()))
    (first_versions, first_values, _), *others = of_ranks
    for number, (versions, values, host) in enumerate(others, 1):
        found = differences(first_versions, versions) or {
            key: pair
            for key, pair in differences(first_values, values).items()
            if not any(f"{key}.".startswith(f"{one}.") for one in OF_A_MACHINE)
        }
        if found:
            shown = [f"{key} is {old!r} on rank 0 and {new!r} on rank {number}" for key, (old, new) in found.items()]
            mend = "run_dir on a file system that all machines share" if "resume" in found else "the same on every rank"
            raise ConfigError(f"torchrun: {'; '.join(shown[:MOST_DIFFERENCES])} ({host}): expected {mend}")


def check_same_data(digest: str) -> None:
    """Raises `ConfigError` on every rank where the training data of one are not those of the first."""
    of_ranks = gathered((digest, socket.gethostname()))
    for number, (other, host) in enumerate(of_ranks):
        if other != of_ranks[0][0]:
            raise ConfigError(
                f"data: the images or labels of rank {number} on {host} are not those of rank 0: expected the same "
                f"data on every machine"
            )


def check_restarts(config: RunConfig) -> None:
    """Raises `ConfigError` for a run that torchrun would start anew, from its first step, after a rank has failed."""
    values = config.values
    if max_restarts() and values.get("resume") is None and "resume=auto" not in config.given:
        raise ConfigError(
            f"resume: torchrun --max-restarts={max_restarts()} starts the command again, and that would be another "
            f"run: expected run_dir=PATH resume=auto"
        )


def check_ranks(plan: RunPlan) -> None:
    """Raises `ConfigError` with everything in the plan that several ranks cannot do together."""
    ranks, complaints = world_size(), Complaints()
    if ranks == 1:
        return
    settings, data = plan.settings, plan.data
    if data.batch_size < ranks:
        complaints.add(
            "data.batch_size", f"expected at least one image for each of the {ranks} ranks, received {data.batch_size}"
        )
    for name, step in plan.augment.items():
        if isinstance(step, Mixing):
            complaints.add(
                f"data.augment.{name}",
                f"it mixes images of the whole batch, of which each of the {ranks} ranks has a part: expected none",
            )
    if settings.watch_every is not None:
        complaints.add("trainer.watch_every", f"a step of {ranks} ranks cannot be watched: expected null")
    if settings.lr_find or plan.lr_is_auto:
        key, expected = ("trainer.lr_find", "false") if settings.lr_find else ("optimizer.lr", "a number")
        complaints.add(
            key, f"learning rates are tried by one rank, and torchrun has started {ranks}: expected {expected}"
        )
    if plan.execution.cuda_graph is True:
        complaints.add(
            "trainer.execution.cuda_graph", f"a captured step does not wait for {ranks} ranks: expected auto or false"
        )
    _check_loss(plan.loss, complaints)
    _check_parallel(plan, ranks, complaints)
    check_microbatches(plan.network, settings, data, plan.spec, complaints, ranks)
    complaints.raise_if_any()


def _check_loss(loss: nn.Module, complaints: Complaints) -> None:
    """A mean over the images is what ranks can weight by their numbers of images."""
    if type(loss).__module__ != nn.CrossEntropyLoss.__module__:
        return
    if getattr(loss, "weight", None) is not None:
        complaints.add(
            "loss.weight",
            f"{type(loss).__name__} divides by the weights in a rank's part of the batch: expected one of cnnlab's "
            f"losses, such as cross_entropy, which divide by the number of images",
        )
    if getattr(loss, "reduction", "mean") != "mean":
        complaints.add("loss.reduction", f"expected mean among several ranks, received {loss.reduction!r}")


def _check_parallel(plan: RunPlan, ranks: int, complaints: Complaints) -> None:
    """What exchanges within the passes needs as many of them on each rank, and is not compiled."""
    settings, data = plan.settings, plan.data
    chosen = {"parallel": settings.parallel == "ddp", "sync_batch_norm": settings.sync_batch_norm}
    last = 0 if data.drop_last else data.train_count(plan.spec) % data.batch_size
    for name in [name for name, wanted in chosen.items() if wanted]:
        key = f"trainer.{name}"
        if plan.execution.compile is True:
            complaints.add(key, "what ranks exchange within the passes cannot be compiled: expected compile=false")
        for size in filter(None, (data.batch_size, last)):
            fewest, most = (_microbatches(part, settings.accumulate) for part in (size // ranks, -(-size // ranks)))
            if not fewest or fewest != most:
                complaints.add(
                    key,
                    f"each of the {ranks} ranks needs as many microbatches as the others, and a batch of {size} images "
                    f"gives {fewest} to some and {most} to others: expected another data.batch_size, or "
                    f"data.drop_last=true",
                )


def _microbatches(images: int, accumulate: int) -> int:
    """How many `torch.chunk` makes."""
    return -(-images // -(-images // accumulate)) if images else 0
