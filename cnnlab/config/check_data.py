"""The section `data`: its source, its settings, its augmentations."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from cnnlab.components import Registry, Trust, attempt, build_component, build_settings, find_factory, split_spec
from cnnlab.config.sections import as_mapping
from cnnlab.data import SOURCES
from cnnlab.data.augmentation import AUGMENTATIONS, Augmentation
from cnnlab.data.mixing import Mixing
from cnnlab.data.normalization import check_normalization
from cnnlab.data.settings import AUTO, SETTINGS, DataSettings
from cnnlab.data.source import DataSpec, Source
from cnnlab.runtime.errors import ArgumentError, Complaints, ConfigError, did_you_mean

SOURCE = Registry("data source", SOURCES, Source)
AUGMENTATION = Registry("augmentation", AUGMENTATIONS, Augmentation)


def check_data(section: Any, complaints: Complaints, trust: Trust) -> tuple[Source | None, DataSettings | None]:
    """The source and the settings, which share one section; each None with complaints."""
    arguments = as_mapping(section, "data", complaints)
    given = {name: arguments.pop(name) for name in SETTINGS if name in arguments}
    if given.get("batch_size") == AUTO:
        given["batch_size"] = 1  # until the number of images is known
    settings = build_settings(DataSettings, given, "data", complaints)
    own = _arguments_of_source(arguments, trust)
    for name in list(arguments):
        near = "" if name in own else did_you_mean(name, SETTINGS)
        if near:  # a misspelt setting would be taken for an argument of the source
            complaints.add(f"data.{name}", f"there is no such key;{near}")
            del arguments[name]
    return build_component(arguments, "data", SOURCE, complaints, trust), settings


def _arguments_of_source(section: Mapping[str, Any], trust: Trust) -> Collection[str]:
    """The arguments that the source takes; none where the source does not exist, which `bind` reports."""
    try:
        name, _ = split_spec(section, "data")
        return inspect.signature(find_factory(name, "data", SOURCE, trust)).parameters
    except ConfigError:
        return ()


def describe_data(source: Source, data: DataSettings | None, complaints: Complaints) -> DataSpec | None:
    """The source's description, with what is held out for validation where its labels are known."""
    spec = attempt(source.describe, complaints)
    labels = source.labels() if spec and data else None
    if spec is None or data is None or labels is None:
        return spec
    try:
        return data.with_held_out(spec, labels)
    except ArgumentError as error:
        complaints.add_error("data", error)
        return spec


def check_augment(
    data: DataSettings | None, spec: DataSpec | None, complaints: Complaints, trust: Trust
) -> dict[str, Augmentation | Mixing]:
    """The augmentations in their order, by name; complains of one that does not fit the data's images."""
    built: dict[str, Augmentation | Mixing] = {}
    for name, given in (data.augment if data else {}).items():
        key = f"data.augment.{name}"
        step = build_component(given, key, AUGMENTATION, complaints, trust) if given is not None else None
        if step is None:
            continue
        built[str(name)] = step
        if spec and isinstance(step, Augmentation):
            try:
                step.check(spec.input_shape)
            except ConfigError as error:
                complaints.add_error(key, error)
    return built


def check_steps_per_epoch(data: DataSettings | None, spec: DataSpec | None, complaints: Complaints) -> int | None:
    """Optimizer steps per epoch; None where data or settings are not known."""
    if data is None or spec is None:
        return None
    try:
        check_normalization(data.normalize, spec.input_shape[0])
        return data.steps_per_epoch(spec)
    except ArgumentError as error:
        complaints.add_error("data", error)
        return None
