"""The sections `metrics`, `observers` and `published`: what is measured and shown beside training."""

from collections.abc import Mapping
from typing import Any

from cnnlab.components import Registry, Trust, build_component, build_settings
from cnnlab.config.published import Published
from cnnlab.config.sections import as_mapping
from cnnlab.data.source import DataSpec
from cnnlab.engine.settings import TrainerSettings
from cnnlab.metrics import Measure, build_metrics
from cnnlab.observers import OBSERVERS, Observer
from cnnlab.runtime.errors import ArgumentError, Complaints

OBSERVER = Registry("observer", OBSERVERS, Observer)


def check_metrics(
    given: Any, settings: TrainerSettings | None, spec: DataSpec | None, complaints: Complaints
) -> list[Measure]:
    """The named metrics; the monitor has to be one of them, or loss or accuracy."""
    section = as_mapping(given, "metrics", complaints)
    if spec is None:
        return []
    measures = build_metrics(section, "metrics", spec.classes, complaints) if section else []
    all_built = len(measures) == len([name for name in section if section[name] is not None])
    if settings and all_built:
        names = [name for measure in measures for name in measure.names(spec.class_names)]
        try:
            settings.check_monitor(names)
        except ArgumentError as error:
            complaints.add_error("trainer", error)
    return measures


def check_observers(given: Any, complaints: Complaints, trust: Trust) -> list[Observer]:
    """The observers in the order of the YAML, without those that are null."""
    section = as_mapping(given, "observers", complaints)
    built = [
        build_component(spec, f"observers.{name}", OBSERVER, complaints, trust)
        for name, spec in section.items()
        if spec is not None
    ]
    return [observer for observer in built if observer is not None]


def check_published(given: Any, complaints: Complaints) -> Published | None:
    """A figure reported elsewhere, or null."""
    if given is None:
        return None
    if not isinstance(given, Mapping):
        complaints.add("published", f"expected a mapping of figure, value and source, received {given!r}")
        return None
    return build_settings(Published, given, "published", complaints)
