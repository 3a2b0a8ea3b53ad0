"""The config of one job, from what Hydra composed.

Hydra merges a mapping over a mapping and refuses what the YAML does not mention. Here a mapping of another `type`
replaces the old one, and a component takes every argument that its constructor takes: the value overrides of a job
are applied again, by these rules, over the same config without them.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from cnnlab.config import hydra_internals as internals
from cnnlab.config.library_models import summarized
from cnnlab.config.saved_config import find_config, load_saved_config
from cnnlab.runtime.errors import ConfigError, did_you_mean, listing

_PACKAGE = Path(__file__).parent.parent
CONFIGS = next(folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir())

GROUPS = {folder.name for folder in CONFIGS.iterdir() if folder.is_dir()}

_NO_FILE = re.compile(r"null|true|false|-?[\d.]+|\?\?\?|\[\s*\]")

LATEST, AUTO = "latest", "auto"  # beside a run's directory, what `resume` may be

VALIDATION = "data.validation"

INIT_FROM = ["model", "init_from"]  # no component: a string alone is its path

# below these, keys are constructor arguments: legal ones need not stand in the YAML
_COMPONENT = re.compile(
    r"(model(?=\.[^.=]+=)|model\.blocks\.[^.=]+|model\.init|model\.init_from|observers\.[^.=]+|metrics\.[^.=]+|data\.augment\.[^.=]+|data|loss"
    r"|optimizer|schedule|trainer\.execution|trainer\.lookahead)\.[^=]+="
)
# names of the user's choice: a new one needs no `+`
_OPEN = re.compile(r"(model\.blocks|observers|metrics|data\.augment)\.[^.=]+=")
# and these are whole components: a mapping may bring arguments that the old one lacks
_WHOLE_COMPONENT = re.compile(
    r"(model\.blocks\.[^.=]+|model\.init|observers\.[^.=]+|metrics\.[^.=]+|metrics|data\.augment\.[^.=]+|data|loss|optimizer|schedule|sweep\.space)=\s*\{"
)
# in a layer, Hydra does not know what goes by its name in the network
_REMOVAL = re.compile(r"~(model\.blocks\.[^.=]+\.[^=]+)")
_REMOVED = "???"  # what Hydra is given instead


def allow_constructor_arguments(arguments: Sequence[str]) -> list[str]:
    """`optimizer.amsgrad=true` becomes `++optimizer.amsgrad=true`, which Hydra accepts; legality is checked later.

    So does `~model.blocks.block1.conv1`, as `++model.blocks.block1.conv1=???`.
    Raises `ConfigError` for a group that is given a number or null, and for a value without a key.
    """
    for argument in arguments:
        group, _, value = argument.partition("=")
        if not group.lstrip("+~"):
            raise ConfigError(f"{argument}: expected KEY=VALUE")
        if group in GROUPS and _NO_FILE.fullmatch(value):
            raise ConfigError(f"{group}: expected the name of a file in configs/{group}, received {value}")
    arguments = [_REMOVAL.sub(rf"\1={_REMOVED}", one) if _REMOVAL.fullmatch(one) else one for one in arguments]
    return [
        f"++{argument}" if any(rule.match(argument) for rule in (_COMPONENT, _WHOLE_COMPONENT, _OPEN)) else argument
        for argument in arguments
    ]


def groups_and_choices() -> str:
    """A line for each group, for `--help`."""
    own = [group for group in internals.groups() if not group.startswith("hydra")]
    return "\n".join(f"{group}: {listing(summarized(internals.choices(group)))}" for group in own)


OmegaConf.register_new_resolver("groups_and_choices", groups_and_choices)


def load_by_groups(overrides: Sequence[str]) -> DictConfig:
    """What Hydra composes of the job's config and these choices of groups, without the section of Hydra's."""
    hydra = HydraConfig.get()
    config = internals.load(str(hydra.job.config_name), [*hydra.overrides.hydra, *overrides])
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    return config


Load = Callable[[Sequence[str]], DictConfig]


def compose_job(composed: DictConfig, overrides: Sequence[str], load: Load = load_by_groups) -> DictConfig:
    """The config of a job: Hydra's, with the value overrides applied by our rules. Raises `ConfigError`.

    With `resume=RUN` it is that run's config with the changes of this command, with `resume=latest` that of the latest
    run of this name. `resume=auto` composes as for a new run, and resumes the one in `run_dir` where there is one.
    """
    config = _compose(composed, overrides, load)
    if "sweep" not in config:
        return config
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "sweep"])  # no run has one


def _compose(composed: DictConfig, overrides: Sequence[str], load: Load) -> DictConfig:
    if composed.resume == AUTO:
        return _compose_auto(composed, overrides, load)
    if composed.resume is not None:
        if composed.resume != LATEST:
            return _compose_resumed(Path(str(composed.resume)), overrides)
        run = _latest(str(composed.name))
        changes = [one for one in overrides if not as_given(one).startswith(("resume=", "name="))]
        resumed = _compose_resumed(run, changes)
        resumed.resume = str(run)
        return resumed
    parsed = internals.parse_overrides(overrides)
    values = [override for override in parsed if not _chooses(override)]
    groups = [override for override in parsed if override not in values]
    choices = {str(group): choice for group, choice in HydraConfig.get().runtime.choices.items()}
    experiment = choices.pop("experiment", None)
    if not values and not experiment:
        return composed
    config = load([str(override.input_line) for override in groups])
    given = internals.load_file(f"experiment/{experiment}") if isinstance(experiment, str) else {}
    if _names_types(given):
        chosen = [f"{group}={choice}" for group, choice in choices.items() if not group.startswith("hydra/")]
        _replace_components(config, load(chosen), given)
    apply_overrides(config, values)
    _check_validation_beside_folds(config, values)
    return config


def _check_validation_beside_folds(config: DictConfig, values: Iterable[Override]) -> None:
    """Raises `ConfigError` for a validation split that is asked for where folds validate: it would have no effect."""
    folds = config.data.get("folds") if internals.is_mapping(internals.raw_node(config, "data")) else None
    for override in values:
        key = str(override.key_or_group)
        if folds is not None and (key == VALIDATION or key.startswith(f"{VALIDATION}.")):
            raise ConfigError(
                f"{key}: a fold validates where data.folds is given, here {folds}: expected no {VALIDATION} beside it, "
                f"received {as_given(str(override.input_line))}"
            )


def _compose_auto(composed: DictConfig, overrides: Sequence[str], load: Load) -> DictConfig:
    """Raises `ConfigError` without a `run_dir`: each start would make a run of its own."""
    if composed.run_dir is None:
        raise ConfigError("resume: auto continues or starts the run in run_dir: expected run_dir=PATH beside it")
    new = composed.copy()
    new.resume = None
    config = _compose(new, [one for one in overrides if as_given(one) != f"resume={AUTO}"], load)
    run = Path(str(config.run_dir))
    if (run / "config.yaml").exists():
        config.resume, config.run_dir = str(run), None
    elif run.is_dir():
        _remove_empty(run)
    return config


def _remove_empty(folder: Path) -> None:
    """Removes a folder that a batch system made, or in which a run was killed before it wrote anything.

    One that a run holds is left: another job has just made it.
    """
    from filelock import FileLock, Timeout  # few commands need it

    try:
        with FileLock(folder / ".lock").acquire(blocking=False):
            pass
    except (Timeout, OSError, NotImplementedError):  # the last: a file system without locks
        return
    for name in (".lock", ".lock-holder", "..lock-holder.tmp", ".config.yaml.tmp"):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it has something in it: that it exists is reported later
        folder.rmdir()


def _latest(name: str) -> Path:
    """The run with the greatest name, which begins with its date, that has a checkpoint. Raises `ConfigError`."""
    folder = Path("runs", name)
    runs = sorted({path.parent.parent for path in folder.glob("*/checkpoints/step-*")})
    if not runs:
        raise ConfigError(
            f"resume: latest finds no run with a checkpoint in {folder.absolute()}: expected name=NAME of one"
        )
    return runs[-1]


def _names_types(mapping: Any) -> bool:
    """True if a component in it could replace another."""
    mappings = [node for name in mapping if internals.is_mapping(node := internals.raw_node(mapping, name))]
    return any("type" in node or _names_types(node) for node in mappings)


def _replace_components(config: DictConfig, without: DictConfig, experiment: Any) -> None:
    """Hydra merged the experiment's mappings; those of another `type` than before replace instead."""
    for name in experiment:
        new, old = internals.raw_node(experiment, name), internals.raw_node(without, name)
        if not isinstance(new, DictConfig) or not internals.is_mapping(old):
            continue
        if "type" in new and new.get("type") != old.get("type"):
            config[name] = new
        else:
            _replace_components(config[name], old, new)


