"""The docs' reference pages, made from the YAML, signatures and docstrings that they describe.

What a key means is the comment beside it, in YAML or, where the YAML leaves the key out, in the class that has it.
"""

import ast
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from cnnlab.application import EXIT_STATUSES
from cnnlab.blocks import BLOCKS
from cnnlab.blocks.initialization import INITIALIZERS
from cnnlab.config import defaults
from cnnlab.config.compose import CONFIGS
from cnnlab.config.init_from import InitFrom
from cnnlab.config.library_models import NAMES
from cnnlab.config.published import Published
from cnnlab.data import SOURCES
from cnnlab.data.augmentation import AUGMENTATIONS
from cnnlab.data.settings import DataSettings
from cnnlab.engine.lookahead import LookaheadSettings
from cnnlab.engine.optimization import OPTIMIZERS
from cnnlab.engine.schedule import SCHEDULES
from cnnlab.losses import LOSSES
from cnnlab.network.freeze import Frozen
from cnnlab.network.read import INFERRED
from cnnlab.observers import OBSERVERS

COMPONENTS: dict[str, Mapping[str, Callable[..., Any]]] = {
    "data": SOURCES,
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
}
RUN_FILES = {
    "config.yaml": "the config that runs, its interpolations unresolved",
    "overrides.yaml": "the overrides of the command",
    "environment.json": "versions, device, threads, what was chosen for `auto`, the git commit, digests of the data",
    "model.txt": "the layer table",
    "model.svg": "the network as boxes and arrows; repetitions that differ only in sizes are drawn once",
    "metrics.jsonl": "a JSON object for each measurement: `step`, `epoch`, `split`, `loss`, `accuracy`, …",
    "gradients.jsonl": "one for each watched update, with `trainer.watch_every`",
    "summary.json": "`status` (`completed`, `interrupted`, `pruned`, `failed`), `best`, `last`, `test`, speed, size",
    "checkpoints/step-*/model.safetensors": "the weights",
    "checkpoints/step-*/ema.safetensors": "the averaged weights, with `trainer.ema` or `trainer.lookahead`",
    "checkpoints/step-*/state.safetensors": "all else that the next step depends on: optimizer, position, generators",
    "checkpoints/step-*/manifest.json": "sizes and SHA-256 of these files, and what the run was",
    "checkpoints/best": "the name of the best checkpoint by `trainer.monitor`",
    "checkpoints/last": "the name of the newest one",
    "events.out.tfevents.*": "TensorBoard",
    "val/events.out.tfevents.*": "the validation split's curves, which TensorBoard so draws in another colour",
    "report.html": "one page of all of it, without a network: curves, evaluations, images, network, data, config",
    "curves.png": "loss, accuracy and learning rate over epochs, drawn by an evaluation",
    "trace.json": "the steps of `trainer.profile=true`, for <https://ui.perfetto.dev>",
    "evaluation-*.json": "all figures of an evaluation, by split and step",
    "predictions-*.csv": "a line an image: label, prediction, probabilities, loss, rank of the label",
    "confusion-*.csv": "a line a label, a column a prediction",
    "figures/explain/*.png": "of `explain=true`: what the network looks at, what its channels do, where it fails",
    "projector_config.pbtxt": "of `explain=true`: what TensorBoard's projector shows",
    "projector-*": "features, labels, predictions and small copies of the images that are its points",
    "figures/*.png": "confusion matrices; filters, maps and maximising images of `layers=[…]`",
    "exports/step-*/*": "of `export=[…]`: the network for other programs, and a model card",
    ".lock": "held by the process that works in the run",
    ".lock-holder": "which one that is, or was",
}
SWEEP_FILES = {
    "sweep.yaml": "what it was started with, without passwords: `resume=SWEEP` continues it",
    "sweep.csv": "the table of results, with every digit and the errors, rewritten after each job",
    "configs/experiment/best.yaml": "the config of the best: `--config-dir SWEEP/configs experiment=best`",
    "figures/*.png": "of a search: its course, the importance of each axis, slices, the Pareto front",
    "jobs.json": "of a grid: the jobs that have ended",
    "study.jsonl": "of a search: Optuna's journal",
    "workers/": "of a search: the processes that work in it",
    "NNN_SLUG/": "the run of job NNN; the slug is what varies, as in `003_lr0.01_mlp`",
    "NNN_SLUG.log": "what it printed",
    ".lock": "held by the process that works in a grid",
}
NOT_KEYS = ("defaults", "hydra", "type")
PROVIDED = ("params", "optimizer", "total_steps", "steps_per_epoch", "device", "dtype")  # by the run, not by YAML


