"""The sections `optimizer`, `schedule` and `trainer`, `trainer.execution` among it."""

from collections.abc import Mapping
from dataclasses import fields
from itertools import pairwise, product
from typing import Any

import torch
from torch import nn

from cnnlab.components import Component, Registry, Trust, attempt, bind, build_settings
from cnnlab.config.run_plan import build_schedule
from cnnlab.config.sections import as_mapping, as_spec
from cnnlab.data.mixing import Mixing
from cnnlab.data.per_image import Augmentation
from cnnlab.data.settings import DataSettings
from cnnlab.data.source import DataSpec
from cnnlab.engine import optimization
from cnnlab.engine.backends.cuda_graph import reason_against_cuda_graph
from cnnlab.engine.execution import Execution
from cnnlab.engine.lookahead import LookaheadSettings
from cnnlab.engine.lr_range_test import FIRST
from cnnlab.engine.muon import Muon
from cnnlab.engine.optimization import OPTIMIZERS, OptimizerPlan, build_optimizer
from cnnlab.engine.schedule import CYCLING, SCHEDULES, Cycle, changes_momentum, cycles
from cnnlab.engine.settings import TrainerSettings
from cnnlab.network import NetworkPlan
from cnnlab.runtime.checks import integer, number
from cnnlab.runtime.errors import Complaints, listing, no_such_key

OPTIMIZER = Registry("optimizer", OPTIMIZERS, torch.optim.Optimizer, ("torch.optim",))
SCHEDULE = Registry("schedule", SCHEDULES, torch.optim.lr_scheduler.LRScheduler, ("torch.optim.lr_scheduler",))
TRAINER_KEYS = ("deterministic", "execution")  # beside the fields of TrainerSettings
PROVIDED_TO_SCHEDULES = ("optimizer", "total_steps", "steps_per_epoch")


def check_optimizer(
    given: Any, network: NetworkPlan | None, complaints: Complaints, trust: Trust
) -> OptimizerPlan | None:
    """The optimizer and what differs for some parameters, tried on the network without weights."""
    section = as_spec(given)
    groups, rest = section.pop("groups", {}), section.pop("rest", None)
    layer_decay = section.pop("layer_decay", None)
    if is_auto(given):
        section["lr"] = FIRST
    component = _bind_optimizer(section, "optimizer", complaints, trust)
    if component is None:
        return None
    names: list[str] = []
    with torch.device("meta"):
        skeleton = network.build() if network else None
    if skeleton is not None:
        names = [name for name, parameter in skeleton.named_parameters() if parameter.requires_grad]
        if not names:
            complaints.add("model.blocks", "no block has a parameter: there is nothing to train")
    before = len(complaints.messages)
    if isinstance(groups, Mapping):
        groups = {name: _bind_group(name, group, complaints, trust) for name, group in groups.items()}
    plan = OptimizerPlan(
        component,
        optimization.check_optimizer(component, groups, names, complaints),
        _check_rest(component, rest, complaints, trust),
        _check_layer_decay(layer_decay, complaints),
    )
    if skeleton is not None and names and len(complaints.messages) == before:
        attempt(lambda: plan.build(skeleton), complaints)
    return plan


def _bind_optimizer(section: Any, key: str, complaints: Complaints, trust: Trust) -> Component | None:
    return bind(section, key, OPTIMIZER, complaints, withheld=("params",), trust=trust)


def _bind_group(pattern: object, group: Any, complaints: Complaints, trust: Trust) -> Any:
    """A group with a `type` as the optimizer that it names; any other as it is."""
    if not isinstance(group, Mapping) or "type" not in group:
        return group
    component = _bind_optimizer(group, f"optimizer.groups.{pattern}", complaints, trust)
    return component or {"lr": 0.0}  # complained about already


def _check_rest(component: Component, given: Any, complaints: Complaints, trust: Trust) -> Component | None:
    """`optimizer.rest`, which muon needs and no other takes."""
    takes_rest = component.factory is Muon
    if given is None:
        if takes_rest:
            complaints.add(
                "optimizer.rest",
                "muon updates the weights of hidden layers alone: expected an optimizer for all else, such as adamw",
            )
        return None
    if not takes_rest:
        complaints.add(
            "optimizer.rest",
            f"{component.type} updates every parameter: expected no rest beside it; remove it with '~optimizer.rest', "
            f"and name an optimizer of their own for some parameters in optimizer.groups",
        )
        return None
    rest = _bind_optimizer(given, "optimizer.rest", complaints, trust)
    if rest is not None:
        optimization.check_component(rest, complaints)
    return rest


