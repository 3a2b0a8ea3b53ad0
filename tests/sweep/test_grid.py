"""`python train.py -m …` as a whole; the rest is in test_axes.py, test_processes.py and test_results.py."""

import csv
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
from commands import Answer, ok, run
from fast_run import FAST, read_json
from hydra.core.plugins import Plugins
from rich.progress import Progress

import cnnlab
from cnnlab.application import TASKS
from cnnlab.cli import train
from cnnlab.run.files import RunDirectory, make_sweep_directory
from cnnlab.runtime.device import cpu_count
from cnnlab.runtime.errors import ConfigError, Interrupted
from cnnlab.sweep.launcher import ProcessLauncher, time_left
from cnnlab.sweep.processes import Processes, Start, Task, start_fresh

REPOSITORY = Path(__file__).parents[2]
BASIC = "hydra/launcher=basic"  # in this process: faster, where the process does not matter


def grid(*overrides: str) -> Answer:
    return run(train, "-m", FAST, *overrides)


def sweep_of(folder: Path) -> Path:
    (sweep,) = (folder / "runs").glob("*/sweep_*")
    return sweep


def statuses(sweep: Path) -> dict[str, str]:
    return {path.parent.name: read_json(path)["status"] for path in sweep.glob("*/summary.json")}


def rows(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def start(folder: Path, *overrides: str) -> "subprocess.Popen[str]":
    """`python train.py -m …` in a fresh process, at the head of a group of its own."""
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "train.py"), "-m", *overrides],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


# the directory


def test_two_sweeps_of_one_second_have_a_directory_each(tmp_path: Path) -> None:
    made = [make_sweep_directory(tmp_path / "runs" / "sweep") for _ in range(3)]
    assert [path.name for path in made] == ["sweep", "sweep_2", "sweep_3"]
    assert all(path.is_dir() for path in made)


def test_a_sweep_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"^hydra\.sweep\.dir: .*/file/sweep cannot be made"):
        make_sweep_directory(tmp_path / "file" / "sweep")


# in one process, by Hydra's own launcher


def test_another_launcher_can_be_chosen(in_tmp_path: Path) -> None:
    answer = grid(BASIC, "seed=1,2")
    assert answer.code == 0, answer.err
    assert answer.out.startswith("grid: 2 jobs = 2 seed\nresults in runs/fast/sweep_")
    sweep = sweep_of(in_tmp_path)
    assert statuses(sweep) == {"000_seed1": "completed", "001_seed2": "completed"}
    assert [row["seed"] for row in rows(sweep)] == ["1", "2"]
    files = {path.name for path in sweep.iterdir() if not path.name.startswith(".lock")}
    assert files == {"000_seed1", "001_seed2", "configs", "jobs.json", "sweep.csv", "sweep.yaml"}


@pytest.mark.slow
def test_with_another_launcher_too_a_job_that_fails_does_not_stop_the_others(in_tmp_path: Path) -> None:
    answer = grid(BASIC, "optimizer.lr=-1,1e30,0.05")
    assert answer.code == 1
    sweep = sweep_of(in_tmp_path)
    assert statuses(sweep) == {"001_lr1e30": "failed", "002_lr0.05": "completed"}
    assert [row["status"] for row in rows(sweep)] == ["failed", "failed", "completed"]
    failures = answer.err.split("error: 2 of 3 jobs did not complete:\n")[1].splitlines()
    assert failures[0] == "  000 optimizer.lr=-1: failed: optimizer.lr: expected a number ≥ 0, received -1"
    assert failures[1].startswith("  001 optimizer.lr=1e30: failed: the loss of step ")


