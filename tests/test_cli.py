"""The two commands as they are started: options, exit status, interrupts."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from commands import run

import cnnlab
from cnnlab.cli import evaluate, train


def printed(*arguments: str) -> dict[str, dict[str, object]]:
    """The config that `--cfg job` prints."""
    answer = run(train, *arguments, "--cfg", "job")
    assert answer.code == 0, answer.err
    content = yaml.safe_load(answer.out)
    assert isinstance(content, dict)
    return content


def test_options_may_stand_between_overrides(in_tmp_path: Path) -> None:
    (in_tmp_path / "mine" / "model").mkdir(parents=True)
    (in_tmp_path / "mine" / "model" / "tiny.yaml").write_text("blocks: {flatten: flatten}\n")
    config = printed("seed=3", "--config-dir", "mine", "model=tiny")
    assert config["seed"] == 3
    assert list(config["model"]["blocks"]) == ["flatten"]


@pytest.mark.parametrize("command", [train, evaluate])
def test_the_version_is_ours_and_torchs(command: object) -> None:
    answer = run(command, "--version")  # type: ignore[arg-type]
    assert (answer.code, answer.out) == (0, f"cnnlab {cnnlab.__version__}, torch {version('torch')}\n")


def test_the_printed_config_is_that_of_the_run() -> None:
    config = printed("optimizer={type: adam, lr: 0.01}")
    assert config["optimizer"]["type"] == "adam"
    assert not {"momentum", "nesterov"} & set(config["optimizer"])  # of sgd, which the mapping replaced


def test_the_printed_config_shows_what_can_be_set_with_its_default() -> None:
    config = printed("optimizer=adam", "model.blocks.dropout1.p=0.4")
    assert next(iter(config["data"])) == "type"  # what YAML gives comes before what it leaves out
    assert (config["data"]["sampling"], config["data"]["workers"]) == ("shuffle", "auto")
    assert (config["model"]["freeze"], config["model"]["init_from"]) == ([], None)
    assert (config["optimizer"]["eps"], config["optimizer"]["amsgrad"]) == (1e-8, False)
    assert config["model"]["blocks"]["dropout1"] == {"type": "dropout", "p": 0.4}
    assert config["observers"]["console"]["type"] == "console"


def test_a_package_of_the_printed_config_can_be_asked_for() -> None:
    answer = run(train, "--cfg", "job", "--package", "data", "--resolve", "data=mnist", "data.root=${name}")
    assert yaml.safe_load(answer.out)["root"] == "mnist"


def test_a_value_of_the_printed_config_can_be_asked_for() -> None:
    assert run(train, "--cfg", "job", "--package", "optimizer.lr").out == "0.05\n"
    assert run(train, "--cfg", "job", "--package", "run_dir").out == "None\n"
    answer = run(train, "--cfg", "job", "--package", "optimiser")
    assert answer.code == 2
    assert answer.err.startswith("error: --package: there is no 'optimiser'; did you mean 'optimizer'? expected one of")


INTERRUPTED = """
import os, signal, sys
module = sys.argv.pop()
class Interrupt:
    def find_spec(self, name, *rest):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from cnnlab.cli import train
train()
"""


@pytest.mark.parametrize("module", ["hydra", "torch.nn"])
def test_an_interrupt_while_importing_ends_without_a_traceback(in_tmp_path: Path, module: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED, "trainer.max_steps=0", module]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stderr) == (130, "")


@pytest.mark.parametrize(
    ("typed", "expected"), [("model=resnet_", "model=resnet_small"), ("optimizer.mo", "momentum=")]
)
def test_a_shell_completes_choices_and_keys_without_torch(typed: str, expected: str) -> None:
    line = f"cnnlab-train {typed}"
    program = (
        "import sys; from cnnlab.cli import train\n"
        "try: train()\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    environment = {**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line))}
    command = [sys.executable, "-c", program, "-sc", "query=bash"]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert expected in answer.stdout
    assert answer.stderr.split()[-1] == "False"


def test_a_sweep_under_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnlab.runtime.distributed.is_first_to_report", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    answer = run(train, "-m", "seed=1,2")
    assert answer.code == 2
    assert answer.err.startswith("error: -m: a sweep starts processes of its own, and torchrun has started 2 already")
