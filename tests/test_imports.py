"""Imports point down only: commands → sweep → inference → run → config → rooms → blocks, components → runtime."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cnnlab"
FILES = sorted(PACKAGE.rglob("*.py"))
LEVELS = {
    "version": 0,
    "runtime": 0,
    "blocks": 1,
    "components": 1,
    "network": 2,
    "data": 2,
    "losses": 2,
    "metrics": 2,
    "visualization": 2,
    "engine": 2,
    "observers": 2,
    "config": 3,
    "run": 4,
    "inference": 5,
    "sweep": 6,
    "application": 7,
    "cli": 8,
    "api": 7,
    "__init__": 9,  # what `import cnnlab` offers
}
SIBLINGS_ALLOWED = {("observers", "cnnlab.engine.records"), ("observers", "cnnlab.visualization.mosaics")}
MAY_IMPORT_HYDRA = {"config", "sweep", "application"}


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively: its room is unknown"
            yield node.module or ""


def top(module: str) -> str:
    return module.partition(".")[0]


def may_import(own: str, name: str) -> bool:
    other = name.split(".")[1]
    return own == other or LEVELS[other] < LEVELS[own] or (own, name) in SIBLINGS_ALLOWED


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_a_file_imports_only_what_lies_below_its_room() -> None:
    upward = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in FILES
        for name in imported_modules(path)
        if name.startswith("cnnlab.") and not may_import(room(path), name)
    ]
    assert not upward


def test_only_config_and_what_starts_commands_import_hydra() -> None:
    importing = {room(path) for path in FILES if {"hydra", "omegaconf"} & set(map(top, imported_modules(path)))}
    assert importing == MAY_IMPORT_HYDRA


def test_every_room_has_a_level() -> None:
    assert {room(path) for path in FILES} == set(LEVELS)


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_an_entry_script_only_starts_things(script: str) -> None:
    text = (PACKAGE.parent / script).read_text()
    defined = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert len(text.splitlines()) <= 40
    assert not defined
