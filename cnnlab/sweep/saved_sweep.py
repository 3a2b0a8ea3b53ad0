"""`sweep.yaml`: what a sweep was started with, and the command line that continues it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from cnnlab.config.command_line import CommandLine
from cnnlab.config.compose import as_given
from cnnlab.config.hydra_internals import parse_alone
from cnnlab.config.programs import command, given, trusting
from cnnlab.config.saved_config import load_mapping
from cnnlab.run.files import RunDirectory
from cnnlab.runtime.errors import ConfigError, first_line, listing
from cnnlab.sweep.settings import SweepSettings
from cnnlab.version import __version__

SWEEP = "sweep.yaml"
CMAES = "optuna.samplers.CmaEsSampler"
CHANGEABLE = ("sweep.n_trials", "sweep.timeout", "sweep.storage", "hydra.launcher.n_jobs", "hydra/launcher", "trust")
# of Hydra's own overrides those that name no code and no YAML, which may be a stranger's
HARMLESS = ("hydra.launcher.n_jobs", "hydra.sweep.dir", "hydra.job.name")
_PASSWORD = re.compile(r"(?<=://)([^:/@\s]*):([^\s]*)@")


@dataclass(frozen=True)
class SavedSweep:
    """`options` are Hydra's, by their flags; `config` is the YAML of the config without what varies."""

    options: dict[str, str]
    hydra: tuple[str, ...]
    overrides: tuple[str, ...]
    sweep: dict[str, Any]
    space: dict[str, str]
    config: str

    def write(self, folder: Path) -> None:
        text = yaml.safe_dump(
            {"cnnlab": __version__, **_plain(asdict(self))}, allow_unicode=True, sort_keys=False, width=10_000
        )
        RunDirectory(folder).write_text(SWEEP, text)

    @classmethod
    def read(cls, folder: Path) -> "SavedSweep":
        """Raises `ConfigError` for what a sweep never writes."""
        content = load_mapping(folder / SWEEP)
        try:
            return cls(
                {str(flag): str(value) for flag, value in content["options"].items()},
                tuple(map(str, content["hydra"])),
                tuple(map(str, content["overrides"])),
                dict(content["sweep"]),
                {str(key): str(values) for key, values in content["space"].items()},
                str(content["config"]),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"resume: {folder / SWEEP} is not as a sweep writes it: {type(error).__name__} {first_line(error)}"
            ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def without_password(text: str) -> str:
    """`postgresql://me:***@host/db`: what may be written and printed."""
    return _PASSWORD.sub(r"\1:***@", text)


def resumed_sweep(line: CommandLine) -> CommandLine:
    """The command line that continues the sweep which `resume=SWEEP` names; any other line as it is.

    Raises `ConfigError` for a change that would make the rest of the sweep another.
    """
    keys = {as_given(one).partition("=")[0]: one for one in line.overrides}
    if "resume" not in keys:
        return line
    folder = Path(str(parse_alone(keys["resume"]).value()))
    if not (folder / SWEEP).is_file():
        return line
    if line.has("-m", "--multirun"):
        raise ConfigError(
            f"resume: {folder} is a sweep: expected no -m beside it, as in {command('train')} {given('resume', folder)}"
        )
    saved = SavedSweep.read(folder)
    changes = [one for key, one in keys.items() if key != "resume"]
    _check_changes(changes, saved)
    _check_repeated(line, saved, folder)
    overrides = [*saved.hydra, *saved.overrides]
    kept = [one for one in overrides if _key(one) not in keys or one in changes]
    new = [one for one in changes if one not in kept]
    place = given_to_hydra("hydra.sweeper.resume", folder)
    return replace(line, options=(*line.options, ("-m",)), overrides=(*kept, *new, place))


def given_to_hydra(key: str, value: object) -> str:
    """`KEY='VALUE'` as Hydra's grammar takes any text."""
    return f"{key}={quoted(value)}"


def quoted(value: object) -> str:
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(str(value), Quote.single).with_quotes()


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _check_changes(changes: Sequence[str], saved: SavedSweep) -> None:
    for change in changes:
        if _key(change) not in CHANGEABLE and change not in (*saved.hydra, *saved.overrides):
            raise ConfigError(
                f"{_key(change)}: a resumed sweep keeps its configs and its space: expected changes of "
                f"{listing(CHANGEABLE)} only, received {as_given(change)}"
            )


def _check_repeated(line: CommandLine, saved: SavedSweep, folder: Path) -> None:
    """What could run code is taken from this command alone: the directory may be a stranger's."""
    options = [f"--{flag}={value}" for flag, value in saved.options.items() if line.value(f"--{flag}") != value]
    hydra = [one for one in saved.hydra if _key(one) not in HARMLESS and one not in line.overrides]
    if options or hydra:
        again = " ".join([command("train"), given("resume", folder), *options, *hydra])
        raise ConfigError(
            f"resume: {folder} was started with {listing([*options, *hydra])}, which may name code or YAML that runs "
            f"code; if you know it, repeat it: {again}"
        )


def check_trusted(settings: SweepSettings, names: Sequence[str], folder: Path) -> None:
    """Raises `ConfigError` where a saved sweep, perhaps a stranger's, would run code that this command does not name.

    That is a sampler or a pruner of one's own, and CMA-ES, whose state in the study is a pickle.
    """
    wanted = [_class_name(spec) for spec in (settings.sampler, settings.pruner) if spec is not None]
    own = [name for name in wanted if "." in name and not name.startswith("optuna.")]
    pickled = [CMAES for name in wanted if name in ("cmaes", CMAES)]
    missing = [name for name in (*own, *pickled) if name not in names]
    if missing:
        again = trusting(f"{command('train')} {given('resume', folder)}")([*names, *missing])
        why = "its state in the study is a pickle, which may run code" if pickled else "it is not part of cnnlab"
        raise ConfigError(f"resume: {folder} names {listing(missing)}: {why}; if it is yours, repeat it: {again}")


def _class_name(spec: Any) -> str:
    return str(spec.get("type") if isinstance(spec, Mapping) else spec)
