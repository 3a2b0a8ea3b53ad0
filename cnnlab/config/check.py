"""A config, checked whole before anything is loaded or written; all complaints come in one error.

Each section has a function of its own, in `check_data.py`, `check_model.py`, `check_training.py` and
`check_reporting.py`: it takes the section and the collected complaints, adds its own, and returns what it could check.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from cnnlab.components import Trust, attempt
from cnnlab.config.auto import explained, resolve_data, resolve_trainer
from cnnlab.config.check_data import check_augment, check_data, check_steps_per_epoch, describe_data
from cnnlab.config.check_model import check_init_from, check_loss, check_model
from cnnlab.config.check_reporting import check_metrics, check_observers, check_published
from cnnlab.config.check_training import (
    check_compilation,
    check_deterministic,
    check_execution,
    check_features,
    check_microbatches,
    check_optimizer,
    check_precision,
    check_schedule,
    check_schedule_against_optimizer,
    check_trainer,
    check_trainer_against_data,
    is_auto,
)
from cnnlab.config.preprocessing import resolve_preprocess
from cnnlab.config.run_plan import RunPlan
from cnnlab.config.sections import no_such_top_key
from cnnlab.data.source import DataSpec
from cnnlab.runtime.checks import integer
from cnnlab.runtime.device import select_device
from cnnlab.runtime.errors import Complaints, ConfigError, listing

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
Checked = TypeVar("Checked")
RUN_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def check_config(config: Mapping[str, Any], trust: Trust, spec: DataSpec | None = None) -> RunPlan:
    """Checks a resolved config. Raises `ConfigError` with every complaint, one a line.

    `spec` describes the data of a saved run, whose data need not be present any more.
    """
    complaints = Complaints()
    check_keys(config, complaints)
    check_run(config, complaints)
    preprocess = attempt(lambda: resolve_preprocess(config), complaints)
    source, data = check_data({**config["data"], **preprocess} if preprocess else config["data"], complaints, trust)
    if spec is None and source is not None:
        spec = describe_data(source, data, complaints)
    data, auto = resolve_data(config["data"], source, data, spec)
    augment = check_augment(data, spec, complaints, trust)
    steps = check_steps_per_epoch(data, spec, complaints)
    network = check_model(config["model"], spec, complaints, trust)
    init_from = check_init_from(config["model"], complaints)
    loss = check_loss(config["loss"], network, spec, complaints, trust)
    optimizer = check_optimizer(config["optimizer"], network, complaints, trust)
    trainer, auto_trainer = resolve_trainer(config["trainer"], data if steps else None, spec, complaints)
    settings = check_trainer(trainer, complaints)
    check_trainer_against_data(settings, data, spec, complaints)
    check_microbatches(network, settings, data, spec, complaints)
    check_features(settings, network, data, augment, complaints)
    execution = check_execution(config["trainer"], complaints)
    deterministic = check_deterministic(config["trainer"], complaints)
    metrics = check_metrics(config["metrics"], settings, spec, complaints)
    schedule, schedule_cycles = check_schedule(config["schedule"], settings, steps, complaints, trust)
    check_schedule_against_optimizer(schedule, optimizer, complaints)
    check_compilation(execution, optimizer, schedule, settings, complaints)
    observers = check_observers(config["observers"], complaints, trust)
    device = attempt(lambda: select_device(config["device"]), complaints)
    check_precision(execution, network, device, complaints)
    published = check_published(config["published"], complaints)
    complaints.raise_if_any()
    device = _checked(device)
    return RunPlan(
        name=config["name"],
        run_dir=Path(config["run_dir"]) if config["run_dir"] else None,
        seed=config["seed"],
        device=device,
        deterministic=device.type == "cpu" if deterministic == "auto" else deterministic,
        source=_checked(source),
        spec=_checked(spec),
        data=_checked(data),
        network=_checked(network),
        init_from=init_from,
        loss=_checked(loss),
        optimizer=_checked(optimizer),
        schedule=_checked(schedule),
        cycles=schedule_cycles,
        settings=_checked(settings),
        execution=_checked(execution),
        observers=observers,
        metrics=metrics,
        augment=augment,
        published=published,
        lr_is_auto=is_auto(config["optimizer"]),
        auto=explained(auto | auto_trainer, _checked(data), _checked(spec)),
    )


def _checked(part: Checked | None) -> Checked:
    """What a check returned: without complaints it is never None."""
    assert part is not None
    return part


def check_keys(config: Mapping[str, Any], complaints: Complaints) -> None:
    """Complains of unknown keys. Raises `ConfigError` for a missing one: nothing else can be checked."""
    for key in config:
        if key not in KEYS:
            complaints.add(str(key), no_such_top_key(key, [*KEYS], config))
    missing = [key for key in KEYS if key not in config]
    if missing:
        raise ConfigError(f"{missing[0]}: it is missing; expected all of {listing(KEYS)}")


def check_run(config: Mapping[str, Any], complaints: Complaints) -> None:
    """The keys at the top that describe the run itself: name, seed, run_dir."""
    name = config["name"]
    if not isinstance(name, str) or not RUN_NAME.fullmatch(name) or set(name) <= {"."}:
        complaints.add("name", f"expected 1 to 64 letters, digits, '.', '_' or '-', received {name!r}")
    attempt(lambda: integer("seed", config["seed"], 0), complaints)
    run_dir = config["run_dir"]
    if run_dir is not None and not isinstance(run_dir, str):
        complaints.add("run_dir", f"expected a path or null, received {run_dir!r}")