def _chooses(override: Override) -> bool:
    """True if it picks a file of a group rather than sets a value."""
    is_mapping = not override.is_delete() and isinstance(override.value(), dict)
    return bool(internals.choices(override.key_or_group)) and not is_mapping


def as_given(override: str) -> str:
    """An override as the user wrote it: the `++` and the `???` are ours."""
    given = override.removeprefix("++")
    return f"~{given.removesuffix(f'={_REMOVED}')}" if given.endswith(f"={_REMOVED}") else given


def _compose_resumed(run: Path, overrides: Sequence[str]) -> DictConfig:
    """The config of the run at `run`, changed by value overrides. Raises `ConfigError`, also for one of a group."""
    config = load_saved_config(find_config(run, "resume"))
    parsed = internals.parse_overrides(overrides)
    for override in parsed:
        if _chooses(override):
            raise ConfigError(
                f"{override.key_or_group}: a resumed run keeps its {override.key_or_group}; expected values such "
                f"as trainer.epochs=20, received {as_given(str(override.input_line))}"
            )
    apply_overrides(config, parsed)
    return config


def apply_overrides(config: DictConfig, overrides: Iterable[Override]) -> None:
    """Applies value overrides in their order. Raises `ConfigError` for a key whose parent does not exist."""
    for override in overrides:
        path = str(override.key_or_group).split(".")
        parent = _holder(_parent(config, path), path[-1], path)
        name = path[-1]
        if override.is_delete() or (path[:2] == ["model", "blocks"] and override.value() == _REMOVED):
            if name not in parent:
                raise _no_such_key(parent, path)
            del parent[name]
            continue
        if name not in parent and override.value() is None and _OPEN.match(f"{'.'.join(path)}="):
            raise _no_such_key(parent, path)  # nothing to remove: the name is misspelt
        parent[name] = _merged(internals.raw_node(parent, name), internals.as_raw_node(override.value()))


