"""A config, checked whole before anything is loaded or written; every complaint comes in one error."""

import inspect
import re
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cnnlab.blocks.activation import Step, TwoClasses
from cnnlab.components import Component, Registry, Trust, bind, bind_arguments, find_factory, split_spec
from cnnlab.config.init_from import InitFrom
from cnnlab.config.published import Published
from cnnlab.config.run_plan import RunPlan, build_schedule
from cnnlab.data import SOURCES
from cnnlab.data.augmentation import AUGMENTATIONS, Augmentation
from cnnlab.data.mixing import Mixing
from cnnlab.data.normalization import check_normalization
from cnnlab.data.settings import SETTINGS, DataSettings
from cnnlab.data.source import DataSpec, Source
from cnnlab.engine.backends.compilation import reason_against_step
from cnnlab.engine.backends.cuda_graph import reason_against_cuda_graph
from cnnlab.engine.execution import Execution
from cnnlab.engine.optimization import OPTIMIZERS, build_optimizer, check_optimizer
from cnnlab.engine.schedule import SCHEDULES
from cnnlab.engine.trainer import TrainerSettings
from cnnlab.losses import LOSSES, ClassWeighted, takes
from cnnlab.metrics import Measure, build_metrics
from cnnlab.network import NetworkPlan, plan_network
from cnnlab.network.read import Reader
from cnnlab.network.shape_inference import format_shape
from cnnlab.observers import OBSERVERS, Observer
from cnnlab.runtime.checks import integer
from cnnlab.runtime.device import machine_memory, select_device
from cnnlab.runtime.errors import ArgumentError, Complaints, ConfigError, did_you_mean, listing, no_such_key

SOURCE = Registry("data source", SOURCES, Source)
LOSS = Registry("loss", LOSSES, nn.Module, ("torch.nn",))
OPTIMIZER = Registry("optimizer", OPTIMIZERS, torch.optim.Optimizer, ("torch.optim",))
SCHEDULE = Registry("schedule", SCHEDULES, torch.optim.lr_scheduler.LRScheduler, ("torch.optim.lr_scheduler",))
AUGMENTATION = Registry("augmentation", AUGMENTATIONS, Augmentation)
OBSERVER = Registry("observer", OBSERVERS, Observer)
KEYS = (
    "name",
    "run_dir",
    "seed",
    "device",
    "resume",
    "trust",
    "published",
    "data",
    "model",
    "loss",
    "metrics",
    "optimizer",
    "schedule",
    "trainer",
    "observers",
)
MODEL_KEYS = ("init", "init_from", "freeze", "blocks")
RUN_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
PROVIDED_TO_SCHEDULES = ("optimizer", "total_steps", "steps_per_epoch")
ACTIVATIONS = (nn.Softmax, nn.Sigmoid, nn.Tanh, nn.LogSoftmax, Step, TwoClasses)


def schedule_depends_on_length(schedule: Mapping[str, Any]) -> bool:
    """Whether another length of the run would change the learning rate of its earlier steps."""
    if schedule.get("total_steps") is not None:
        return False
    component = bind(
        {key: value for key, value in schedule.items() if key != "total_steps"},
        "schedule",
        SCHEDULE,
        Complaints(),
        provided=PROVIDED_TO_SCHEDULES,
        constants={"total_steps": 0},
    )
    return component is not None and ("total_steps" in component.parameters or "total_steps" in schedule.values())


def check_config(config: Mapping[str, Any], trust: Trust, spec: DataSpec | None = None) -> RunPlan:
    """Checks a resolved config. Raises `ConfigError` with every complaint, one a line.

    `spec` is what a saved run knows of its data, which need not be there any more.
    """
    complaints = Complaints()
    checker = _Checker(config, trust, complaints, spec)
    plan = checker.check()
    complaints.raise_if_any()
    assert plan is not None
    return plan