def _check_layer_decay(given: Any, complaints: Complaints) -> float | None:
    if given is None:
        return None
    return attempt(lambda: number("optimizer.layer_decay", given, 0, 1, open_minimum=True), complaints)


def is_auto(optimizer: Any) -> bool:
    """True if the learning rate is to be found when the run starts."""
    return isinstance(optimizer, Mapping) and optimizer.get("lr") == "auto"


def check_trainer(given: Any, complaints: Complaints) -> TrainerSettings | None:
    """The trainer's settings, without the keys that have a check of their own."""
    section = as_mapping(given, "trainer", complaints)
    names = [field.name for field in fields(TrainerSettings)]
    for name in section:
        if name not in (*names, *TRAINER_KEYS):
            complaints.add(f"trainer.{name}", no_such_key(name, [*names, *TRAINER_KEYS]))
    settings = {name: section[name] for name in names if name in section}
    if settings.get("lookahead") is not None:
        given = as_mapping(settings["lookahead"], "trainer.lookahead", complaints)
        settings["lookahead"] = build_settings(LookaheadSettings, given, "trainer.lookahead", complaints)
    return build_settings(TrainerSettings, settings, "trainer", complaints)


def check_trainer_against_data(
    settings: TrainerSettings | None, data: DataSettings | None, spec: DataSpec | None, complaints: Complaints
) -> None:
    """What the trainer wants of the data: enough images in a batch, and the splits that it measures."""
    if settings is None or data is None or spec is None:
        return
    if settings.accumulate > data.batch_size:
        complaints.add(
            "trainer.accumulate",
            f"expected at most data.batch_size={data.batch_size}, received {settings.accumulate}",
        )
    if not data.has_validation(spec) and (settings.monitor or "").endswith("/val"):
        complaints.add(
            "trainer.monitor",
            f"{settings.monitor} needs a validation split, but data.validation.count=0: expected "
            f"trainer.monitor=null or a count",
        )
    if settings.monitor_test and "test" not in spec.counts:
        complaints.add("trainer.monitor_test", "the data have no test split: expected false")


