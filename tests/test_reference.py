"""The docs' generated reference: nothing that can be set, named or written is missing from it."""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from commands import ok, run
from fast_run import train_fast
from few import explain_few
from omegaconf import OmegaConf
from reference import (
    COMPONENTS,
    PAGES,
    RUN_FILES,
    arguments_of,
    comments_beside_names,
    documentation,
    is_of_torch,
    keys_of_yaml,
    sections,
    unnamed,
)

import cnnlab
from cnnlab.application import EXIT_STATUSES
from cnnlab.blocks import BLOCKS
from cnnlab.blocks.initialization import INITIALIZERS
from cnnlab.cli import evaluate
from cnnlab.config.compose import CONFIGS
from cnnlab.config.defaults import with_defaults
from cnnlab.data.augmentation import AUGMENTATIONS
from cnnlab.observers import OBSERVERS

CHOICES = [f"{group}={name}" for group, names in COMPONENTS.items() for name in names]
COMPONENTS_WITH_DOCS = {**BLOCKS, **INITIALIZERS, **AUGMENTATIONS, **OBSERVERS}


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of a config; below a mapping of specs, the keys are the user's."""
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and name not in ("model.blocks", "observers", "data.augment"):
            yield from leaves(value, f"{name}.")
        elif key != "type":
            yield name


@pytest.mark.parametrize("choice", CHOICES)
def test_every_key_of_a_config_is_described(choice: str) -> None:
    config: Any = OmegaConf.to_container(with_defaults(cnnlab.compose(choice)), resolve=False)
    page = PAGES["reference/keys.md"]()
    described = {key.name for section in sections() for key in section.keys} | {"metrics", "observers", "data.augment"}
    missing = [key for key in leaves(config) if key not in described]
    of_torch = [key for key in missing if f"`{key.rpartition('.')[2]}=" in page]  # "also takes `dampening=0`"
    assert [key for key in missing if key not in of_torch] == []


def test_every_key_has_a_meaning() -> None:
    keys = [key for section in sections() for key in section.keys]
    assert len(keys) > 100
    assert [key.name for key in keys if not key.meaning] == []


def test_a_key_without_a_comment_has_no_meaning(tmp_path: Path) -> None:
    path = tmp_path / "group.yaml"
    path.write_text("a: 1 # the first\nb: [2] # the second\nc:\n  d: {e: 3} # inside\n  f: 4\n")
    described = {key.name: key.meaning for key in keys_of_yaml(path)}
    assert described == {"a": "the first", "b": "the second", "c.d.e": "inside", "c.f": None}
    assert comments_beside_names("class A:\n    a: int = 1  # the first\n    b: int = 2\n") == {"a": "the first"}


@pytest.mark.parametrize("name", COMPONENTS_WITH_DOCS)
def test_every_argument_of_a_component_is_named_where_it_is_described(name: str) -> None:
    factory = COMPONENTS_WITH_DOCS[name]
    text = documentation(factory)
    assert text
    assert is_of_torch(factory) or unnamed(factory, [text]) == []


def test_arguments_have_their_defaults() -> None:
    assert arguments_of(BLOCKS["linear"]) == {"in_features": "inferred", "out_features": "required", "bias": "`true`"}


def test_every_choice_is_among_the_presets() -> None:
    page = PAGES["reference/presets.md"]()
    for path in CONFIGS.rglob("*/*.yaml"):
        group, name = path.relative_to(CONFIGS).parts[0], path.relative_to(CONFIGS).with_suffix("")
        if path.stem != "base":
            assert f"`{group}={name.relative_to(group).as_posix()}`" in page


def test_every_file_of_a_run_is_described(in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explain_few(monkeypatch)
    ok(
        train_fast(
            "run_dir=run", "trainer.watch_every=2", "trainer.ema=0.9", "trainer.profile=true", "trainer.max_steps=21"
        )
    )
    ok(run(evaluate, "run=run", "layers=[conv1]", "explain=true"))
    ok(run(evaluate, "run=run", "export=safetensors"))
    files = [path.relative_to("run").as_posix() for path in Path("run").rglob("*") if path.is_file()]
    assert [file for file in files if not any(fnmatch(file, pattern) for pattern in RUN_FILES)] == []
    assert [pattern for pattern in RUN_FILES if not any(fnmatch(file, pattern) for file in files)] == []


def test_the_page_of_commands_has_every_exit_status() -> None:
    page = PAGES["reference/commands.md"]()
    assert [status for status in EXIT_STATUSES if f"| {int(status)} |" not in page] == []
    assert {0, 1, 2, 130, 143} <= set(EXIT_STATUSES)