def test_what_another_launcher_did_until_it_was_stopped_is_in_the_table(
    in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(launcher: object, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> None:
        for overrides, status in zip(job_overrides, ("completed", "interrupted"), strict=False):
            directory = RunDirectory.create("fast", Path(overrides[-1].removeprefix("run_dir=").strip("'")))
            directory.write_json("summary.json", {"status": status})
            directory.release()
        raise Interrupted(signal.SIGTERM)

    basic = Plugins.instance().class_name_to_class["hydra._internal.core_plugins.basic_launcher.BasicLauncher"]
    monkeypatch.setattr(basic, "launch", launch)
    answer = grid(BASIC, "seed=1,2,3")
    assert answer.code == 128 + signal.SIGTERM
    assert [row["status"] for row in rows(sweep_of(in_tmp_path))] == ["completed", "interrupted", "not started"]


def test_a_quiet_grid_prints_nothing_but_its_failures(in_tmp_path: Path) -> None:
    answer = grid(BASIC, "observers=quiet", "optimizer.lr=-1,0.05")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.startswith("error: 1 of 2 jobs did not complete:\n")
    assert "failed: optimizer.lr: expected a number ≥ 0, received -1\n" in answer.err
    assert [row["status"] for row in rows(sweep_of(in_tmp_path))] == ["failed", "completed"]


@pytest.mark.slow
def test_another_sweeper_can_use_our_processes(in_tmp_path: Path) -> None:
    answer = run(train, "-m", FAST, "hydra/sweeper=basic", "trainer.max_steps=0", "seed=1")
    assert answer.code == 0, answer.err
    assert "layer" in (sweep_of(in_tmp_path) / "000.log").read_text()


# axes of every kind


def test_axes_of_any_kind_work_together_and_beside_values(in_tmp_path: Path) -> None:
    blocks = ("{type: linear, out_features: classes}", "{type: linear, out_features: 10}")
    axes = ("model=choice(linear)", "seed=range(1,3)", "optimizer.dampening=choice(0.1)")
    values = ("~schedule.pct_start", "optimizer.nesterov=false", "trainer.max_steps=0")
    answer = grid(BASIC, *axes, f"model.blocks.output={','.join(blocks)}", "+model.blocks.last=choice(relu)", *values)
    assert answer.code == 0, answer.err
    outputs = [block.replace(" ", "") for block in blocks]
    expected = [("linear", seed, "0.1", output, "relu", "completed") for seed in "12" for output in outputs]
    keys = ("model", "seed", "optimizer.dampening", "model.blocks.output", "model.blocks.last", "status")
    assert [tuple(row[key] for key in keys) for row in rows(sweep_of(in_tmp_path))] == expected


# what the processes get


class Recorded(Processes):
    """Starts nothing; keeps what would have been started."""

    last: "Recorded"
    tasks: Mapping[int, Task]

    def run(
        self,
        tasks: Iterable[tuple[int, Task] | None],
        ended: Callable[..., None],
        look: Callable[[], None] = lambda: None,
        start: Start = start_fresh,
    ) -> None:
        Recorded.last = self
        self.tasks = dict(filter(None, tasks))


@pytest.fixture
def recorded(in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Recorded]:
    monkeypatch.setattr("cnnlab.sweep.launcher.Processes", Recorded)
    monkeypatch.setattr("cnnlab.sweep.launcher.starter", lambda environment, jobs: nullcontext(start_fresh))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return Recorded


def test_a_jobs_command_is_the_users_with_a_value_of_each_axis(recorded: type[Recorded], in_tmp_path: Path) -> None:
    (in_tmp_path / "mine" / "model").mkdir(parents=True)
    (in_tmp_path / "mine" / "model" / "small.yaml").write_text(
        "blocks: {flatten: flatten, output: {type: linear, out_features: classes}}"
    )
    arguments = (
        "--config-dir",
        "mine",
        "model=small,mlp",
        "hydra.launcher.n_jobs=2",
        "hydra.job.name=mine",
        "optimizer.dampening=0",
    )
    run(train, *arguments, "-m")
    sweep = sweep_of(in_tmp_path).relative_to(in_tmp_path)
    own = recorded.last.tasks[0].command[3:]
    assert own[:2] == ["--config-dir=mine", "hydra.job.name=mine"]
    assert own[-3:] == ["model=small", "++optimizer.dampening=0", f"run_dir='{sweep}/000_small'"]
    assert [one for one in own if "launcher" in one or "hydra.mode" in one] == []
    assert recorded.last.tasks[0].log == sweep / "000_small.log"
    assert "HYDRA_FULL_ERROR" not in recorded.last.environment  # set while Hydra runs here, not by the user


def test_a_jobs_interpreter_imports_from_where_ours_does(recorded: type[Recorded]) -> None:
    grid("seed=1,2")
    command = recorded.last.tasks[0].command
    program = command[2].replace("from cnnlab.cli import train; train()", "import cnnlab; print(cnnlab.__file__)")
    answer = subprocess.run([*command[:2], program], capture_output=True, text=True, check=True, cwd="/")
    assert answer.stdout.strip() == cnnlab.__file__


def test_the_processes_of_a_quiet_grid_are_started_without_a_word(recorded: type[Recorded]) -> None:
    answer = grid("observers=quiet", "seed=1,2")
    assert (answer.out, len(recorded.last.tasks)) == ("", 2)


def test_tracebacks_are_for_jobs_where_the_user_asks_for_them(
    recorded: type[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", FAST, "seed=1,2"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(SystemExit):
        train()
    assert recorded.last.environment["HYDRA_FULL_ERROR"] == "1"


@pytest.mark.parametrize(("n_jobs", "at_once"), [(1, 1), (2, 2), (9, 3), (None, 1)])
def test_no_more_run_at_once_than_there_are(monkeypatch: pytest.MonkeyPatch, n_jobs: int | None, at_once: int) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert ProcessLauncher(n_jobs).processes(3).at_once == at_once


def test_a_log_says_how_much_is_left() -> None:
    now = iter([0.0, 0.0, 100.0, 200.0, 300.0])
    with Progress(get_time=lambda: next(now), speed_estimate_period=1000, disable=True) as progress:
        task = progress.add_task("", total=4)
        said = []
        for _ in range(3):
            progress.advance(task)
            said.append(time_left(progress))
    assert said == ["", "  (2 of 4 done, about 0:03:20 left)", "  (3 of 4 done, about 0:01:40 left)"]


def test_where_there_are_several_gpus_each_has_a_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    processes = ProcessLauncher(None).processes(3)
    assert (processes.at_once, processes.gpus) == (2, ["0", "1"])
    assert "2 at a time, on GPUs 0,1" in capsys.readouterr().out


def test_a_job_that_is_refused_starts_no_process(recorded: type[Recorded], in_tmp_path: Path) -> None:
    answer = grid("data.batch_size=32,64", "trainer.accumulate=1,64")
    assert sorted(recorded.last.tasks) == [0, 2, 3]
    assert "001 data.batch_size=32 trainer.accumulate=64  failed  trainer.accumulate: expected at most" in answer.out
    assert rows(sweep_of(in_tmp_path))[1]["status"] == "failed"


def test_a_grid_is_checked_while_hydra_holds_each_jobs_config(recorded: type[Recorded]) -> None:
    """A mapping of another type replaces the experiment's choice in one job, and does not linger in the next."""
    grid("model=mlp,cnn", "model.blocks.output={type: linear, out_features: classes, bias: false}")
    assert sorted(recorded.last.tasks) == [0, 1]


# in separate processes

MINE = """
import os, signal
from torch import nn

class Bomb(nn.Module):
    # the first process to reach it is killed, as by the kernel when memory runs out
    def forward(self, x_NCHW):
        if not x_NCHW.is_meta:
            try:
                os.close(os.open("exploded", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return x_NCHW
            os.kill(os.getpid(), signal.SIGKILL)
        return x_NCHW
"""


@pytest.mark.slow
def test_a_job_that_is_killed_leaves_the_others_whole(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    axis = "optimizer.lr=0.01,0.05,0.1"
    process = start(tmp_path, FAST, axis, "model=mlp", "+model.blocks.bomb=mine.Bomb", "hydra.launcher.n_jobs=2")
    out, err = process.communicate(timeout=500)
    assert process.returncode == 1, err
    assert out.startswith("grid: 3 jobs = 3 optimizer.lr\n")
    assert "2 at a time, OMP_NUM_THREADS=" in out
    sweep = sweep_of(tmp_path)
    summaries = {path.parent.name: read_json(path) for path in sweep.glob("*/summary.json")}
    assert [summary["status"] for summary in summaries.values()] == ["completed"] * 2
    table = rows(sweep)
    assert [row["optimizer.lr"] for row in table] == ["0.01", "0.05", "0.1"]
    (killed,) = (row for row in table if row["status"] != "completed")
    assert (killed["status"], killed["accuracy/test"]) == ("failed", "")
    for row in table:
        if row is not killed:
            assert float(row["accuracy/test"]) == summaries[Path(row["directory"]).name]["test"]["accuracy"]
            assert float(row["accuracy/val"]) == summaries[Path(row["directory"]).name]["best"]["accuracy/val"]
    best = max((row for row in table if row is not killed), key=lambda row: float(row["accuracy/val"]))
    assert f"* best by accuracy/val: {best['directory']}\n" in out
    assert err.startswith("error: 1 of 3 jobs did not complete:\n")
    assert f"{int(killed['number']):03d} optimizer.lr={killed['optimizer.lr']}: failed: killed by SIGKILL" in err
    environment = read_json(tmp_path / best["directory"] / "environment.json")
    assert environment["threads"] == max(1, cpu_count() // 2)


@pytest.mark.parametrize(
    ("number", "to_all"), [pytest.param(signal.SIGTERM, False, marks=pytest.mark.slow), (signal.SIGINT, True)]
)
def test_a_signal_lets_the_running_job_save_and_starts_no_other(
    tmp_path: Path, number: signal.Signals, to_all: bool
) -> None:
    process = start(tmp_path, "seed=1,2", "trainer.epochs=5000", "trainer.checkpoint_every=5", "observers=quiet")
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("runs/*/*/000_*/checkpoints/step-*")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    (os.killpg if to_all else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    sweep = sweep_of(tmp_path)
    assert statuses(sweep) == {"000_seed1": "interrupted"}
    assert [row["status"] for row in rows(sweep)] == ["interrupted", "not started"]
    assert f"resume={sweep.relative_to(tmp_path)}/000_seed1 continues it" in err
    assert err.splitlines()[-1].endswith(f"resume={sweep.relative_to(tmp_path)}")
    assert out == ""
    assert "001_seed2" not in {path.name for path in sweep.iterdir()}


def test_a_launcher_can_send_a_command_to_another_machine() -> None:
    assert all(pickle.loads(pickle.dumps(task)) is task for task in TASKS.values())


@pytest.mark.slow
def test_submitit_runs_jobs_and_returns_their_results(in_tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    answer = ok(grid("seed=1,2", "model=linear", "observers=quiet", "hydra/launcher=submitit_local"))
    with (sweep_of(in_tmp_path) / "sweep.csv").open(encoding="utf-8") as file:
        found = [(row["seed"], row["status"]) for row in csv.DictReader(file)]
    assert found == [("1", "completed"), ("2", "completed")]
    assert answer.err == ""


def test_the_best_of_a_grid_is_by_the_metric_that_was_asked_for(in_tmp_path: Path) -> None:
    widths = "model.blocks.hidden1.out_features=8,4,16"
    answer = ok(grid(BASIC, "model=mlp", widths, "sweep.metric=parameters"))
    assert "* best by parameters" in answer.out
    assert re.search(r"^ 1\* .*4 ", answer.out, re.MULTILINE)
    refused = grid(BASIC, "model=mlp", widths, "sweep.metric=parametres")
    assert refused.code == 2
    assert "did you mean 'parameters'?" in refused.err
