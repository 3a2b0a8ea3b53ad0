"""How the commands are named in what they print."""

import shlex
import shutil
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from cnnlab.config import programs
from cnnlab.config.programs import command, given, program, trusting


@pytest.mark.parametrize("typed", ["train.py", "/elsewhere/train.py", "ipykernel_launcher.py"])
def test_a_checkout_is_told_its_script(typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [typed])
    assert command("evaluate") == f"{program('python')} evaluate.py"


def test_who_typed_the_installed_command_is_told_the_installed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/local/bin/cnnlab-train"])
    assert command("train") == "cnnlab-train"
    assert command("evaluate") == "cnnlab-evaluate"


def test_without_a_checkout_there_is_only_the_installed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py"])
    monkeypatch.setattr(programs, "SCRIPTS", tmp_path)
    assert command("train") == "cnnlab-train"


def test_a_program_goes_by_its_name_only_where_the_name_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: sys.executable)
    assert program("python") == "python"
    monkeypatch.setattr(shutil, "which", lambda name: "/another/python")
    assert program("python").endswith(Path(sys.executable).name)
    assert "/" in program("python")


def test_trusting_repeats_every_name() -> None:
    assert trusting("cnnlab-evaluate run=a")(["x.Y", "z.W"]) == "cnnlab-evaluate run=a 'trust=[x.Y,z.W]'"


@pytest.mark.parametrize("value", ["runs/a_1", "my runs/a", "a,b (1)", "it's", 'a "b"', "~/x", "ünï", "a=b", "[x]"])
def test_a_hint_comes_back_from_shell_and_hydra_as_it_was(value: str) -> None:
    (word,) = shlex.split(given("resume", value))
    (override,) = OverridesParser.create().parse_overrides([word])
    found = override.value()
    assert str(getattr(found, "text", found)) == value


def test_a_plain_path_is_not_quoted() -> None:
    assert given("run", Path("runs/digits/2026-01-01_00-00-00_ab12")) == "run=runs/digits/2026-01-01_00-00-00_ab12"
