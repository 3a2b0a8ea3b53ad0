"""What Hydra, OmegaConf and YAML refuse, as one message: key, expected, received, nearest legal name."""

import re
from pathlib import Path

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from cnnlab.config.library_models import summarized
from cnnlab.config.sections import no_such_top_key
from cnnlab.runtime.errors import ConfigError, TrainingError, did_you_mean, first_line, listing, no_such_key

# what Hydra raises while it composes
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OSError, RecursionError)
SWEPT = re.compile(r"(?:Ambiguous value for argument|Sweep parameters) '(?:\+\+)?([^=]+)=(.*?)'(?:$|\n| requires)")


def explain(error: Exception, configs: Path) -> str:
    """The message for an error: our own errors bring it, Hydra's get it here. `configs` holds the groups."""
    if isinstance(error, ConfigError | TrainingError):
        return str(error)
    cause = error.__cause__
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        place = f"{mark.name}, line {mark.line + 1}" if mark else "YAML"
        return f"{place}: expected YAML, but {error.problem or error.context}"
    if isinstance(error, RecursionError):
        return "YAML: expected configs that do not include themselves and are not nested hundreds of levels deep"
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    swept = re.match(
        r"(?:Ambiguous value for argument|Sweep parameters) '(?:\+\+)?([^=]+)=(.*?)'(?:$|\n| requires)", str(error)
    )
    if swept:
        return f"{swept[1]}: expected one value, received {swept[2]}; -m runs a job for each, [a,b] is a list"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _no_such_choice(str(error.missing_cfg_file), list(error.options or []), configs)
    for failure in (error, cause):
        if isinstance(failure, InterpolationResolutionError | MissingMandatoryValue):
            return f"{failure.full_key or failure.key}: {first_line(failure)}"
    if isinstance(cause, OmegaConfBaseException) and cause.key is not None:
        return _no_such_key(cause, configs)
    text = str(error) if cause is None else f"{first_line(error)}: {first_line(cause)}"
    for ending in ("\nTo append", "\nConfig search path", "\nSee https", "\nfull_key", "\n    full_key"):
        text = text.split(ending)[0]
    text = text.removeprefix("ConfigCompositionException: ")
    scalar = re.match(r"Invalid loaded object type: (\w+)", text)
    if scalar:
        return f"YAML: expected a mapping, received {scalar[1]}"
    merged = re.match(r"Error merging override (?:\+\+)?([^=]+)=(.*): Cannot merge DictConfig with ListConfig", text)
    if merged:
        expected = "a list" if merged[2].startswith("{") else "a mapping"
        return f"{merged[1]}: expected {expected}, received {merged[2]}"
    deleted = re.match(r"Could not delete from config\. '(.+)' does not exist", text)
    if deleted:
        return f"{deleted[1]}: there is no such key to remove"
    return text.strip() or first_line(error)


def _unreadable(error: OverrideParseException) -> str:
    given = str(error.override).removeprefix("++")
    function = re.search(r"while evaluating '.*': (.+)", str(error))  # choice() and the like
    return f"{given}: {function[1] if function else 'expected KEY=VALUE, with quotes around braces and spaces'}"


def _no_such_choice(missing: str, options: list[str], configs: Path) -> str:
    parts = re.fullmatch(r"((?:hydra/)?[^/]+)/(.+)", missing)
    if not parts:
        return f"there is no config {missing!r} in {configs}"
    group, name = parts.groups()
    # Hydra lists one folder; files in folders below ours are legal too
    own = [path.relative_to(configs / group).with_suffix("").as_posix() for path in (configs / group).rglob("*.yaml")]
    legal = sorted({*own, *options})
    return f"{group}: there is no {name!r};{did_you_mean(name, legal)} expected one of {listing(summarized(legal))}"


def _no_such_key(cause: OmegaConfBaseException, configs: Path) -> str:
    parent = cause.parent_node
    names = [str(name) for name in parent if name != "hydra"] if isinstance(parent, DictConfig) else []
    key = str(cause.full_key or cause.key)
    if names and str(cause.key) in names:  # the key is there: its value is what does not fit
        return f"{key}: {first_line(cause)}"
    if "." not in key and "model" in names:  # at the top of a run's config, groups are legal too
        names = sorted({*names, *(folder.name for folder in configs.iterdir() if folder.is_dir())})
        return f"{key}: {no_such_top_key(cause.key, names, OmegaConf.to_container(parent, resolve=False))}"
    if not names:
        section, _, name = key.rpartition(".")
        entry = f"+{key}=VALUE" if section.startswith("hydra.") else f"{section}={{{name}: VALUE, …}}"
        return f"{key}: nothing is set in {section}; '{entry}' adds an entry"
    return f"{key}: {no_such_key(cause.key, names)}"
