"""Each function is called, so that a release of Hydra or OmegaConf that changes what they stand on is noticed here."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

import cnnlab
from cnnlab.config import hydra_internals as internals
from cnnlab.config.compose import CONFIGS

ROOMS = [Path(str(cnnlab.__file__)).parent / room for room in ("config", "sweep", "application.py")]


@pytest.fixture
def hydra() -> Iterator[None]:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield


def test_options_are_known_with_and_without_a_value() -> None:
    options = internals.options()
    assert (options["--config-dir"].nargs, options["-m"].nargs, options["--info"].nargs) == (None, 0, "?")
    assert internals.command_line_parser().parse_args(["-m", "seed=1"]).overrides == ["seed=1"]


def test_groups_choices_and_files_are_found(hydra: None) -> None:
    assert {"data", "experiment/book", "model"} <= set(internals.groups())
    assert {"cnn", "resnet18"} <= set(internals.choices("model"))
    assert internals.choices("seed") == []
    assert internals.load_file("experiment/mnist").name == "mnist"
    assert internals.load_file("experiment/nowhere") == {}


def test_a_folder_of_configs_is_searched_and_its_files_are_read(hydra: None, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("name: mine\n")
    internals.add_config_dir(tmp_path)
    assert internals.load_file("experiment/mine") == {"name": "mine"}
    assert {"mine", "mnist"} <= set(internals.choices("experiment"))


def test_a_config_is_composed_with_hydras_own_section(hydra: None) -> None:
    config = internals.load("train", ["data=mnist"])
    assert (config.data.type, config.hydra.job.config_name) == ("mnist", "train")


def test_overrides_are_parsed_and_written_again(hydra: None) -> None:
    (override,) = internals.parse_overrides([r"name=a\ "])
    assert override.value() == "a "
    assert internals.as_override_value(override.value()) == r"a\ "


def test_nodes_are_read_without_resolving() -> None:
    config = OmegaConf.create({"a": "${b}", "b": {"c": 1}, "d": None, "e": {"f": "x"}})
    assert internals.raw_value(internals.raw_node(config, "a")) == "${b}"
    assert internals.raw_node(config, "z") is None
    assert internals.is_mapping(internals.raw_node(config, "b"))
    assert not internals.is_mapping(internals.raw_node(config, "d"))
    assert not internals.is_mapping(OmegaConf.structured(DictConfig(None)))
    assert internals.raw_value(internals.as_raw_node("${b}")) == "${b}"


def test_what_a_job_raised_is_read_without_raising_it() -> None:
    returned = JobReturn(status=JobStatus.FAILED)
    returned.return_value = ValueError("x")
    assert str(internals.returned_error(returned)) == "x"


def test_hydras_state_is_put_back(hydra: None) -> None:
    with internals.state_restored():
        assert not GlobalHydra.instance().is_initialized()
    assert GlobalHydra.instance().is_initialized()
    with internals.hydra_config(compose("train", return_hydra_config=True)):
        assert HydraConfig.get().job.config_name == "train"
    assert HydraConfig.instance().cfg is None


def test_no_other_file_uses_what_is_private() -> None:
    files = [file for room in ROOMS for file in ([room] if room.is_file() else room.glob("*.py"))]
    private = [
        f"{file.name}: {name}"
        for file in files
        if file.name not in ("hydra_internals.py", "optuna_internals.py")
        for node in ast.walk(ast.parse(file.read_text()))
        for name in _private_names(node)
    ]
    assert not private


def _private_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        module = node.module or ""
        return [module] if "._" in module or module.endswith("singleton") else []
    if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
        name = ast.unparse(node)
        return [] if name.startswith("self.") else [name]
    return []
