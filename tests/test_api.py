"""`import cnnlab` in a notebook."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fast_run import FAST, read_json
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

import cnnlab
from cnnlab.config.compose import CONFIGS
from cnnlab.runtime.errors import ConfigError, TrainingError
from cnnlab.runtime.randomness import capture_generators, same_generators

REPOSITORY = Path(__file__).parents[1]


def test_compose_gives_the_config_of_the_command_line() -> None:
    average = "model.blocks.pool1={type: avg_pool, kernel_size: 2, stride: 1}"  # another type replaces the mapping
    config = cnnlab.compose(
        "data=mnist", "model=lenet", "model.blocks.dropout1.p=0.2", "optimizer.dampening=0.1", average
    )
    assert config.data.type == "mnist"
    assert config.model.blocks.dropout1 == {"type": "dropout", "p": 0.2}
    assert dict(config.model.blocks.pool1) == {"type": "avg_pool", "kernel_size": 2, "stride": 1}
    assert config.optimizer.dampening == 0.1
    assert "hydra" not in config


def test_training_returns_the_runs_directory(in_tmp_path: Path) -> None:
    config = cnnlab.compose(FAST, "observers=quiet")
    config.model.blocks.conv1.out_channels = 4
    run = cnnlab.train(config)
    assert run.parent == Path("runs/fast")
    assert read_json(run / "summary.json")["status"] == "completed"
    assert "4×8×8" in (run / "model.txt").read_text()


def test_a_resumed_run_takes_the_changes_of_compose_and_of_python(in_tmp_path: Path) -> None:
    run = cnnlab.train(cnnlab.compose(FAST, "observers=quiet", "schedule=constant"))
    config = cnnlab.compose(f"resume={run}", "trainer.max_steps=7")
    assert (config.name, list(config.observers)) == ("fast", ["json_lines"])  # the run's own
    assert cnnlab.train(config) == run
    assert read_json(run / "summary.json")["step"] == 7
    config.trainer.max_steps = 8
    cnnlab.train(config)
    assert read_json(run / "summary.json")["step"] == 8
    history = cnnlab.history(run)
    assert (history["step"], cnnlab.history(run, "val")["step"]) == ([2, 3, 4, 6, 7, 8], [3, 6, 7, 8])  # each step once
    assert history["accuracy/test"][-1] == read_json(run / "summary.json")["test"]["accuracy"]
    config.optimizer.lr = 0.5
    with pytest.raises(ConfigError, match=r"optimizer\.lr: the run was started with 0\.05"):
        cnnlab.train(config)


def test_an_evaluation_returns_what_its_file_holds_and_prints_nothing(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = cnnlab.evaluate(finished, "val", checkpoint="last")
    assert read_json(next(finished.glob("evaluation-val-*.json"))) == result
    assert result["split"] == "val"
    assert capsys.readouterr().out == ""
    with pytest.raises(ConfigError, match="did you mean 'test'"):
        cnnlab.evaluate(finished, "tset")


def test_training_leaves_the_process_as_it_was(in_tmp_path: Path) -> None:
    def state() -> list[object]:
        mode = torch.get_deterministic_debug_mode()
        filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        return [
            mode,
            filled,
            gc.get_freeze_count(),
            torch.backends.cudnn.benchmark,
            torch.backends.cuda.matmul.fp32_precision,
        ]

    torch.manual_seed(1)
    torch.set_deterministic_debug_mode("warn")
    before, generators = state(), capture_generators()
    try:
        cnnlab.train(cnnlab.compose(FAST, "observers=quiet", "trainer.max_steps=1"))
        with pytest.raises(TrainingError):
            cnnlab.train(cnnlab.compose(FAST, "observers=quiet", "optimizer.lr=1e30"))
        assert state() == before
        assert same_generators(capture_generators(), generators)
    finally:
        torch.set_deterministic_debug_mode("default")


def test_yaml_of_ones_own_is_found(in_tmp_path: Path) -> None:
    (in_tmp_path / "mine" / "model").mkdir(parents=True)
    (in_tmp_path / "mine" / "model" / "tiny.yaml").write_text("init: he\nblocks: {flatten: flatten}\n")
    assert cnnlab.compose("model=tiny", config_dir="mine").model.init == "he"


@pytest.mark.parametrize(("override", "fragment"), [("data=mnsit", "'mnist'"), ("sede=1", "'seed'"), ("x={", "x")])
def test_what_composition_refuses_is_one_sentence(override: str, fragment: str) -> None:
    with pytest.raises(ConfigError, match=fragment):
        cnnlab.compose(override)


def test_what_the_checks_refuse_comes_when_training_is_asked_for(in_tmp_path: Path) -> None:
    config = cnnlab.compose(FAST)
    config.model.blocks.dropout1.q = 0.5
    with pytest.raises(ConfigError, match=r"model\.blocks\.dropout1\.q: "):
        cnnlab.train(config)
    with pytest.raises(ConfigError, match=r"trainer\.max_steps"):
        cnnlab.train(cnnlab.compose("trainer.max_steps=0"))
    assert not list(in_tmp_path.iterdir())


def test_hydra_of_the_notebooks_own_is_left_as_it_was() -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cnnlab.compose("data=mnist")
        assert hydra_compose("train").data.type == "digits"


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, cnnlab; print('torch' in sys.modules, cnnlab.__version__)"
    answer = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", cnnlab.__version__]


def test_another_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        cnnlab.fit  # noqa: B018
