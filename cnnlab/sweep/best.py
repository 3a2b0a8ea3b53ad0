"""The best job as a command, and as an experiment of its own."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cnnlab.config.compose import CONFIGS, as_given
from cnnlab.config.programs import given
from cnnlab.config.saved_config import load_mapping
from cnnlab.run.files import CONFIG, RunDirectory
from cnnlab.sweep.axes import Job
from cnnlab.sweep.results import Result

NOT_OF_EXPERIMENTS = ("run_dir", "resume", "trust")


def again(job: Job, options: Mapping[str, str]) -> str:
    """The arguments of the command that runs a job's config once more, by itself."""
    flags = [shlex.quote(f"--{flag}={value}") for flag, value in options.items()]
    return " ".join([*flags, *(shlex.quote(as_given(one)) for one in job.overrides)])


def write_experiment(result: Result, choices: Mapping[str, Any], folder: Path) -> str:
    """Writes `configs/experiment/best.yaml`, the whole config of a job; returns the arguments that run it.

    `choices` are the job's choices of groups: those of ours are taken over, so that nothing of another lingers.
    """
    assert result.directory is not None
    config = load_mapping(result.directory / CONFIG)
    groups = {group: choice for group, choice in choices.items() if (CONFIGS / group / f"{choice}.yaml").is_file()}
    groups = {group: choice for group, choice in groups.items() if group not in ("experiment", "sweep")}
    groups["model"] = "none"  # its blocks are all in the config
    content = {
        "defaults": [{f"override /{group}": choice} for group, choice in groups.items()],
        **{key: value for key, value in config.items() if key not in NOT_OF_EXPERIMENTS},
    }
    place = folder / "configs"
    (place / "experiment").mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=10_000)
    head = f"# @package _global_\n# Job {result.job.name} of {folder.name}.\n"
    RunDirectory(place / "experiment").write_text("best.yaml", head + text)
    return f"{shlex.quote(f'--config-dir={place}')} {given('experiment', 'best')}"
