"""Everything a run is made of, checked and not yet built."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from cnnlab.components import Component
from cnnlab.config.auto import Resolved
from cnnlab.config.init_from import InitFrom
from cnnlab.config.published import Published
from cnnlab.data.augmentation import Augmentation
from cnnlab.data.file_source import FileSource
from cnnlab.data.mixing import Mixing
from cnnlab.data.placement import Placement, place
from cnnlab.data.settings import DataSettings
from cnnlab.data.source import DataSpec, Source
from cnnlab.engine.execution import Execution
from cnnlab.engine.optimization import OptimizerPlan
from cnnlab.engine.schedule import Cycle, LRScheduler, Schedule, in_cycles
from cnnlab.engine.settings import TrainerSettings
from cnnlab.losses import probabilities
from cnnlab.metrics import Measure, Meter
from cnnlab.network import NetworkPlan
from cnnlab.observers import Observer


@dataclass(frozen=True)
class RunPlan:
    """Everything a run is made of, checked and not yet built."""

    name: str
    run_dir: Path | None
    seed: int
    device: torch.device
    deterministic: bool
    source: Source
    spec: DataSpec
    data: DataSettings
    network: NetworkPlan
    init_from: InitFrom | None
    loss: nn.Module
    optimizer: OptimizerPlan
    schedule: Component
    cycles: list[Cycle]  # of the schedule
    settings: TrainerSettings
    execution: Execution
    observers: list[Observer]
    metrics: list[Measure]
    augment: Mapping[str, Augmentation | Mixing]
    published: Published | None
    lr_is_auto: bool = False  # a placeholder stands in the optimizer, until a learning rate is found
    auto: Resolved = field(default_factory=Resolved)  # what auto became, for the run's config
    features: bool = False  # stored, where the network and the machine allow it; decided when the run begins
    starting_weights: Mapping[str, Tensor] = field(default_factory=dict)  # read where a run begins

    @property
    def steps_per_epoch(self) -> int:
        return self.data.steps_per_epoch(self.spec)

    @property
    def total_steps(self) -> int | None:
        return self.settings.total_steps(self.steps_per_epoch)

    @cached_property
    def placement(self) -> Placement:
        """Where the images lie, decided by the memory that is free when this is first asked for."""
        return place(self.data, self.spec, self.device, mapped=isinstance(self.source, FileSource))

    def meter(self) -> Meter | None:
        """Measures the named metrics, where there are any."""
        if not self.metrics:
            return None
        return Meter(self.metrics, self.spec.class_names, partial(probabilities, self.loss), self.device)

    def build_optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        return self.optimizer.build(network)

    def build_schedule(self, optimizer: torch.optim.Optimizer) -> LRScheduler:
        return build_schedule(self.schedule, optimizer, self.cycles, self.steps_per_epoch)


def build_schedule(
    component: Component, optimizer: torch.optim.Optimizer, cycles: Sequence[Cycle], steps_per_epoch: int
) -> LRScheduler:
    """One of ours around its pure function of the step, anew in each cycle, or a scheduler of torch's."""
    built = []
    for _, length in cycles:
        known = {"optimizer": optimizer, "total_steps": length, "steps_per_epoch": steps_per_epoch}
        wanted = component.parameters.keys() & known.keys() - component.arguments.keys()
        built.append(component.build(**{name: known[name] for name in wanted}))
    if "optimizer" in wanted:
        assert len(cycles) == 1
        return cast(LRScheduler, built[0])
    return Schedule(optimizer, in_cycles([start for start, _ in cycles], built))