@dataclass(frozen=True)
class Key:
    """A dotted key, its default as YAML, and what it means; None where nobody has written that."""

    name: str
    default: str
    meaning: str | None


def keys_of_yaml(path: Path, prefix: str = "") -> list[Key]:
    """The keys of a YAML file, each with the comment beside it."""
    text = path.read_text(encoding="utf-8")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    return list(_keys_of_node(root, prefix, text.splitlines()))


def _keys_of_node(node: yaml.MappingNode, prefix: str, lines: Sequence[str]) -> Iterator[Key]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if key.value in NOT_KEYS:
            continue
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _keys_of_node(value, f"{name}.", lines)
            continue
        end = value.end_mark
        comment = re.match(r"[\s\]}]*#\s*(.*)", lines[end.line][end.column :]) if end.line < len(lines) else None
        yield Key(name, value.value if isinstance(value, yaml.ScalarNode) else _yaml_of(value), comment and comment[1])


def _yaml_of(node: yaml.Node) -> str:
    return in_yaml(yaml.SafeLoader("").construct_object(node, deep=True))


def keys_of_class(factory: type, prefix: str = "", without: Sequence[str] = ()) -> list[Key]:
    """The fields of a dataclass that `without` does not name, each with the comment beside it."""
    comments = comments_beside_names(inspect.getsource(factory))
    parameters = inspect.signature(factory).parameters.values()
    made = defaults.defaults_of(factory)
    return [
        Key(f"{prefix}{one.name}", in_yaml(made.get(one.name, "???")), comments.get(one.name))
        for one in parameters
        if one.name not in without
    ]


def comments_beside_names(source: str) -> dict[str, str]:
    """The comment after each annotated name, and after each key of a dictionary."""
    tokens = tokenize.generate_tokens(io.StringIO(textwrap.dedent(source)).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(textwrap.dedent(source))):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.end_lineno in comments:
            found[node.target.id] = comments[node.end_lineno]
        for key in node.keys if isinstance(node, ast.Dict) else ():
            if isinstance(key, ast.Constant) and key.lineno in comments:
                found[str(key.value)] = comments[key.lineno]
    return found


