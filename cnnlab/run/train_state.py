"""What learns, built from a plan, and how its steps are computed: chosen where the config leaves it open."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from cnnlab.config.run_plan import RunPlan
from cnnlab.data.normalization import Normalization, normalized
from cnnlab.engine.autotune import TakeStep, Trial, choose
from cnnlab.engine.backends.compilation import build_step, forget_compiled, missing_compiler, reason_against_step
from cnnlab.engine.backends.cuda_graph import reason_against_cuda_graph
from cnnlab.engine.ema import EMA
from cnnlab.engine.execution import AUTO, Execution, allow_tf32, has_tf32
from cnnlab.engine.trainer import TrainState
from cnnlab.run.starting_weights import apply_weights
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.errors import ArgumentError, ConfigError
from cnnlab.runtime.randomness import derive

KNOWN = ("cnnlab", "torch", "torchvision")  # packages whose modules leave no decision of a step to Python


def check_machine(plan: RunPlan) -> None:
    """Raises `ConfigError` for a precision, a compilation or a CUDA graph that this machine cannot do."""
    execution, device = plan.execution, plan.device
    try:
        execution.check(device)
    except ArgumentError as error:
        raise ConfigError(f"trainer.execution.{error}") from error
    missing = missing_compiler(device) if execution.compile not in ("none", AUTO) else None
    if missing:
        raise ConfigError(
            f"trainer.execution.compile: {execution.compile} needs {missing}, which is not here: expected none"
        )


def resolve_execution(
    plan: RunPlan, normalization: Normalization, recorded: Mapping[str, Any]
) -> tuple[RunPlan, list[Trial]]:
    """The plan with nothing left `auto`, and what was timed for that; what is `recorded` is not timed again.

    Raises `ConfigError`.
    """
    by_rule = {"trace"} if plan.device.type == "cuda" else {"trace", "cuda_graph"}
    recorded = {name: value for name, value in recorded.items() if name not in by_rule}
    plan = replace(plan, execution=plan.execution.resolve(recorded))
    check_machine(plan)
    if plan.execution.compile != "none":
        forget_compiled()
    chosen = replace(plan.execution, trace=False)
    trials: list[Trial] = []
    if not chosen.resolved:
        chosen, trials = choose(
            chosen,
            _precisions(plan.device),
            _layouts(plan),
            _compiled(plan),
            lambda execution: _prepare(plan, execution, normalization),
            _captured(plan),
        )
    allow_tf32(chosen.precision == "tf32")
    return replace(plan, execution=replace(chosen, trace=_traced(plan, chosen))), trials


def _precisions(device: torch.device) -> list[str]:
    if device.type == "cpu":
        return ["fp32", "bf16"]
    return ["fp32", *(["tf32"] if has_tf32(device) else []), "bf16" if torch.cuda.is_bf16_supported() else "fp16"]


def _layouts(plan: RunPlan) -> list[str]:
    """channels_last first; without 4-D weights there is nothing to gain, and images would be copied."""
    with torch.device("meta"):
        images = any(parameter.dim() == 4 for parameter in plan.network.build().parameters())
    return ["channels_last", "contiguous"] if images else ["contiguous"]


def _compiled(plan: RunPlan) -> list[str]:
    if missing_compiler(plan.device) or plan.settings.watch_every is not None:
        return ["none"]
    return ["none", "network", *([] if reason_against_step(plan.optimizer, plan.schedule) else ["step"])]


def _captured(plan: RunPlan) -> list[bool]:
    if (
        plan.device.type != "cuda"
        or plan.settings.watch_every is not None
        or reason_against_cuda_graph(plan.optimizer, plan.schedule)
    ):
        return [False]
    return [False, True] if _leaves_nothing_to_python(plan) else [False]


def _traced(plan: RunPlan, execution: Execution) -> bool:
    """Not timed here: a run's first steps find out whether they are faster for it, since it moves no bit."""
    wanted = plan.execution.trace
    if wanted == AUTO:
        wanted = plan.device.type == "cpu" and _leaves_nothing_to_python(plan)
    return wanted is True and execution.allows_trace


def _leaves_nothing_to_python(plan: RunPlan) -> bool:
    """Not what somebody else wrote: what its Python decides in each step, a graph or a trace would decide once."""
    with torch.device("meta"):
        parts = [*plan.network.build().modules(), *plan.loss.modules()]
    return all(type(part).__module__.partition(".")[0] in KNOWN for part in parts)


def _prepare(plan: RunPlan, execution: Execution, normalization: Normalization) -> TakeStep:
    """The run's own step on weights of its own and on noise: a batch of uint8 images, normalised."""
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
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the loss alone does not wait for the update
        return float(result.loss)

    if device.type == "cuda":
        take_step()  # loads libraries and tries their kernels, for seconds
    return take_step


def _noise(plan: RunPlan, normalization: Normalization) -> Batch:
    generator = torch.Generator().manual_seed(derive(plan.seed, "timing"))
    count, spec = plan.data.batch_size, plan.spec
    x_NCHW = torch.randint(0, 256, (count, *spec.input_shape), generator=generator).float()
    target_N = torch.randint(0, spec.classes, (count,), generator=generator)
    return Batch(
        normalized(x_NCHW.to(plan.device), *normalization.tensors(plan.device)),
        target_N.to(plan.device),
        torch.arange(count, device=plan.device),
    )


def build_train_state(plan: RunPlan, say: Callable[[str], None] | None = None) -> TrainState:
    """The state as the run begins; `say` gets the reason if steps cannot be traced."""
    torch.manual_seed(derive(plan.seed, "weights"))
    network = plan.network.build()
    apply_weights(network, plan.starting_weights)
    network_on_device = plan.execution.place(network, plan.device)
    ema = EMA(network_on_device, plan.settings.ema) if plan.settings.ema is not None else None
    optimizer = plan.build_optimizer(network_on_device)
    return TrainState(
        network_on_device,
        plan.loss.to(plan.device),
        optimizer,
        plan.build_schedule(optimizer),
        plan.execution,
        plan.execution.scaler(plan.device),
        ema,
        build_step(plan.execution, plan.data.batch_size, plan.settings.accumulate, say),
    )
