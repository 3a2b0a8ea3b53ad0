import pytest
from hydra import initialize_config_dir

from cnnlab.config.compose import CONFIGS
from cnnlab.runtime.errors import ConfigError
from cnnlab.sweep.axes import MOST_JOBS, Grid, Job, read_axes, read_grid


def grid(*arguments: str) -> Grid:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return read_grid(read_axes(arguments))


def values(argument: str) -> tuple[str, ...]:
    (axis,) = grid(argument).axes.values()
    return axis


def test_the_jobs_are_every_combination_with_the_last_axis_fastest() -> None:
    assert [job.values for job in grid("seed=1,2", "model=cnn,mlp").jobs] == [
        {"seed": "1", "model": "cnn"},
        {"seed": "1", "model": "mlp"},
        {"seed": "2", "model": "cnn"},
        {"seed": "2", "model": "mlp"},
    ]


def test_a_job_is_numbered_and_named_by_its_place() -> None:
    assert [(job.number, job.name) for job in grid("seed=1,2").jobs] == [(0, "000_seed1"), (1, "001_seed2")]
    assert str(grid("seed=1,2", "model=cnn,mlp").jobs[2]) == "002 seed=2 model=cnn"


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "007"),
        ({"optimizer.lr": "0.0123456789", "model": "mlp"}, "007_lr0.0123_mlp"),
        ({"optimizer.lr": "1e-05", "seed": "12345"}, "007_lr1e-05_seed12345"),
        ({"a.conv1.out": "8", "a.conv2.out": "16"}, "007_conv1.out8_conv2.out16"),
        ({"model.blocks.x": "{type: linear, bias: false}"}, "007_x-type-linear-bias-false"),
        ({"experiment": "rnn_vs_cnn/lstm"}, "007_rnn_vs_cnn-lstm"),
        ({"name": "a" * 99}, "007_name" + "a" * 36),
    ],
)
def test_a_directory_says_what_varies(values: dict[str, str], name: str) -> None:
    assert Job(7, (), values).name == name


def test_a_sampled_number_is_shown_with_four_digits() -> None:
    assert str(Job(7, (), {"optimizer.lr": "0.0001847298930563126"})) == "007 optimizer.lr=0.0001847"


def test_what_has_one_value_is_in_every_job_in_its_place() -> None:
    jobs = grid("trainer.epochs=1", "seed=1,2", "~model.blocks.dropout1", "seed_of=[1,2]").jobs
    assert jobs[1].overrides == ("trainer.epochs=1", "seed=2", "~model.blocks.dropout1", "seed_of=[1,2]")
    assert jobs[1].values == {"seed": "2"}


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["optimizer.lr=0.1,0.2,0.3", "model=cnn,mlp"], "grid: 6 jobs = 3 optimizer.lr × 2 model"),
        (["seed=range(0,2000)"], "grid: 2,000 jobs = 2,000 seed"),
        (["seed=1"], "grid: 1 job"),
    ],
)
def test_the_size_is_printed_with_its_sides(arguments: list[str], printed: str) -> None:
    assert str(grid(*arguments)) == printed


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("seed=1,2", ("1", "2")),
        ("seed=1, 2", ("1", "2")),
        (r"name=a\ ,b", (r"a\ ", "b")),
        ("optimizer.lr=1e-3,1e-2", ("1e-3", "1e-2")),
        ("seed=range(1,4)", ("1", "2", "3")),
        ("seed=choice(4,5)", ("4", "5")),
        ("seed=sort(3,1,2)", ("1", "2", "3")),
        ("data.validation.from=random,'end'", ("random", "'end'")),
        ("data=glob(*mnist)", ("expanded_mnist", "fashion_mnist", "kmnist", "mnist")),
        ("trainer.clip_norm=null,1", ("null", "1")),
        ("experiment=mnist,debug/fast", ("mnist", "debug/fast")),
        (
            "model.blocks.pool1={type: max_pool, kernel_size: 2},{type: avg_pool, kernel_size: 2}",
            ("{type:max_pool,kernel_size:2}", "{type:avg_pool,kernel_size:2}"),
        ),
    ],
)
def test_an_axis_has_the_values_that_were_written(argument: str, expected: tuple[str, ...]) -> None:
    assert values(argument) == expected


def test_shuffled_values_are_those_of_the_jobs() -> None:
    shuffled = grid("seed=shuffle(range(0,50))")
    assert sorted(shuffled.axes["seed"], key=int) == [str(seed) for seed in range(50)]
    assert [job.overrides for job in shuffled.jobs] == [(f"seed={seed}",) for seed in shuffled.axes["seed"]]


def test_an_axis_of_a_new_key_is_named_without_its_plus() -> None:
    found = grid("++optimizer.dampening=0.1,0.2", "+model.blocks.last=relu,gelu")
    assert list(found.axes) == ["optimizer.dampening", "model.blocks.last"]
    assert found.jobs[0].overrides == ("++optimizer.dampening=0.1", "+model.blocks.last=relu")


@pytest.mark.parametrize(
    "axis",
    [
        "seed=1,1",
        "optimizer.lr=1,1.0",
        "optimizer.lr=0.1,1e-1",
        "name=a,'a'",
        "data.x=[1],[1.0]",
        "data.x={a: 1},{a: 1}",
    ],
)
def test_equal_values_are_refused(axis: str) -> None:
    with pytest.raises(ConfigError, match="expected each value once"):
        grid(axis)


@pytest.mark.parametrize("axis", ["data.x=1,true", "data.x=1,'1'", "data.x=null,'null'", "data.x=[1,2],[2,1]"])
def test_values_that_only_look_alike_are_taken(axis: str) -> None:
    assert len(grid(axis).jobs) == 2


def test_all_bad_axes_are_reported_together() -> None:
    with pytest.raises(ConfigError, match=r"2 mistakes[\s\S]*\n  seed: [\s\S]*\n  optimizer\.lr: "):
        grid("seed=range(0)", "optimizer.lr=interval(0,1)")


@pytest.mark.parametrize("arguments", [["seed=1,2", "++seed=3,4"], ["seed=1,2", "~seed"], ["seed=1,2", "seed=1"]])
def test_an_axis_has_its_key_for_itself(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match="seed: expected one axis"):
        grid(*arguments)


def test_of_two_fixed_values_the_last_counts_as_in_a_single_run() -> None:
    assert grid("seed=1,2", "name=a", "name=b").jobs[0].overrides == ("seed=1", "name=a", "name=b")


@pytest.mark.parametrize("stop", ["1000000000", "1e9"])
def test_a_grid_without_bound_is_refused_at_once(stop: str) -> None:
    with pytest.raises(ConfigError, match=f"at most {MOST_JOBS:,} jobs"):
        grid(f"seed=range(0,{stop})")


@pytest.mark.parametrize(("axis", "given"), [("model=cnn,2", "2"), ("experiment=debug/fast,null", "null")])
def test_a_group_takes_names_of_files(axis: str, given: str) -> None:
    group = axis.partition("=")[0]
    with pytest.raises(
        ConfigError, match=rf"^{group}: expected the name of a file in configs/{group}, received {given}"
    ):
        grid(axis)
