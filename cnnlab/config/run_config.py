"""A run's config as it is composed, read and saved: interpolations stay unresolved in its YAML."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from cnnlab.config.compose import as_given
from cnnlab.config.naming import slug
from cnnlab.config.saved_config import load_saved_config, load_saved_overrides, resolved

NOT_SAVED: dict[str, Any] = {"resume": None, "trust": [], "run_dir": None}  # they belong to one command
COMMAND_ONLY = ("resume", "trust")  # legal beside any saved config

NO_HYPERPARAMETERS = (*NOT_SAVED, "name", "published", "observers", "device")
NOT_IN_SLUG = ("data", "data.root")
RESTART = "schedule.restart"  # of one command, too: the run's config keeps the step that it was given at


@dataclass(frozen=True)
class RunConfig:
    """A composed config and the overrides that it was composed with."""

    composed: DictConfig
    overrides: tuple[str, ...] = ()

    @classmethod
    def read(cls, run: Path) -> "RunConfig":
        """What the run directory `run` holds. Raises `ConfigError`."""
        return cls(load_saved_config(run / "config.yaml"), load_saved_overrides(run / "overrides.yaml"))

    @cached_property
    def values(self) -> dict[str, Any]:
        """Plain values, interpolations resolved. Raises `ConfigError` for a required key without one."""
        return resolved(self.composed)

    def config_yaml(self) -> str:
        """The text of `config.yaml`."""
        saved = self.composed.copy()
        OmegaConf.set_struct(saved, False)
        for key, value in NOT_SAVED.items():
            saved[key] = value
        return OmegaConf.to_yaml(saved, resolve=False)

    @property
    def given(self) -> list[str]:
        """The overrides as on the command line."""
        return [as_given(override) for override in self.overrides]

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The learning rate, and what this run's command chose otherwise than the defaults, by dotted key."""
        values = dict(leaves(self.values))
        chosen = {"optimizer.lr": values["optimizer.lr"]} if "optimizer.lr" in values else {}
        for one in self.given:
            key, _, text = one.lstrip("+~").partition("=")
            if key.partition(".")[0] not in NO_HYPERPARAMETERS:
                chosen[key] = "removed" if one.startswith("~") else values.get(key, text)
        first = [key for key in ("optimizer.lr", "model") if key in chosen]
        return {key: chosen[key] for key in dict.fromkeys([*first, *chosen])}

    @property
    def slug(self) -> str:
        """What the command chose, as a part of the directory's name; the data are in the folder's."""
        chosen = [one.lstrip("+~").partition("=") for one in self.given]
        return slug(
            {
                key: text or "removed"
                for key, _, text in chosen
                if key.partition(".")[0] not in NO_HYPERPARAMETERS and key not in NOT_IN_SLUG
            }
        )

    def overrides_yaml(self) -> str:
        """The text of `overrides.yaml`, a list as on the command line."""
        return yaml.safe_dump(self.given, allow_unicode=True, width=10_000)

    @property
    def restarts_schedule(self) -> bool:
        """True if `schedule.restart` asks for a new cycle of the schedule."""
        schedule = self.values.get("schedule")  # reported as missing by the checks
        return isinstance(schedule, Mapping) and schedule.get("restart") is True

    def restarted(self, step: int) -> "RunConfig":
        """This config with `step` among `schedule.restarts` in place of `schedule.restart`.

        Where the command was given before, and no step was saved since, it starts no other cycle.
        """
        composed = self.composed.copy()
        OmegaConf.set_struct(composed, False)
        composed.schedule.pop("restart")
        composed.schedule.restarts = sorted({*composed.schedule.get("restarts", []), step})
        return RunConfig(composed, self.overrides)

    def with_value(self, key: str, value: Any) -> "RunConfig":
        """This config with another value at a dotted key."""
        composed = self.composed.copy()
        OmegaConf.update(composed, key, value, force_add=True)
        return RunConfig(composed, self.overrides)

    def without(self, key: str) -> "RunConfig":
        """This config without a dotted key and the overrides that gave it."""
        section, _, name = key.rpartition(".")
        composed = self.composed.copy()
        OmegaConf.set_struct(composed, False)
        OmegaConf.select(composed, section).pop(name, None)
        left = [one for one in self.overrides if as_given(one).lstrip("+").partition("=")[0] != key]
        return RunConfig(composed, tuple(left))

    def digest(self, without: Collection[str]) -> str:
        """SHA-256 of the values of every key but these and those below them, and those of one command."""
        kept = {
            key: value
            for key, value in leaves(self.values)
            if key.partition(".")[0] not in NOT_SAVED and not any(f"{key}.".startswith(f"{one}.") for one in without)
        }
        return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()

    def changes_to(self, saved: "RunConfig") -> dict[str, tuple[Any, Any]]:
        """Dotted key → (saved value, value here) of everything that differs."""
        found = differences(saved.values, self.values)
        return {key: values for key, values in found.items() if key.partition(".")[0] not in COMMAND_ONLY}

    def after(self, saved: "RunConfig") -> "RunConfig":
        """This config with the overrides of the run that it continues before its own."""
        own = [one for one in self.overrides if as_given(one).partition("=")[0] not in COMMAND_ONLY]
        return RunConfig(self.composed, (*saved.overrides, *own))


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything that is no mapping, or an empty one."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted key → (old value, new value) of everything that differs; None where there is none."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in {**old, **new}:
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found |= differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found[f"{prefix}{key}"] = before, after
    return found
