from collections.abc import Iterator

import pytest
from hydra import initialize_config_dir

from cnnlab.config.compose import CONFIGS
from cnnlab.runtime.errors import ConfigError
from cnnlab.sweep.axes import read_axes
from cnnlab.sweep.space import Dimension, read_space

distributions = pytest.importorskip("optuna.distributions")


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield


def dimension(axis: str) -> Dimension:
    (found,) = read_space(read_axes([axis])).values()
    return found


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        ("optimizer.lr=interval(0, 1)", distributions.FloatDistribution(0, 1)),
        ("optimizer.lr=interval(0.1, 1)", distributions.FloatDistribution(0.1, 1)),
        ("optimizer.lr=tag(log, interval(1e-4, 1e-1))", distributions.FloatDistribution(1e-4, 1e-1, log=True)),
        ("seed=int(interval(1, 5))", distributions.IntDistribution(1, 5)),
        ("seed=tag(log, int(interval(1, 64)))", distributions.IntDistribution(1, 64, log=True)),
        ("data.batch_size=range(32, 256, step=32)", distributions.IntDistribution(32, 224, step=32)),  # without its end
        ("seed=range(5, 0, -2)", distributions.IntDistribution(1, 5, step=2)),
        ("optimizer.momentum=range(0.5, 0.9, 0.1)", distributions.FloatDistribution(0.5, 0.8, step=0.1)),
        ("seed=tag(log, range(1, 9))", distributions.IntDistribution(1, 8, log=True)),
        ("seed=8,16,32", distributions.CategoricalDistribution(("8", "16", "32"))),
        ("model=choice(cnn, mlp)", distributions.CategoricalDistribution(("cnn", "mlp"))),
    ],
)
def test_hydras_values_become_optunas_distributions(axis: str, expected: object) -> None:
    assert dimension(axis).distribution == expected


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ("optimizer.lr=interval(1, 0.1)", r"optimizer\.lr: expected the smaller end first, as in interval\(0\.1, 1"),
        ("optimizer.lr=interval(1, 1)", "expected the smaller end first"),
        ("optimizer.lr=tag(log, interval(0, 1))", "expected ends > 0 for the tag log"),
        ("optimizer.lr=tag(lin, interval(0, 1))", "expected no tag but log"),
        ("seed=tag(log, choice(1, 2))", "expected an interval or a range for the tag log"),
        ("seed=tag(log, range(1, 9, 2))", "expected a step of 1"),
        ("seed=range(3, 3)", "seed: expected at least one value"),
        ("seed=1,1", "expected each value once"),
        ("seed=1", "expected at least one key with several values"),
        ("model=cnn,2", "model: expected the name of a file"),
    ],
)
def test_what_cannot_be_searched_is_refused(axis: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_space(read_axes([axis]))


def test_all_bad_axes_are_reported_together() -> None:
    with pytest.raises(ConfigError, match=r"2 mistakes[\s\S]*\n  seed: [\s\S]*\n  optimizer\.lr: "):
        read_space(read_axes(["seed=range(0)", "optimizer.lr=interval(1,0)"]))


@pytest.mark.parametrize(
    ("axis", "value", "parameter"),
    [
        ("optimizer.lr=interval(0, 1)", 0.5, 0.5),
        ("optimizer.lr=interval(0, 1)", 1, 1.0),
        ("optimizer.lr=interval(0, 1)", 1.5, None),
        ("optimizer.lr=interval(0, 1)", "auto", None),
        ("optimizer.lr=interval(0, 1)", True, None),
        ("data.batch_size=range(32, 256, step=32)", 128, 128),
        ("data.batch_size=range(32, 256, step=32)", 100, None),
        ("optimizer.momentum=range(0.5, 0.9, 0.1)", 0.7, 0.7),
        ("seed=8,16", 16, "16"),
        ("seed=8,16", 3, None),
        ("optimizer.nesterov=true,false", False, "false"),
        ("optimizer.nesterov=0,1", False, None),
        ("model=cnn,mlp", "mlp", "mlp"),
        ("model.blocks.relu1={type: relu},gelu", {"type": "relu"}, "{type: relu}"),
        ("trainer.clip_norm=null,1", None, "null"),
    ],
)
def test_the_configs_own_value_is_found_in_the_space(axis: str, value: object, parameter: object) -> None:
    assert dimension(axis).parameter(value) == parameter


def test_values_are_written_as_on_a_command_line() -> None:
    assert dimension("optimizer.lr=interval(0, 1)").override(1e-05) == "optimizer.lr=1e-05"
    assert dimension("++optimizer.lr=interval(0, 1)").override(0.25) == "++optimizer.lr=0.25"
    assert dimension("seed=8,16").override("16") == "seed=16"


def test_axes_from_yaml_join_those_of_the_command_line() -> None:
    axes = read_axes(["seed=1,2"], {"seed": "3,4", "optimizer.dampening": "interval(0, 1)"})
    assert {key: one.get_value_string() for key, one in axes.varied.items()} == {
        "seed": "1,2",
        "optimizer.dampening": "interval(0, 1)",
    }
    assert read_axes(["seed=1"], {"seed": "3,4"}).fixed == ["seed=1"]


def test_a_single_value_in_yaml_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sweep\.space\.seed: expected several values, .* received 1"):
        read_axes([], {"seed": "1"})
