"""The train state built from a plan, and how its steps are computed: chosen where the config says `auto`."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from cnnlab.config.run_plan import RunPlan
from cnnlab.data.normalization import Normalization, normalized
from cnnlab.engine.autotune import TakeStep, Trial, autotune, milliseconds_of
from cnnlab.engine.backends import build_step
from cnnlab.engine.backends.compiled import missing_compiler
from cnnlab.engine.backends.cuda_graph import reason_against_cuda_graph
from cnnlab.engine.ema import EMA
from cnnlab.engine.exchange import Alone, AmongRanks
from cnnlab.engine.execution import Execution, allow_tf32, has_tf32
from cnnlab.engine.lookahead import Lookahead
from cnnlab.engine.sync_batch_norm import synchronized
from cnnlab.engine.trainer import TrainState
from cnnlab.network.freeze import freeze_matching
from cnnlab.run.starting_weights import apply_weights
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.device import synchronize
from cnnlab.runtime.distributed import copied_from_first, from_first
from cnnlab.runtime.errors import ArgumentError, ConfigError
from cnnlab.runtime.randomness import derive
from cnnlab.runtime.ranks import rank, world_size

KNOWN = ("cnnlab", "torch", "torchvision")  # packages whose modules decide nothing in Python from step to step


def check_machine(plan: RunPlan) -> None:
    """Raises `ConfigError` for a precision, a compilation or a CUDA graph that this machine does not support."""
    execution, device = plan.execution, plan.device
    try:
        execution.check(device)
    except ArgumentError as error:
        raise ConfigError(f"trainer.execution.{error}") from error
    missing = missing_compiler(device) if execution.compile is True else None
    if missing:
        raise ConfigError(f"trainer.execution.compile: true needs {missing}, which is not here: expected false")


def resolve_execution(
    plan: RunPlan, normalization: Normalization, recorded: Mapping[str, Any]
) -> tuple[RunPlan, list[Trial]]:
    """The plan with nothing left `auto`, and what was timed for that; what is `recorded` is not timed again.

    Raises `ConfigError`.
    """
    if plan.device.type != "cuda":  # a run of a GPU's may be resumed without one
        recorded = {name: value for name, value in recorded.items() if name != "cuda_graph"}
    plan = replace(plan, execution=plan.execution.resolve(recorded))
    check_machine(plan)
    execution, trials = plan.execution, list[Trial]()
    if not execution.resolved:
        candidates: dict[str, Sequence[Any]] = {
            "precision": _precisions(plan.device),
            "layout": _layouts(plan),
            "compile": _compile_candidates(plan),
            "cuda_graph": _cuda_graph_candidates(plan),
        }
        execution, trials = from_first(
            lambda: autotune(execution, candidates, lambda option: _prepare(plan, option, normalization))
        )
    allow_tf32(execution.precision == "tf32")
    return replace(plan, execution=execution), trials


def _precisions(device: torch.device) -> list[str]:
    if device.type == "cpu":
        return ["fp32", "bf16"]
    if device.type == "mps":
        return ["fp32"]
    return ["fp32", *(["tf32"] if has_tf32(device) else []), "bf16" if torch.cuda.is_bf16_supported() else "fp16"]


def _layouts(plan: RunPlan) -> list[str]:
    """channels_last first; without 4-D weights it gains nothing, and images would be copied."""
    if plan.device.type == "mps":  # torch copies to contiguous there, and had errors where it did not
        return ["contiguous"]
    with torch.device("meta"):
        images = any(parameter.dim() == 4 for parameter in plan.network.build().parameters())
    return ["channels_last", "contiguous"] if images else ["contiguous"]


def _compile_candidates(plan: RunPlan) -> list[bool]:
    if plan.device.type == "mps" or plan.settings.parallel == "ddp":
        return [False]
    return [False, True] if not missing_compiler(plan.device) and _may_be_a_graph(plan) else [False]


def _cuda_graph_candidates(plan: RunPlan) -> list[bool]:
    if plan.device.type != "cuda" or world_size() > 1:
        return [False]
    captured = not reason_against_cuda_graph(plan.optimizer.components, plan.schedule) and _may_be_a_graph(plan)
    return [False, True] if captured else [False]


def _may_be_a_graph(plan: RunPlan) -> bool:
    """Not a watched step, and no user's module: what its Python decides in each step, a graph would decide once."""
    if plan.settings.watch_every is not None:
        return False
    with torch.device("meta"):
        modules = [*plan.network.build().modules(), *plan.loss.modules()]
    return all(type(module).__module__.partition(".")[0] in KNOWN for module in modules)