def in_yaml(value: Any) -> str:
    """A value in one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()


@dataclass(frozen=True)
class Section:
    """A part of the page of keys: one choice of a group, or what all of its choices share."""

    title: str
    text: str
    keys: list[Key]


def sections() -> list[Section]:
    """Every key of a run's config and of an evaluation's, in the order of the page."""
    return [
        Section("The run", "At the top of the config.", _top_keys("train")),
        *_data_sections(),
        Section("model", "", _model_keys()),
        *(section for group in ("loss", "optimizer", "schedule") for section in _choices_of(group)),
        Section("trainer", "", _trainer_keys()),
        Section(
            "metrics, observers",
            "Mappings of a name of yours → a spec. A metric is one of torchmetrics' classification metrics in snake "
            "case, such as `f1_score`; the observers are [below](blocks.md#observers).",
            keys_of_yaml(CONFIGS / "observers" / "default.yaml", "observers."),
        ),
        Section("published", "", keys_of_class(Published, "published.")),
        Section(
            "sweep",
            "Of `python train.py -m` alone: grids, and [searches](../guides/search.md).",
            keys_of_yaml(CONFIGS / "sweep" / "base.yaml", "sweep."),
        ),
        Section(
            "An evaluation", "`python evaluate.py run=RUN`; its keys are not those of a run.", _top_keys("evaluate")
        ),
    ]


def _top_keys(name: str) -> list[Key]:
    keys = keys_of_yaml(CONFIGS / f"{name}.yaml")
    return [key for key in keys if key.name != "metrics"] if name == "train" else keys


def _data_sections() -> Iterator[Section]:
    base = keys_of_yaml(CONFIGS / "data" / "base.yaml", "data.")
    given = [key.name.split(".")[1] for key in base]
    shared = [*base, *keys_of_class(DataSettings, "data.", without=given)]
    yield Section("data", "What every data set has beside its own keys.", shared)
    for section in _choices_of("data"):
        known = {key.name: key.meaning for key in shared}
        yield Section(
            section.title,
            section.text,
            [Key(key.name, key.default, key.meaning or known.get(key.name)) for key in section.keys],
        )


def _choices_of(group: str) -> Iterator[Section]:
    """A section for each choice of a group that has keys of its own."""
    for name, factory in COMPONENTS[group].items():
        path = CONFIGS / group / f"{name}.yaml"
        keys = keys_of_yaml(path, f"{group}.")
        further = _arguments_of_torch(factory, [key.name.rpartition(".")[2] for key in keys])
        yield Section(f"{group}={name}", "\n\n".join(filter(None, [first_comment(path), further])), keys)


def _arguments_of_torch(factory: Callable[..., Any], given: Sequence[str]) -> str:
    """A line that lists what a class of torch's, or ours of its name, takes beside the keys of its YAML."""
    classes = inspect.getmro(factory) if inspect.isclass(factory) else (factory,)
    named = [one for one in classes if one.__name__ == factory.__name__]
    if not any(one.__module__.startswith("torch.") for one in named):
        return ""
    rest = {name: value for name, value in defaults.defaults_of(factory).items() if name not in given}
    listed = ", ".join(f"`{name}={in_yaml(value)}`" for name, value in rest.items())
    return f"`torch.optim.{factory.__name__}` also takes {listed}; torch's documentation says what they mean."


def _model_keys() -> list[Key]:
    meanings = comments_beside_names(inspect.getsource(defaults))
    own = [Key(f"model.{name}", in_yaml(value), meanings.get(name)) for name, value in defaults.MODEL.items()]
    blocks = Key("model.blocks", "???", "layer name → [block](blocks.md#blocks), in their order")
    return [*own, *keys_of_class(InitFrom, "model.init_from."), *keys_of_class(Frozen, "model.freeze.PATTERN."), blocks]


def _trainer_keys() -> list[Key]:
    own = keys_of_yaml(CONFIGS / "trainer" / "default.yaml", "trainer.")
    return [*own, *keys_of_class(LookaheadSettings, "trainer.lookahead.")]


