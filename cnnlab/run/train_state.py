"""What learns, built from a blueprint, and how its steps are computed: chosen where the config leaves it open."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from cnnlab.config.run_plan import Blueprint
from cnnlab.data.normalization import Normalization, normalized
from cnnlab.engine.autotune import TakeStep, Trial, choose
from cnnlab.engine.backends.compilation import build_step, forget_compiled, missing_compiler, reason_against_step
from cnnlab.engine.backends.cuda_graph import reason_against_cuda_graph
from cnnlab.engine.checkpoint import Checkpoint
from cnnlab.engine.ema import EMA
from cnnlab.engine.execution import AUTO, Execution, allow_tf32, has_tf32
from cnnlab.engine.trainer import Learner
from cnnlab.run.loaders import load_weights
from cnnlab.run.starting_weights import put_in
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.errors import ArgumentError, ConfigError
from cnnlab.runtime.randomness import derive

KNOWN = ("cnnlab", "torch", "torchvision")  # packages whose modules leave no decision of a step to Python


def check_machine(blueprint: Blueprint) -> None:
    """Raises `ConfigError` for a precision, a compilation or a CUDA graph that this machine cannot do."""
    execution, device = blueprint.execution, blueprint.device
    try:
        execution.check(device)
    except ArgumentError as error:
        raise ConfigError(f"trainer.execution.{error}") from error
    missing = missing_compiler(device) if execution.compile not in ("none", AUTO) else None
    if missing:
        raise ConfigError(
            f"trainer.execution.compile: {execution.compile} needs {missing}, which is not here: expected none"
        )


def settle_execution(
    blueprint: Blueprint, normalization: Normalization, recorded: Mapping[str, Any]
) -> tuple[Blueprint, list[Trial]]:
    """The blueprint with nothing left `auto`, and what was timed for that; what is `recorded` is not timed again.

    Raises `ConfigError`.
    """
    by_rule = {"trace"} if blueprint.device.type == "cuda" else {"trace", "cuda_graph"}
    recorded = {name: value for name, value in recorded.items() if name not in by_rule}
    blueprint = replace(blueprint, execution=blueprint.execution.settle(recorded))
    check_machine(blueprint)
    if blueprint.execution.compile != "none":
        forget_compiled()
    chosen = replace(blueprint.execution, trace=False)
    trials: list[Trial] = []
    if not chosen.settled:
        chosen, trials = choose(
            chosen,
            _precisions(blueprint.device),
            _layouts(blueprint),
            _compiled(blueprint),
            lambda execution: _prepare(blueprint, execution, normalization),
            _captured(blueprint),
        )
    allow_tf32(chosen.precision == "tf32")
    return replace(blueprint, execution=replace(chosen, trace=_traced(blueprint, chosen))), trials


def _precisions(device: torch.device) -> list[str]:
    if device.type == "cpu":
        return ["fp32", "bf16"]
    return ["fp32", *(["tf32"] if has_tf32(device) else []), "bf16" if torch.cuda.is_bf16_supported() else "fp16"]


def _layouts(blueprint: Blueprint) -> list[str]:
    """channels_last first; without 4-D weights there is nothing to gain, and pictures would be copied."""
    with torch.device("meta"):
        pictures = any(parameter.dim() == 4 for parameter in blueprint.network.build().parameters())
    return ["channels_last", "contiguous"] if pictures else ["contiguous"]


def _compiled(blueprint: Blueprint) -> list[str]:
    if missing_compiler(blueprint.device) or blueprint.settings.watch_every is not None:
        return ["none"]
    return ["none", "network", *([] if reason_against_step(blueprint.optimizer, blueprint.schedule) else ["step"])]


def _captured(blueprint: Blueprint) -> list[bool]:
    if (
        blueprint.device.type != "cuda"
        or blueprint.settings.watch_every is not None
        or reason_against_cuda_graph(blueprint.optimizer, blueprint.schedule)
    ):
        return [False]
    return [False, True] if _leaves_nothing_to_python(blueprint) else [False]


def _traced(blueprint: Blueprint, execution: Execution) -> bool:
    """Not timed here: a run's first steps find out whether they are faster for it, since it moves no bit."""
    wanted = blueprint.execution.trace
    if wanted == AUTO:
        wanted = blueprint.device.type == "cpu" and _leaves_nothing_to_python(blueprint)
    return wanted is True and execution.allows_trace


def _leaves_nothing_to_python(blueprint: Blueprint) -> bool:
    """Not what somebody else wrote: what its Python decides in each step, a graph or a trace would decide once."""
    with torch.device("meta"):
        parts = [*blueprint.network.build().modules(), *blueprint.loss.modules()]
    return all(type(part).__module__.partition(".")[0] in KNOWN for part in parts)


def _prepare(blueprint: Blueprint, execution: Execution, normalization: Normalization) -> TakeStep:
    """The run's own step on weights of its own and on noise: a batch of uint8 pictures, normalised."""
    allow_tf32(execution.precision == "tf32")
    device, settings = blueprint.device, blueprint.settings
    learner = build_learner(replace(blueprint, execution=execution, loss=copy.deepcopy(blueprint.loss)), None)
    batch = _noise(blueprint, normalization)

    def take_step() -> float:
        allow_tf32(execution.precision == "tf32")
        result = learner.step(
            learner.network,
            learner.loss,
            learner.optimizer,
            batch,
            execution=execution,
            scaler=learner.scaler,
            accumulate=settings.accumulate,
            clip_norm=settings.clip_norm,
        )
        learner.schedule.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the loss alone does not wait for the update
        return float(result.loss)

    if device.type == "cuda":
        take_step()  # loads libraries and tries their kernels, for seconds
    return take_step


def _noise(blueprint: Blueprint, normalization: Normalization) -> Batch:
    generator = torch.Generator().manual_seed(derive(blueprint.seed, "timing"))
    count, spec = blueprint.data.batch_size, blueprint.spec
    x_NCHW = torch.randint(0, 256, (count, *spec.input_shape), generator=generator).float()
    target_N = torch.randint(0, spec.classes, (count,), generator=generator)
    return Batch(
        normalized(x_NCHW.to(blueprint.device), *normalization.tensors(blueprint.device)),
        target_N.to(blueprint.device),
        torch.arange(count, device=blueprint.device),
    )


def build_learner(
    blueprint: Blueprint, checkpoint: Checkpoint | None, say: Callable[[str], None] | None = None
) -> Learner:
    """The learner as the run begins, or with a checkpoint's weights; `say` is told if its steps cannot be traced."""
    torch.manual_seed(derive(blueprint.seed, "weights"))
    network = blueprint.network.build()
    if checkpoint:
        load_weights(network, checkpoint, trained=True)
    else:
        put_in(network, blueprint.starting_weights)
    network_on_device = blueprint.execution.place(network, blueprint.device)
    ema = EMA(network_on_device, blueprint.settings.ema) if blueprint.settings.ema is not None else None
    if ema and checkpoint:
        load_weights(ema.network, checkpoint)
    optimizer = blueprint.build_optimizer(network_on_device)
    return Learner(
        network_on_device,
        blueprint.loss.to(blueprint.device),
        optimizer,
        blueprint.build_schedule(optimizer),
        blueprint.execution,
        blueprint.execution.scaler(blueprint.device),
        ema,
        build_step(blueprint.execution, blueprint.data.batch_size, blueprint.settings.accumulate, say),
    )