def _prepare(plan: RunPlan, execution: Execution, normalization: Normalization) -> TakeStep:
    """A step as the run takes it, on weights of its own and on noise: a batch of uint8 images, normalised."""
    allow_tf32(execution.precision == "tf32")
    device, settings = plan.device, plan.settings
    train_state = build_train_state(replace(plan, execution=execution, loss=copy.deepcopy(plan.loss)))
    batch = _noise(plan, normalization)

    def take_step() -> float:
        allow_tf32(execution.precision == "tf32")
        result = train_state.step(
            train_state.network,
            train_state.loss,
            train_state.optimizer,
            batch,
            execution=execution,
            scaler=train_state.scaler,
            accumulate=settings.accumulate,
            clip_norm=settings.clip_norm,
        )
        train_state.schedule.step()
        synchronize(device)  # the loss alone does not wait for the update
        return float(result.loss)

    if device.type == "cuda":
        take_step()  # loads libraries and tries their kernels, which takes seconds
    return take_step


def step_cost(plan: RunPlan, normalization: Normalization) -> dict[str, float]:
    """What a training step takes: `ms`, and on CUDA the `memory` in MB, its peak beside all that is resident."""
    on_cuda = plan.device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(plan.device)
    cost = {"ms": milliseconds_of(_prepare(plan, plan.execution, normalization))}
    if on_cuda:
        cost["memory"] = torch.cuda.max_memory_allocated(plan.device) / 1e6
    return cost


def _noise(plan: RunPlan, normalization: Normalization) -> Batch:
    generator = torch.Generator().manual_seed(derive(plan.seed, "timing"))
    count, spec = images_of_rank(plan), plan.spec
    x_NCHW = torch.randint(0, 256, (count, *spec.input_shape), generator=generator).float()
    target_N = torch.randint(0, spec.classes, (count,), generator=generator)
    return Batch(
        normalized(x_NCHW.to(plan.device), *normalization.tensors(plan.device)),
        target_N.to(plan.device),
        torch.arange(count, device=plan.device),
    )


def images_of_rank(plan: RunPlan) -> int:
    """How many images of a whole batch this rank gets."""
    return len(range(rank(), plan.data.batch_size, world_size()))


def build_train_state(plan: RunPlan, *, shared: bool = False) -> TrainState:
    """The state before the run's first step. One that is `shared` trains with that of the other ranks."""
    torch.manual_seed(derive(plan.seed, "weights"))
    network = plan.network.build()
    apply_weights(network, plan.starting_weights)
    together = shared and world_size() > 1
    if together and plan.settings.sync_batch_norm:
        network = synchronized(network)
    network_on_device = plan.execution.place(network, plan.device)
    copied_from_first([*network.parameters(), *network.buffers()] if together else [])
    in_buckets = together and plan.settings.parallel == "ddp"
    optimizer = plan.build_optimizer(network_on_device)
    train_state = TrainState(
        network_on_device,
        plan.loss.to(plan.device),
        optimizer,
        plan.build_schedule(optimizer),
        plan.execution,
        plan.execution.scaler(plan.device),
        _average(plan, network_on_device),
        partial(build_step, plan.execution, images_of_rank(plan), plan.settings.accumulate, in_buckets),
        partial(freeze_matching, network_on_device, plan.network.freeze),
        AmongRanks(network_on_device, gradients=not in_buckets) if together else Alone(),
    )
    train_state.begin_epoch(0)
    return train_state


def _average(plan: RunPlan, network: nn.Module) -> EMA | Lookahead | None:
    """The averaged weights that validation sees, where the settings ask for any."""
    settings = plan.settings
    if settings.lookahead is not None:
        return Lookahead(network, settings.lookahead, plan.total_steps)
    return None if settings.ema is None else EMA(network, settings.ema)