def first_comment(path: Path) -> str:
    """The comment at the beginning of a YAML file, in one line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line for line in lines[: _first_key(lines)] if line.startswith("#") and "@package" not in line]
    return " ".join(line.lstrip("# ") for line in comments)


def _first_key(lines: Sequence[str]) -> int:
    return next((number for number, line in enumerate(lines) if line and not line.startswith("#")), len(lines))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def keys_page() -> str:
    """Every key of a config, with its default and its meaning."""
    parts = [
        "# Keys",
        "What can be set from the command line as `KEY=VALUE`, with the default of each. `python train.py --cfg job` "
        "prints the values of a command's own config; `???` has none and has to be given. A legal argument that the "
        "YAML leaves out is set in the same way.",
    ]
    for section in sections():
        parts += [f"## {section.title}", section.text] if section.text else [f"## {section.title}"]
        rows = [[f"`{key.name}`", f"`{key.default}`", key.meaning or ""] for key in section.keys]
        parts += [table(("key", "default", "meaning"), rows)] if rows else []
    return "\n\n".join(parts) + "\n"


def blocks_page() -> str:
    """Every component that a mapping of specs may name: blocks, initializations, augmentations, observers."""
    layer = (
        "The entries of `model.blocks`. A name alone (`relu`) takes every default. What is *inferred* follows from the "
        "incoming shape. Every layer also takes `init`, an initialization of its own, `after`, the layer that it "
        "follows, and `from`, the layers that it reads in place of the previous one. Where a number may stand, so may "
        "arithmetic such as `6 * in_channels` ([Compose a network](../guides/compose.md#arithmetic)). Any "
        "`torch.nn.NAME`, and `my.package.Block` of your own, is a block, too. Shapes: N images, C channels, H rows, W "
        "columns, K classes."
    )
    parts = [
        "# Blocks and other components",
        *("## Blocks", layer, *_described(BLOCKS)),
        *("## Initializations", "For `model.init`, and for the `init` of a layer.", *_described(INITIALIZERS)),
        *("## Augmentations", "The entries of `data.augment`, in their order.", *_described(AUGMENTATIONS)),
        *("## Observers", "The entries of `observers`.", *_described(OBSERVERS)),
    ]
    return "\n\n".join(parts) + "\n"


def _described(components: Mapping[str, Callable[..., Any]]) -> Iterator[str]:
    for name, factory in components.items():
        yield f"### {name}"
        yield documentation(factory)
        if arguments := arguments_of(factory):
            yield table(("argument", "default"), [[f"`{argument}`", text] for argument, text in arguments.items()])


def is_of_torch(factory: Callable[..., Any]) -> bool:
    return factory.__module__.startswith("torch.")


def documentation(factory: Callable[..., Any]) -> str:
    """A component's docstring, and those of its bases as far as arguments are left that none of them names.

    Of a class of torch's it is the first line. What a block takes over from a class of torch's is listed.
    """
    if is_of_torch(factory):
        summary = (inspect.getdoc(factory) or "").partition("\n")[0]
        return f"{summary} (`torch.nn.{factory.__name__}`)"
    texts: list[str] = []
    for one in inspect.getmro(factory) if isinstance(factory, type) else (factory,):
        if one.__module__.startswith("cnnlab") and one.__doc__ and (not texts or unnamed(factory, texts)):
            texts.append(inspect.cleandoc(one.__doc__))
    rest = unnamed(factory, texts)
    base = (
        next((one for one in inspect.getmro(factory) if is_of_torch(one)), None) if isinstance(factory, type) else None
    )
    known = [name for name in rest if base and name in inspect.signature(base).parameters]
    if base and known:
        texts.append(f"{', '.join(f'`{name}`' for name in known)}: as in `torch.nn.{base.__name__}`.")
    return "\n\n".join(texts)


def unnamed(factory: Callable[..., Any], texts: Sequence[str]) -> list[str]:
    """The arguments that none of the texts names and that are not inferred."""
    return [
        name
        for name in arguments_of(factory)
        if name not in INFERRED and not any(f"`{name}`" in text for text in texts)
    ]


def arguments_of(factory: Callable[..., Any]) -> dict[str, str]:
    """The arguments that YAML can give, each with its default."""
    if getattr(factory, "__init__", None) is nn.Module.__init__:
        return {}
    shown = {}
    for name, parameter in inspect.signature(factory).parameters.items():
        if name in PROVIDED or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        required = "inferred" if name in INFERRED else "required"
        shown[name] = required if parameter.default is parameter.empty else f"`{in_yaml(parameter.default)}`"
    return shown


def presets_page() -> str:
    """Every choice of every group, and every experiment."""
    groups = [folder for folder in sorted(CONFIGS.iterdir()) if folder.is_dir() and folder.name != "experiment"]
    parts = [
        "# Presets",
        "A word without a dot picks a file: `model=lenet` is `configs/model/lenet.yaml`. `experiment=NAME` sets "
        "several things at once, and its values win over those of other files.",
    ]
    for group in groups:
        parts += [f"## {group.name}", table(("choice", ""), _choices(group))]
        if group.name == "model":
            parts.append(
                f"And torchvision's classification networks by name: {', '.join(f'`{name}`' for name in NAMES)}; "
                "timm's as `model=timm/NAME`, where the extra `timm` is installed."
            )
    parts += ["## experiment", table(("choice", ""), _choices(CONFIGS / "experiment"))]
    return "\n\n".join(parts) + "\n"


def _choices(group: Path) -> list[list[str]]:
    files = [path for path in sorted(group.rglob("*.yaml")) if path.stem != "base"]
    names = [path.relative_to(group).with_suffix("").as_posix() for path in files]
    return [[f"`{group.name}={name}`", first_comment(path)] for name, path in zip(names, files, strict=True)]


def commands_page() -> str:
    """Both commands with their `--help`, and the exit statuses."""
    parts = ["# Commands"]
    for name in ("train", "evaluate"):
        help_text = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))["hydra"]["help"]["template"]
        text = help_text.replace("${groups_and_choices:}", "…").rstrip()
        parts += [
            f"## {name}.py",
            f"`python {name}.py`, or `cnnlab-{name}` where cnnlab is installed as a package.",
            f"```text\n{text}\n```",
        ]
    options = {
        "-m": "several runs: a [grid](../guides/grids.md) or a [search](../guides/search.md)",
        "--cfg job": "print the config that would run, with every key, and stop",
        "--config-dir FOLDER": "a folder with YAML of your own beside the built-in configs",
        "--help": "groups, choices and examples",
        "--version": "the versions of cnnlab and torch",
        "-sc install=bash": "complete keys and choices with Tab; [other shells](../guides/completion.md)",
    }
    statuses = [[str(status), meaning] for status, meaning in EXIT_STATUSES.items()]
    return (
        "\n\n".join(
            [
                *parts,
                "## Options",
                "Hydra's; those that most people use:",
                table(("option", ""), [[f"`{option}`", text] for option, text in options.items()]),
                "## Exit status",
                table(("status", "meaning"), statuses),
                "`HYDRA_FULL_ERROR=1` shows the traceback of an error that is otherwise one message.",
            ]
        )
        + "\n"
    )


def files_page() -> str:
    """The files that runs, evaluations and sweeps write."""
    return (
        "\n\n".join(
            [
                "# Files of a run",
                "`runs/NAME/DATE_TIME_SLUG_xxxx/`, or the directory that `run_dir` names:",
                table(("file", "what it holds"), [[f"`{name}`", text] for name, text in RUN_FILES.items()]),
                "`runs/NAME/sweep_DATE_TIME/`, the directory of a grid or a search:",
                table(("file", "what it holds"), [[f"`{name}`", text] for name, text in SWEEP_FILES.items()]),
            ]
        )
        + "\n"
    )


def python_page() -> str:
    """The public functions, for mkdocstrings to fill in."""
    of_api = ("compose", "train", "evaluate", "history")
    names = (*(f"cnnlab.api.{name}" for name in of_api), "cnnlab.inference.predictor.load")
    more = ("cnnlab.inference.predictor.Predictor", "cnnlab.inference.predictor.Prediction")
    directives = [f"::: {name}" for name in (*names, *more)]
    head = "# Python\n\n`import cnnlab` has these functions; [a guide](../guides/python.md) uses them."
    return "\n\n".join([head, *directives]) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "reference/keys.md": keys_page,
    "reference/blocks.md": blocks_page,
    "reference/presets.md": presets_page,
    "reference/commands.md": commands_page,
    "reference/files.md": files_page,
    "reference/python.md": python_page,
}
