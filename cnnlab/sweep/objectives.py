"""What is best: names of `summary.json`, each with its direction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cnnlab.runtime.errors import ConfigError, did_you_mean, listing
from cnnlab.sweep.settings import DIRECTIONS, MEASURED, SweepSettings

if TYPE_CHECKING:
    from cnnlab.config.run_plan import RunPlan

CONSTANTS = ("parameters", "macs", "seconds", *MEASURED)  # of a run: smaller is better


@dataclass(frozen=True)
class Objective:
    """A metric by its tag, or a constant of the run."""

    name: str
    maximize: bool

    @property
    def direction(self) -> str:
        return DIRECTIONS[0] if self.maximize else DIRECTIONS[1]

    @property
    def sign(self) -> int:
        return 1 if self.maximize else -1


def objectives(settings: SweepSettings, plan: "RunPlan") -> tuple[Objective, ...]:
    """Those of the settings; where they name none the run's monitor, and without one the accuracy on validation images.

    Raises `ConfigError`.
    """
    if settings.budget.get("memory") is not None and plan.device.type != "cuda":
        raise ConfigError("sweep.budget.memory: it is measured on CUDA: expected null beside device=cpu")
    monitor = plan.settings.monitor or ("accuracy/val" if plan.data.has_validation(plan.spec) else None)
    names = settings.metric or ((monitor,) if monitor else ())
    if not names:
        raise ConfigError("sweep.metric: expected a metric where nothing is held out for validation, received null")
    meter = plan.meter()
    falling = ["loss", *(meter.lower_is_better if meter else ())]
    metrics = ["accuracy", "loss", *(name for measure in plan.metrics for name in measure.names(plan.spec.class_names))]
    splits = ("val", "test") if plan.settings.monitor_test else ("val",)
    constants = [name for name in CONSTANTS if name != "memory" or plan.device.type == "cuda"]
    legal = [*(f"{metric}/{split}" for split in splits for metric in metrics), *constants]
    for name in names:
        _check_name(name, legal, plan)
    directions = settings.direction or tuple(
        DIRECTIONS[name in CONSTANTS or name.partition("/")[0] in falling] for name in names
    )
    return tuple(Objective(name, direction == DIRECTIONS[0]) for name, direction in zip(names, directions, strict=True))


def _check_name(name: str, legal: Sequence[str], plan: "RunPlan") -> None:
    if name not in legal:
        test = "; with trainer.monitor_test=true those of the test split, too" if name.endswith("/test") else ""
        near = "" if test else did_you_mean(name, legal)
        raise ConfigError(
            f"sweep.metric: expected one of {listing(legal)}, received {name!r};{near}".rstrip(";") + test
        )
    if name.endswith("/val") and not plan.data.has_validation(plan.spec):
        raise ConfigError(
            f"sweep.metric: {name} needs a validation split, but data.validation.count=0: expected another metric"
        )


def check_pruner(settings: SweepSettings, objective: Objective, plan: "RunPlan") -> None:
    """Raises `ConfigError` for a pruner that would have nothing to compare trials by while they run."""
    if settings.pruner is None:
        return
    if objective.name in CONSTANTS:
        raise ConfigError(
            f"sweep.pruner: {objective.name} is not measured at validations: expected null, received "
            f"{settings.pruner!r}"
        )
    if validations(plan, plan.total_steps or 0) < 2 and plan.total_steps is not None:
        raise ConfigError(
            f"sweep.pruner: it compares trials at their validations, and a run of {plan.total_steps} steps has fewer "
            f"than two: expected trainer.validate_every_steps, more epochs or null, received {settings.pruner!r}"
        )


def validations(plan: "RunPlan", step: int) -> int:
    return plan.settings.validations(step, plan.steps_per_epoch)