def _parent(config: DictConfig, path: list[str]) -> DictConfig:
    """The mapping that holds the last key; a component given by its name alone becomes a mapping."""
    node = config
    for depth, key in enumerate(path[:-1]):
        if key not in node and depth and path[:2] == INIT_FROM:
            node[key] = {}  # the YAML may leave it out
        node = _holder(node, key, path)
        if key not in node:
            raise _no_such_key(node, path[: depth + 1])
        child = internals.raw_node(node, key)
        if not internals.is_mapping(child):
            value = internals.raw_value(child)
            if not isinstance(value, str):
                raise ConfigError(
                    f"{'.'.join(path)}: {'.'.join(path[: depth + 1])} is {value!r}: expected a component that "
                    f"could take {path[depth + 1]!r}"
                )
            node[key] = {"path" if path[: depth + 1] == INIT_FROM else "type": value}
        node = node[key]
    return node


def _holder(node: DictConfig, key: str, path: list[str]) -> DictConfig:
    """The mapping with this key: a layer in a sequential goes by its name in the network, too, without `blocks`."""
    inner = internals.raw_node(node, "blocks")
    in_blocks = path[:2] == ["model", "blocks"] and key not in node and internals.is_mapping(inner) and key in inner
    return inner if in_blocks else node


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(new, DictConfig) or not internals.is_mapping(old):
        return new
    if "type" in new and new.get("type") != old.get("type"):
        return new
    return OmegaConf.merge(old, new)


def _no_such_key(parent: DictConfig, path: list[str]) -> ConfigError:
    names = [str(name) for name in parent]
    if not names:
        key, section = ".".join(path), ".".join(path[:-1])
        entry = "{lr: VALUE}" if section == "optimizer.groups" else "{type: NAME, …}"
        return ConfigError(f"{key}: nothing is set in {section}; '{key}={entry}' adds an entry")
    return ConfigError(
        f"{'.'.join(path)}: there is no {path[-1]!r} here;{did_you_mean(path[-1], names)} "
        f"expected one of {listing(names)}"
    )
