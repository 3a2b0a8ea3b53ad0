"""The configs of jobs, checked before the first of them starts."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from hydra.core.config_loader import ConfigLoader
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

from cnnlab.config.compose import CONFIGS, compose_job, load_by_groups
from cnnlab.config.explain import COMPOSITION_ERRORS, explain
from cnnlab.config.hydra_internals import hydra_config
from cnnlab.config.programs import command
from cnnlab.config.run_config import RunConfig
from cnnlab.config.saved_config import trusted_names
from cnnlab.runtime.errors import ConfigError
from cnnlab.sweep.axes import Job
from cnnlab.sweep.settings import SIZES

if TYPE_CHECKING:
    from cnnlab.config.run_plan import RunPlan
    from cnnlab.data.source import Source


REMEMBERED = 64


class JobChecks:
    """Composes and checks jobs; data that were found are not looked for again.

    `again` is the command that continues a saved sweep: its classes are those of a stranger until they are repeated.
    """

    def __init__(self, loader: ConfigLoader, config: DictConfig, again: str | None = None) -> None:
        self.loader = loader
        self.config = config
        self.again = again
        self._sources: dict[str, ConfigError | None] = {}  # what was wrong with the data, by their section
        # Hydra takes a tenth of a second for a config, and jobs differ in values
        self._load = lru_cache(REMEMBERED)(self._load_job)
        self._groups = lru_cache(REMEMBERED)(load_by_groups)

    def compose(self, overrides: Sequence[str], loaded: DictConfig | None = None) -> RunConfig:
        """The config of a job by our rules, from what Hydra `loaded`. Raises what Hydra raises."""
        composed = loaded or self._load(tuple(overrides))
        with hydra_config(composed):
            task = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
            return RunConfig(compose_job(task, overrides, lambda chosen: self._groups(tuple(chosen)).copy()))

    def _load_job(self, overrides: tuple[str, ...]) -> DictConfig:
        composed = self.loader.load_sweep_config(self.config, list(overrides))
        _check_place(composed)
        return composed

    def choices(self, overrides: Sequence[str]) -> Mapping[str, Any]:
        """The choice of each group in a job."""
        return {str(group): choice for group, choice in self._load(tuple(overrides)).hydra.runtime.choices.items()}

    def plan(self, overrides: Sequence[str], loaded: DictConfig | None = None) -> "RunPlan":
        """The checked plan of a job. Raises `ConfigError` for what the job itself would refuse."""
        from cnnlab.components import Trust
        from cnnlab.config.check import check_config
        from cnnlab.config.programs import trusting
        from cnnlab.run.train_state import check_machine

        content = self.compose(overrides, loaded).values
        names = trusted_names(content["trust"])
        plan = check_config(content, Trust() if self.again is None else Trust(False, names, trusting(self.again)))
        if plan.settings.max_steps != 0:
            check_machine(plan)
            self._check_source(repr(content["data"]), plan.source)
        return plan

    def _check_source(self, section: str, source: "Source") -> None:
        """Once for each section: where images have to be downloaded, the jobs would all do it."""
        if section not in self._sources:
            try:
                source.check()
                self._sources[section] = None
            except ConfigError as error:
                self._sources[section] = error
        refusal = self._sources[section]
        if refusal is not None:
            raise refusal

    def refusal(self, job: Job, loaded: DictConfig | None = None) -> str | None:
        """The mistakes in a job's config, if it has any."""
        try:
            self.plan(job.overrides, loaded)
        except COMPOSITION_ERRORS as error:
            return explain(error, CONFIGS)
        return None

    def beyond(self, job: Job, budget: Mapping[str, float | None]) -> str | None:
        """A sentence for a job, whose config is legal, with more parameters or MACs than the budget allows."""
        rows = self.plan(job.overrides).network.rows
        for name in SIZES:
            limit = budget.get(name)
            size = sum(getattr(row, name) for row in rows)
            if limit is not None and size > limit:
                return f"beyond sweep.budget.{name}={limit:,}: the network has {size:,}"
        return None

    def refusals(self, jobs: Sequence[Job]) -> dict[int, str]:
        """The mistakes in the jobs' configs, by number. Raises `ConfigError` where no job is without one.

        All are composed before the first is checked: what Hydra refuses is reported without waiting for torch.
        """
        loaded: dict[int, DictConfig] = {}
        found: dict[int, str] = {}
        for job in jobs:
            try:
                loaded[job.number] = self._load(job.overrides)
            except MissingConfigException:  # an axis names a file that is not there
                raise
            except COMPOSITION_ERRORS as error:
                found[job.number] = explain(error, CONFIGS)
        _raise_if_all_are_refused(jobs, found)
        for job in jobs:
            refusal = self.refusal(job, loaded[job.number]) if job.number in loaded else None
            if refusal is not None:
                found[job.number] = refusal
        _raise_if_all_are_refused(jobs, found)
        return found


def _raise_if_all_are_refused(jobs: Sequence[Job], refusals: Mapping[int, str]) -> None:
    if len(refusals) < len(jobs):
        return
    messages = list(dict.fromkeys(refusals.values()))
    if len(messages) == 1:
        raise ConfigError(messages[0])
    raise ConfigError("\n  ".join(["no job of the grid can run:", *refused(jobs, refusals)]))


def refused(jobs: Sequence[Job], refusals: Mapping[int, str]) -> list[str]:
    """A line or more for each job that is refused."""
    return [f"{job}: {refusals[job.number]}".replace("\n", "\n  ") for job in jobs if job.number in refusals]


def _check_place(config: DictConfig) -> None:
    """Raises `ConfigError` for keys that name the directory of a single run."""
    if config.resume is not None:
        raise ConfigError(
            f"resume: a sweep starts new runs: expected no resume beside -m, received {config.resume}; each of a "
            f"sweep's runs is resumed by itself, with {command('train')} resume=RUN"
        )
    inspect = OmegaConf.select(config, "data.inspect")
    if inspect is not None:
        raise ConfigError(
            f"data.inspect: the data would be inspected by every job of a sweep: expected it without -m, received "
            f"{inspect}"
        )
    if config.run_dir is not None:
        raise ConfigError(
            f"run_dir: it would be the same for every job of a sweep: expected hydra.sweep.dir=PATH, which gets a "
            f"directory for each, received run_dir={config.run_dir}"
        )
