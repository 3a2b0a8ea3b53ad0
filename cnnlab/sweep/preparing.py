"""A search is checked as a whole before its first trial, and nothing is written until then."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from cnnlab.config.explain import COMPOSITION_ERRORS
from cnnlab.runtime.errors import ConfigError
from cnnlab.runtime.terminal import waiting
from cnnlab.sweep.axes import Axes, Job
from cnnlab.sweep.job_checks import JobChecks, refused
from cnnlab.sweep.objectives import Objective, check_pruner, objectives
from cnnlab.sweep.saved_sweep import without_password
from cnnlab.sweep.search import SearchRun
from cnnlab.sweep.settings import SweepSettings
from cnnlab.sweep.space import Space, read_space
from cnnlab.sweep.study import (
    build_pruner,
    build_sampler,
    check_optuna,
    open_storage,
    open_study,
    quiet,
    unreachable_is_an_error,
)
from cnnlab.sweep.trial import STORAGE

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Search:
    """A search whose space, objectives, sampler, pruner and storage were checked."""

    axes: Axes
    space: Space
    settings: SweepSettings
    objectives: tuple[Objective, ...]
    first: dict[str, Any]
    checks: JobChecks

    def __str__(self) -> str:
        sampler = self.settings.sampler if isinstance(self.settings.sampler, str) else self.settings.sampler["type"]
        best = " and ".join(f"{by.direction} {by.name}" for by in self.objectives)
        lines = [f"search: {self.settings.n_trials:,} trials by {sampler} to {best}"]
        lines += [f"  {key}={dimension.text}" for key, dimension in self.space.items()]
        lines += [f"  {key}: its own value is not among them" for key in self.space if key not in self.first]
        return "\n".join(lines)

    @quiet
    def open(self, folder: Path, sweep: str) -> SearchRun:
        """The search in its directory; `sweep` is the directory's own name among those of a storage."""
        with unreachable_is_an_error(self.settings.storage):
            study = _study(self, open_storage(self.settings.storage, folder))
        return SearchRun(
            study, sweep, folder, self.settings, self.space, self.objectives, self.axes.fixed, self.first, self.checks
        )


@quiet
def prepare_search(axes: Axes, settings: SweepSettings, checks: JobChecks) -> Search:
    """Raises `ConfigError` for all that can be known to be wrong before the first trial."""
    check_optuna()
    space = read_space(axes)
    config, choices = _as_it_stands(axes, checks)
    first = {key: one.parameter(_value(config, choices, key)) for key, one in space.items()}
    with waiting("checking the search space"):
        plan = _check_ends(axes, space, first, checks)
    found = objectives(settings, plan)
    check_pruner(settings, found[0], plan)
    build_pruner(settings.pruner)
    build_sampler(settings, 0, len(found) > 1)
    names, directions = tuple(one.name for one in found), tuple(one.direction for one in found)
    search = Search(
        axes,
        space,
        replace(settings, metric=names, direction=directions),
        found,
        {key: value for key, value in first.items() if value is not None},
        checks,
    )
    if settings.storage is not None:
        _check_storage(search, settings.storage)
    return search


def _check_storage(search: Search, url: str) -> None:
    """Opens it before a directory is made. Raises `ConfigError`."""
    if ":***@" in url:
        raise ConfigError(
            f"sweep.storage: its password was not saved: expected sweep.storage=URL with it, received "
            f"{without_password(url)}"
        )
    os.environ[STORAGE] = url  # for the jobs: on no command line, in no file
    with unreachable_is_an_error(url):
        _study(search, open_storage(url, Path()))


def _study(search: Search, storage: "optuna.storages.BaseStorage") -> "optuna.Study":
    settings = search.settings
    texts = {key: dimension.text for key, dimension in search.space.items()}
    pruner = build_pruner(settings.pruner)
    return open_study(storage, settings.study, settings.direction, pruner, texts, settings.metric)


def _as_it_stands(axes: Axes, checks: JobChecks) -> tuple[DictConfig, Mapping[str, Any]]:
    """The config without what varies, and the choice of each group."""
    return checks.compose(axes.fixed).composed, checks.choices(axes.fixed)


def _value(config: DictConfig, choices: Mapping[str, Any], key: str) -> Any:
    """A key's value as it stands, or a group's choice; None where the key cannot be read."""
    if key in choices:
        return choices[key]
    try:
        value = OmegaConf.select(config, key)
    except COMPOSITION_ERRORS:
        return None
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _check_ends(axes: Axes, space: Space, first: Mapping[str, Any], checks: JobChecks) -> Any:
    """Checks each choice and both ends of each axis, the others as they stand; returns a plan.

    Every key of the space is in each of these configs, so that one which some choice of model lacks is found.
    """
    jobs = _jobs_at_the_ends(axes, space, first)
    found = checks.refusals(jobs)
    if found:
        raise ConfigError("\n  ".join(["the space holds configs that are refused:", *refused(jobs, found)]))
    return checks.plan(jobs[0].overrides)


def _jobs_at_the_ends(axes: Axes, space: Space, first: Mapping[str, Any]) -> Sequence[Job]:
    base = {
        key: dimension.ends[0] if first[key] is None else dimension.value_text(first[key])
        for key, dimension in space.items()
    }
    points = {tuple({**base, key: end}.items()): None for key, dimension in space.items() for end in dimension.ends}
    return [
        Job(number, (*axes.fixed, *(space[key].override(value) for key, value in point)), dict(point))
        for number, point in enumerate(points)
    ]