class _Checker:
    """Goes through the config's sections; each leaves what it could check, and its complaints."""

    def __init__(
        self, config: Mapping[str, Any], trust: Trust, complaints: Complaints, spec: DataSpec | None = None
    ) -> None:
        self.config = config
        self.known_spec = spec
        self.trust = trust
        self.complaints = complaints

    def check(self) -> RunPlan | None:
        self._keys()
        self._run()
        source, data = self._data()
        spec = self.known_spec or (self._value(source.describe) if source else None)
        augment = self._augment(data, spec)
        steps = self._steps_per_epoch(data, spec)
        network = self._network(spec)
        init_from = self._init_from()
        loss = self._loss(network, spec)
        optimizer, groups = self._optimizer(network)
        settings, execution, deterministic = self._trainer(data, spec)
        metrics = self._metrics(settings, spec)
        total = settings.total_steps(steps) if settings and steps else None
        length_known = settings is not None and steps is not None
        schedule, schedule_steps = self._schedule(total, steps, length_known)
        self._compilation(execution, optimizer, schedule, settings)
        observers = self._observers()
        device = self._device()
        published = self._published()
        if self.complaints.messages:
            return None
        assert source
        assert spec
        assert data
        assert network
        assert loss
        assert optimizer
        assert schedule
        assert settings
        assert execution
        assert device
        return RunPlan(
            name=self.config["name"],
            run_dir=Path(self.config["run_dir"]) if self.config["run_dir"] else None,
            seed=self.config["seed"],
            device=device,
            deterministic=device.type == "cpu" if deterministic == "auto" else deterministic,
            source=source,
            spec=spec,
            data=data,
            network=network,
            init_from=init_from,
            loss=loss,
            optimizer=optimizer,
            groups=groups,
            schedule=schedule,
            schedule_steps=schedule_steps,
            settings=settings,
            execution=execution,
            observers=observers,
            metrics=metrics,
            augment=augment,
            published=published,
        )

    def _keys(self) -> None:
        for key in self.config:
            if key not in KEYS:
                self.complaints.add(str(key), no_such_key(key, KEYS))
        missing = [key for key in KEYS if key not in self.config]
        if missing:
            raise ConfigError(f"{missing[0]}: it is missing; expected all of {listing(KEYS)}")

    def _run(self) -> None:
        name = self.config["name"]
        if not isinstance(name, str) or not RUN_NAME.fullmatch(name) or set(name) <= {"."}:
            self.complaints.add("name", f"expected 1 to 64 letters, digits, '.', '_' or '-', received {name!r}")
        self._value(lambda: integer("seed", self.config["seed"], 0))
        run_dir = self.config["run_dir"]
        if run_dir is not None and not isinstance(run_dir, str):
            self.complaints.add("run_dir", f"expected a path or null, received {run_dir!r}")

    def _value(self, check: Any) -> Any:
        """Runs a check; its complaint is kept and None returned."""
        try:
            return check()
        except ConfigError as error:
            self.complaints.add("", str(error))
            return None

    def _device(self) -> torch.device | None:
        device: torch.device | None = self._value(lambda: select_device(self.config["device"]))
        return device

    def _section(self, key: str) -> dict[str, Any]:
        section = self.config[key]
        if isinstance(section, Mapping):
            return dict(section)
        self.complaints.add(key, f"expected a mapping, received {section!r}")
        return {}

    def _augment(self, data: DataSettings | None, spec: DataSpec | None) -> dict[str, Augmentation | Mixing]:
        """The augmentations in their order, by name; complains of one that is too large for the data's images."""
        built: dict[str, Augmentation | Mixing] = {}
        for name, given in (data.augment if data else {}).items():
            key = f"data.augment.{name}"
            component = bind(given, key, AUGMENTATION, self.complaints, trust=self.trust) if given is not None else None
            step = self._value(component.build) if component else None
            if step is None:
                continue
            built[str(name)] = step
            if spec and isinstance(step, Augmentation):
                try:
                    step.check(spec.input_shape)
                except ArgumentError as error:
                    self.complaints.add_error(key, error)
        return built

    def _data(self) -> tuple[Source | None, DataSettings | None]:
        section = self._section("data")
        given = {name: section.pop(name) for name in SETTINGS if name in section}
        data = self._bound(DataSettings, given, "data")
        own = self._arguments_of_source(section)
        for name in list(section):
            near = "" if name in own else did_you_mean(name, SETTINGS)
            if near:  # a misspelt setting would be taken for an argument of the source
                self.complaints.add(f"data.{name}", f"there is no such key;{near}")
                del section[name]
        component = bind(section, "data", SOURCE, self.complaints, trust=self.trust)
        source = self._value(component.build) if component else None
        return source, data

    def _arguments_of_source(self, section: Mapping[str, Any]) -> Collection[str]:
        """The names that the source takes; none where there is no such source, which is told elsewhere."""
        try:
            name, _ = split_spec(section, "data")
            return inspect.signature(find_factory(name, "data", SOURCE, self.trust)).parameters
        except ConfigError:
            return ()

    def _bound(self, factory: Any, given: Mapping[str, Any], key: str) -> Any:
        """A dataclass of settings from a section of the config, or None with complaints."""
        before = len(self.complaints.messages)
        bound = bind_arguments(factory, given, key, key, self.complaints)
        if len(self.complaints.messages) > before:
            return None
        return self._value(Component(key, key, factory, bound).build)

    def _steps_per_epoch(self, data: DataSettings | None, spec: DataSpec | None) -> int | None:
        if data is None or spec is None:
            return None
        try:
            check_normalization(data.normalize, spec.input_shape[0])
            return data.steps_per_epoch(spec)
        except ArgumentError as error:
            self.complaints.add_error("data", error)
            return None

    def _network(self, spec: DataSpec | None) -> NetworkPlan | None:
        section = self._section("model")
        for name in section:
            if name not in MODEL_KEYS:
                self.complaints.add(f"model.{name}", no_such_key(name, MODEL_KEYS))
        if spec is None:  # the blocks' own mistakes are told all the same
            Reader(self.complaints, {"classes": 2}, self.trust).read(section.get("blocks"), "model.blocks")
            return None
        plan = plan_network(
            spec.input_shape,
            section.get("blocks"),
            self.complaints,
            classes=spec.classes,
            trust=self.trust,
            **{name: section[name] for name in ("init", "freeze") if name in section},
        )
        if plan and plan.output_shape != (spec.classes,):
            last = plan.layers[-1].component.key
            self.complaints.add(
                last,
                f"the network's output is {format_shape(plan.output_shape)}: expected {spec.classes}, one number for "
                f"each of the {spec.classes} classes of the data, as {{type: linear, out_features: classes}} gives"
                + (", or two_classes behind one neuron's activation" if spec.classes == 2 else ""),
            )
        if plan:
            self._check_memory(plan)
        return plan

    def _init_from(self) -> InitFrom | None:
        model = self.config["model"]
        given = model.get("init_from") if isinstance(model, Mapping) else None
        if given is None:
            return None
        if not isinstance(given, str | Mapping):
            self.complaints.add("model.init_from", f"expected a path or a mapping with one, received {given!r}")
            return None
        settings = {"path": given} if isinstance(given, str) else given
        init_from: InitFrom | None = self._bound(InitFrom, settings, "model.init_from")
        return init_from

    def _published(self) -> Published | None:
        given = self.config["published"]
        if given is None:
            return None
        if not isinstance(given, Mapping):
            self.complaints.add("published", f"expected a mapping of figure, value and source, received {given!r}")
            return None
        published: Published | None = self._bound(Published, given, "published")
        return published

    def _check_memory(self, plan: NetworkPlan) -> None:
        """Weights and gradients in fp32 are the least that training needs."""
        needed = 2 * 4 * sum(row.parameters for row in plan.rows)
        there = machine_memory()
        if needed > there:
            self.complaints.add(
                "model.blocks",
                f"weights and gradients of {needed // 8:,} parameters take {needed / 1e9:,.0f} GB, and this machine "
                f"has {there / 1e9:,.0f}: expected a smaller network",
            )

    def _loss(self, network: NetworkPlan | None, spec: DataSpec | None) -> nn.Module | None:
        component = bind(self.config["loss"], "loss", LOSS, self.complaints, trust=self.trust)
        loss: nn.Module | None = self._value(component.build) if component else None
        if isinstance(loss, ClassWeighted) and spec:
            try:
                loss.check_classes(spec.classes)
            except ArgumentError as error:
                self.complaints.add_error("loss", error)
        if loss is None or network is None:
            return loss
        last = network.layers[-1]
        gives_activations = issubclass(network.output_type, ACTIVATIONS)
        if takes(loss) == "logits" and gives_activations:
            self.complaints.add(
                "loss",
                f"{component.type if component else ''} takes logits, but the last layer {last.name!r} is "
                f"{last.component.type}, which gives activations: expected a last layer such as linear; remove "
                f"it with ~{last.component.key}",
            )
        if takes(loss) == "activations" and not gives_activations:
            self.complaints.add(
                "loss",
                f"{component.type if component else ''} takes activations, but the last layer {last.name!r} is "
                f"{last.component.type}, which gives logits: expected a last layer such as sigmoid or softmax; "
                f"add one with '+model.blocks.activation=sigmoid'",
            )
        return loss

    def _optimizer(self, network: NetworkPlan | None) -> tuple[Component | None, dict[str, dict[str, float]]]:
        section = self.config["optimizer"]
        section = dict(section) if isinstance(section, Mapping) else {"type": section}
        groups = section.pop("groups", {})
        component = bind(section, "optimizer", OPTIMIZER, self.complaints, withheld=("params",), trust=self.trust)
        if component is None:
            return None, {}
        names: list[str] = []
        with torch.device("meta"):
            skeleton = network.build() if network else None
        if skeleton is not None:
            names = [name for name, parameter in skeleton.named_parameters() if parameter.requires_grad]
            if not names:
                self.complaints.add("model.blocks", "no block has a parameter: there is nothing to train")
        before = len(self.complaints.messages)
        checked = check_optimizer(component, groups, names, self.complaints)
        if skeleton is not None and names and len(self.complaints.messages) == before:
            self._value(lambda: build_optimizer(component, skeleton, checked))
        return component, checked

    def _trainer(
        self, data: DataSettings | None, spec: DataSpec | None
    ) -> tuple[TrainerSettings | None, Execution | None, Any]:
        section = self._section("trainer")
        given = section.pop("execution", None)
        if isinstance(given, Mapping):
            execution = self._bound(Execution, given, "trainer.execution")
        else:
            execution = None
            self.complaints.add(
                "trainer.execution",
                f"expected precision, layout, compile, cuda_graph and trace in a mapping, received {given!r}",
            )
        deterministic = section.pop("deterministic", "auto")
        if deterministic not in (True, False, "auto"):
            self.complaints.add("trainer.deterministic", f"expected true, false or auto, received {deterministic!r}")
        names = [field.name for field in fields(TrainerSettings)]
        for name in list(section):
            if name not in names:
                self.complaints.add(f"trainer.{name}", no_such_key(name, [*names, "deterministic", "execution"]))
                del section[name]
        settings: TrainerSettings | None = self._bound(TrainerSettings, section, "trainer")
        if settings and data and spec:
            self._trainer_against_data(settings, data, spec)
        return settings, execution, deterministic

    def _compilation(
        self,
        execution: Execution | None,
        optimizer: Component | None,
        schedule: Component | None,
        settings: TrainerSettings | None,
    ) -> None:
        if settings and settings.watch_every is not None:
            for name, usual in (("compile", "none"), ("cuda_graph", "false")):
                value = getattr(execution, name, None)
                if value in ("network", "step", True):
                    self.complaints.add(
                        "trainer.watch_every",
                        f"what a step does is watched from Python, and trainer.execution.{name}={str(value).lower()} "
                        f"leaves none of it there: expected {name}={usual}, or watch_every=null",
                    )
        if execution and execution.cuda_graph is True and optimizer and schedule:
            reason = reason_against_cuda_graph(optimizer, schedule)
            if reason:
                self.complaints.add("trainer.execution.cuda_graph", f"{reason}; expected auto or false")
        if execution and execution.compile == "step" and optimizer and schedule:
            reason = reason_against_step(optimizer, schedule)
            if reason:
                self.complaints.add("trainer.execution.compile", f"step: {reason}; expected network or none")

    def _metrics(self, settings: TrainerSettings | None, spec: DataSpec | None) -> list[Measure]:
        """The named metrics; the monitor has to be one of them, or loss or accuracy."""
        section = self._section("metrics")
        measures = build_metrics(section, "metrics", spec.classes, self.complaints) if section and spec else []
        if settings and spec and len(measures) == len([name for name in section if section[name] is not None]):
            names = [name for measure in measures for name in measure.names(spec.class_names)]
            try:
                settings.check_monitor(names)
            except ArgumentError as error:
                self.complaints.add_error("trainer", error)
        return measures

    def _trainer_against_data(self, settings: TrainerSettings, data: DataSettings, spec: DataSpec) -> None:
        if settings.accumulate > data.batch_size:
            self.complaints.add(
                "trainer.accumulate",
                f"expected at most data.batch_size={data.batch_size}, received {settings.accumulate}",
            )
        if not data.has_validation(spec) and (settings.monitor or "").endswith("/val"):
            self.complaints.add(
                "trainer.monitor",
                f"{settings.monitor} needs a validation split, but data.validation.count=0: expected "
                f"trainer.monitor=null or a count",
            )
        if settings.monitor_test and "test" not in spec.counts:
            self.complaints.add("trainer.monitor_test", "the data have no test split: expected false")

    def _schedule(
        self, total: int | None, steps: int | None, length_known: bool
    ) -> tuple[Component | None, int | None]:
        section = self.config["schedule"]
        section = dict(section) if isinstance(section, Mapping) else {"type": section}
        own = section.pop("total_steps", None)
        if own is not None and self._value(lambda: integer("schedule.total_steps", own, 1)) is None:
            return None, None
        length = own if own is not None else total
        constants = {} if length is None else {"total_steps": length}
        component = bind(
            section,
            "schedule",
            SCHEDULE,
            self.complaints,
            provided=PROVIDED_TO_SCHEDULES,
            constants=constants,
            trust=self.trust,
        )
        if component is None:
            return None, length
        if component.factory is torch.optim.lr_scheduler.ReduceLROnPlateau:
            self.complaints.add(
                "schedule.type",
                "ReduceLROnPlateau waits for a metric, while schedules here are functions of the step: expected "
                "another, such as cosine or step",
            )
            return None, length
        if "total_steps" in component.parameters and length is None:
            if not length_known:  # the complaint about what says it stands elsewhere
                return None, None
            self.complaints.add(
                "schedule.total_steps",
                f"{component.type} needs the run's length, which max_time alone does not give: expected "
                f"trainer.epochs, trainer.max_steps or schedule.total_steps",
            )
            return None, length
        if length is not None and length > 0 and steps:
            self._try_schedule(component, length, steps)
        return component, length

    def _try_schedule(self, component: Component, length: int, steps: int) -> None:
        """Builds it once for a parameter of no account, so that its own complaints come with the others."""
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
        self._value(lambda: build_schedule(component, optimizer, length, steps))

    def _observers(self) -> list[Observer]:
        built = []
        for name, spec in self._section("observers").items():
            if spec is None:
                continue
            component = bind(spec, f"observers.{name}", OBSERVER, self.complaints, trust=self.trust)
            observer = self._value(component.build) if component else None
            if observer is not None:
                built.append(observer)
        return built