def check_microbatches(
    network: NetworkPlan | None,
    settings: TrainerSettings | None,
    data: DataSettings | None,
    spec: DataSpec | None,
    complaints: Complaints,
    ranks: int = 1,
) -> None:
    """A batch norm has to get more than one value per channel from the smallest microbatch of an epoch."""
    if network is None or settings is None or data is None or spec is None or complaints.messages:
        return
    images = data.train_count(spec)
    sizes = {f"a batch of data.batch_size={data.batch_size}": min(data.batch_size, images)}
    rest = images % data.batch_size
    if rest and not data.drop_last:
        sizes[f"the last batch of an epoch ({images} mod {data.batch_size} = {rest} images)"] = rest
    for (batch, whole), smaller in product(sizes.items(), (False, True)):
        size = whole // ranks if smaller else -(-whole // ranks)  # of one rank
        if not size:
            continue
        largest = -(-size // settings.accumulate)  # the others have as many images, the last what is left
        if (size % largest or largest) == 1 and (layer := rejects_one_image(network)):
            if ranks > 1:
                batch += f" among {ranks} ranks"
            parts = f"in trainer.accumulate={settings.accumulate} microbatches " if settings.accumulate > 1 else ""
            mend = ", or data.drop_last=true" if whole == rest else ""
            complaints.add(
                "trainer.accumulate" if settings.accumulate > 1 else "data.batch_size",
                f"{batch} {parts}leaves a single image, and the layer {layer!r} needs more than one value per channel "
                f"for a variance: expected another batch_size or accumulate{mend}",
            )
            return


def rejects_one_image(network: NetworkPlan) -> str | None:
    """The path of the layer, such as a batch norm after global pooling, that cannot train on a single image."""
    called: list[str] = []
    with torch.device("meta"):
        skeleton = network.build()
        for name, module in skeleton.named_modules():
            module.register_forward_pre_hook(lambda module, arguments, name=name: called.append(name))
        try:
            skeleton(torch.zeros(1, *network.input_shape))
        except ValueError as error:
            if "Expected more than 1 value per channel" in str(error):  # torch.nn.functional.batch_norm
                return called[-1]
        except Exception:  # a block of the user's own that does without a meta device
            return None
    return None


def check_features(
    settings: TrainerSettings | None,
    network: NetworkPlan | None,
    data: DataSettings | None,
    augment: Mapping[str, Augmentation | Mixing],
    complaints: Complaints,
) -> None:
    """Stored views are for frozen layers, and of images that are augmented one by one, once an epoch."""
    views = settings.views if settings else None
    if views is None or network is None or data is None:
        return
    mixing = [name for name, step in augment.items() if isinstance(step, Mixing)]
    own = [name for name, step in augment.items() if type(step).__module__.partition(".")[0] != "cnnlab"]
    problems = {
        "no layer is frozen: expected auto, or model.freeze": not network.freeze,
        f"data.augment.{listing(mixing[:1])} joins images of a batch: expected auto": bool(mixing),
        f"data.augment.{listing(own[:1])} is your own, and its changes would go unnoticed: expected auto": bool(own),
        "an image may come twice in an epoch: expected auto, or data.sampling=shuffle": data.sampling != "shuffle",
    }
    for problem, holds in problems.items():
        if holds:
            complaints.add("trainer.features", f"{views} views cannot be stored, since {problem}")
            return


def check_execution(trainer: Any, complaints: Complaints) -> Execution | None:
    """`trainer.execution`."""
    given = trainer.get("execution") if isinstance(trainer, Mapping) else {}
    if not isinstance(given, Mapping):
        names = ", ".join(field.name for field in fields(Execution))
        complaints.add("trainer.execution", f"expected a mapping of {names}, received {given!r}")
        return None
    return build_settings(Execution, given, "trainer.execution", complaints)


def check_deterministic(trainer: Any, complaints: Complaints) -> Any:
    """`trainer.deterministic`: true, false or auto."""
    given = trainer.get("deterministic", "auto") if isinstance(trainer, Mapping) else "auto"
    if given not in (True, False, "auto"):
        complaints.add("trainer.deterministic", f"expected true, false or auto, received {given!r}")
    return given


def check_precision(
    execution: Execution | None, network: NetworkPlan | None, device: torch.device | None, complaints: Complaints
) -> None:
    """torch has no kernel for an LSTM in fp16 on a CPU."""
    if not (execution and network and device) or (execution.precision, device.type) != ("fp16", "cpu"):
        return
    with torch.device("meta"):
        modules = network.build().named_modules()
    lstms = [name for name, module in modules if isinstance(module, nn.LSTM)]
    if lstms:
        complaints.add(
            "trainer.execution.precision",
            f"torch does not compute an LSTM in fp16 on a CPU, and {lstms[0]} is one: expected bf16 or fp32",
        )


def check_compilation(
    execution: Execution | None,
    optimizer: OptimizerPlan | None,
    schedule: Component | None,
    settings: TrainerSettings | None,
    complaints: Complaints,
) -> None:
    """A captured step must allow the optimizer and the schedule; a watched one is neither compiled nor captured."""
    if settings and settings.watch_every is not None:
        for name in ("compile", "cuda_graph"):
            if getattr(execution, name, None) is True:
                complaints.add(
                    "trainer.watch_every",
                    f"a step is watched from Python, which trainer.execution.{name}=true bypasses: expected "
                    f"{name}=false, or watch_every=null",
                )
    if execution and execution.cuda_graph is True and optimizer and schedule:
        reason = reason_against_cuda_graph(optimizer.components, schedule)
        if reason:
            complaints.add("trainer.execution.cuda_graph", f"{reason}; expected auto or false")


def check_schedule_against_optimizer(
    schedule: Component | None, optimizer: OptimizerPlan | None, complaints: Complaints
) -> None:
    """Two schedulers of torch's set momentum and lr themselves, whatever the optimizer's groups have."""
    if schedule is None or optimizer is None or schedule.factory not in CYCLING:
        return
    if changes_momentum(schedule) and len(optimizer.components) > 1:
        types = " and ".join(one.type for one in optimizer.components)
        complaints.add(
            "schedule.cycle_momentum",
            f"{schedule.type} sets the momentum of one optimizer, not of {types}: expected false",
        )
    if optimizer.layer_decay is not None:
        complaints.add(
            "optimizer.layer_decay",
            f"{schedule.type} sets one lr for every layer: expected schedule=one_cycle, or another",
        )


def check_schedule(
    given: Any, settings: TrainerSettings | None, steps_per_epoch: int | None, complaints: Complaints, trust: Trust
) -> tuple[Component | None, list[Cycle]]:
    """The schedule and its cycles; their length is its own `total_steps` or the run's, None where unbounded."""
    section = as_spec(given)
    own = section.pop("total_steps", None)
    restarts = section.pop("restarts", [])
    if section.pop("restart", False):
        complaints.add(
            "schedule.restart",
            "it begins a new cycle in a resumed run: expected resume=RUN beside it, and a longer trainer.epochs",
        )
    if own is not None and attempt(lambda: integer("schedule.total_steps", own, 1), complaints) is None:
        return None, []
    total = settings.total_steps(steps_per_epoch) if settings and steps_per_epoch else None
    if not _check_restarts(restarts, total, complaints):
        return None, []
    made = cycles(total, own, restarts)
    length = made[-1][1]
    component = bind(
        section,
        "schedule",
        SCHEDULE,
        complaints,
        provided=PROVIDED_TO_SCHEDULES,
        constants={} if length is None else {"total_steps": length},
        trust=trust,
    )
    if component is None or not _check_scheduler(component, bool(restarts), complaints):
        return None, made
    if "total_steps" in component.parameters and length is None:
        if settings and steps_per_epoch:  # otherwise the complaint about trainer or data explains it
            complaints.add(
                "schedule.total_steps",
                f"{component.type} needs the run's length, which max_time alone does not give: expected "
                f"trainer.epochs, trainer.max_steps or schedule.total_steps",
            )
        return None, made
    if length and steps_per_epoch:
        _try_schedule(component, made, steps_per_epoch, complaints)
    return component, made


def _check_restarts(restarts: Any, total: int | None, complaints: Complaints) -> bool:
    """Whether the steps increase and lie within the run, with a complaint where they do not."""
    whole = isinstance(restarts, list) and all(type(step) is int for step in restarts)
    increasing = whole and all(before < step for before, step in pairwise([0, *restarts]))
    if increasing and (not restarts or not total or restarts[-1] < total):
        return True
    end = f" before the run's end at step {total}" if total else ""
    complaints.add("schedule.restarts", f"expected a list of increasing steps{end}, received {restarts!r}")
    return False


def _check_scheduler(component: Component, restarted: bool, complaints: Complaints) -> bool:
    """Whether a scheduler of torch's can be used, with a complaint where it cannot."""
    if component.factory is torch.optim.lr_scheduler.ReduceLROnPlateau:
        complaints.add(
            "schedule.type",
            "ReduceLROnPlateau waits for a metric, while schedules here are functions of the step: expected "
            "another, such as cosine or step",
        )
        return False
    if restarted and isinstance(component.factory, type):
        complaints.add(
            "schedule.restarts",
            f"{component.type} keeps its position in a state of its own, which begins no new cycle: expected one of "
            f"{listing(SCHEDULES)}",
        )
        return False
    return True


def _try_schedule(component: Component, made: list[Cycle], steps_per_epoch: int, complaints: Complaints) -> None:
    """Builds the schedule around a small optimizer and takes a step, to collect what it refuses."""
    sgd = Component("optimizer", "sgd", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})
    optimizer = build_optimizer(sgd, nn.Linear(1, 1), {})  # torch's own step would import its compiler
    schedule = attempt(lambda: build_schedule(component, optimizer, made, steps_per_epoch), complaints)
    optimizer.step()  # before the schedule's, or torch warns
    try:
        if schedule is not None:
            schedule.step()
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        complaints.add_error("schedule", error)


def schedule_depends_on_length(schedule: Mapping[str, Any]) -> bool:
    """Whether another length of the run would change the learning rate of its earlier steps."""
    if schedule.get("total_steps") is not None:
        return False
    component = bind(
        {key: value for key, value in schedule.items() if key not in ("total_steps", "restarts")},
        "schedule",
        SCHEDULE,
        Complaints(),
        provided=PROVIDED_TO_SCHEDULES,
        constants={"total_steps": 0},
    )
    return component is not None and ("total_steps" in component.parameters or "total_steps" in schedule.values())
