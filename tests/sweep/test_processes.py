import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cnnlab.sweep.processes import (
    Ended,
    Processes,
    Start,
    Task,
    gpus_to_share,
    least_used,
    shared_threads,
    start_fresh,
)
from cnnlab.sweep.worker import Worker


@pytest.fixture(params=["fresh", "copies"])
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """How a process starts."""
    if request.param == "fresh":
        yield start_fresh
        return
    with closing(Worker(os.environ, modules=())) as worker:
        yield worker.start


def python(program: str, log: Path) -> Task:
    return Task([sys.executable, "-c", program], log)


def run(
    programs: list[str],
    folder: Path,
    at_once: int = 1,
    gpus: tuple[str, ...] = (),
    look: Callable[[Processes], None] = lambda processes: None,
    start: Start = start_fresh,
) -> tuple[dict[int, Ended], Processes]:
    """How each program ended; program n writes to `n.log`."""
    ended: dict[int, Ended] = {}
    processes = Processes(at_once, gpus, dict(os.environ))
    tasks = {number: python(program, folder / f"{number}.log") for number, program in enumerate(programs)}
    processes.run(tasks.items(), ended.__setitem__, lambda: look(processes), start)
    return ended, processes


# sharing


@pytest.mark.parametrize(
    ("cores", "at_once", "threads"),
    [(8, 2, "4"), (8, 3, "2"), (2, 8, "1"), (1, 2, "1")],
)
def test_the_cores_are_shared_out(cores: int, at_once: int, threads: str) -> None:
    shared = shared_threads({}, cores, at_once)
    assert set(shared.values()) == {threads}
    assert {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} <= shared.keys()


def test_one_process_at_a_time_may_have_every_core() -> None:
    assert shared_threads({}, 8, 1) == {}


def test_a_number_of_threads_that_is_set_holds() -> None:
    assert shared_threads({"OMP_NUM_THREADS": "3"}, 8, 2) == {}
    assert "MKL_NUM_THREADS" not in shared_threads({"MKL_NUM_THREADS": "3"}, 8, 2)


@pytest.mark.parametrize(
    ("environment", "count", "gpus"),
    [
        ({}, 0, []),
        ({}, 1, []),
        ({}, 3, ["0", "1", "2"]),
        ({"CUDA_VISIBLE_DEVICES": "2,5"}, 2, ["2", "5"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}, 2, ["GPU-a", "GPU-b"]),
        ({"CUDA_VISIBLE_DEVICES": "2"}, 1, []),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0, []),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 0, []),  # named, but not there
    ],
)
def test_several_gpus_are_shared(environment: dict[str, str], count: int, gpus: list[str]) -> None:
    assert gpus_to_share(environment, count) == gpus


@pytest.mark.parametrize(
    ("in_use", "chosen"), [([], "0"), (["0"], "1"), (["1"], "0"), (["0", "1"], "0"), (["0", "1", "0"], "1")]
)
def test_the_gpu_that_the_fewest_use_is_next(in_use: list[str], chosen: str) -> None:
    assert least_used(["0", "1"], in_use) == chosen


def test_processes_side_by_side_see_a_gpu_each(tmp_path: Path, start: Start) -> None:
    program = "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(0.5)"
    run([program] * 4, tmp_path, at_once=2, gpus=("4", "7"), start=start)
    seen = [(tmp_path / f"{number}.log").read_text().strip() for number in range(4)]
    assert sorted(seen[:2]) == sorted(seen[2:]) == ["4", "7"]


# running


def test_as_many_run_at_once_as_were_asked_for(tmp_path: Path) -> None:
    counts: list[int] = []
    run(["import time; time.sleep(0.2)"] * 5, tmp_path, 2, look=lambda processes: counts.append(len(processes.running)))
    assert max(counts) == 2
    assert counts[-1] == 0


def test_what_a_process_prints_goes_to_its_log(tmp_path: Path, start: Start) -> None:
    run(["import sys; print('out', flush=True); print('err', file=sys.stderr)"], tmp_path, start=start)
    assert (tmp_path / "0.log").read_text() == "out\nerr\n"


def test_a_process_that_fails_or_is_killed_leaves_the_others_whole(tmp_path: Path, start: Start) -> None:
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    ended, _ = run(["print(1)", "raise SystemExit(3)", killed, "print(2)"], tmp_path, at_once=2, start=start)
    assert [ended[number].status for number in range(4)] == ["completed", "failed", "failed", "completed"]
    assert ended[1].remark == "exit status 3"
    assert ended[2].remark.startswith("killed by SIGKILL")


@pytest.mark.parametrize("status", [130, 143])
def test_a_process_that_saved_after_a_signal_is_interrupted(tmp_path: Path, status: int) -> None:
    ended, _ = run([f"raise SystemExit({status})", "print(1)"], tmp_path)
    assert [ended[number].status for number in range(2)] == ["interrupted", "completed"]


def test_the_seconds_are_of_the_process(tmp_path: Path) -> None:
    ended, _ = run(["import time; time.sleep(0.4)"], tmp_path)
    assert ended[0].seconds >= 0.4


# stopping

WAITS = """
import signal, sys, time
received = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: received.append(number))
print("ready", flush=True)
while not received:
    time.sleep(0.01)
time.sleep({more})
sys.exit(128 + received[0])
"""


def stop(folder: Path, number: signal.Signals, times: int = 1) -> None:
    """Sends this process a signal as soon as the first program is ready for it."""
    while "ready" not in (folder / "0.log").read_text():
        time.sleep(0.01)
    for _ in range(times):
        os.kill(os.getpid(), number)
        time.sleep(0.2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once_and_nothing_more_starts(
    tmp_path: Path, number: signal.Signals, start: Start
) -> None:
    (tmp_path / "0.log").touch()
    thread = threading.Thread(target=stop, args=(tmp_path, number))
    thread.start()
    ended, processes = run([WAITS.format(more=0.5), "print('started')"], tmp_path, start=start)
    thread.join()
    assert {number: how.status for number, how in ended.items()} == {0: "interrupted"}
    assert processes.stopped_by == number
    assert not (tmp_path / "1.log").exists()


def test_a_second_signal_kills(tmp_path: Path, start: Start) -> None:
    (tmp_path / "0.log").touch()
    thread = threading.Thread(target=stop, args=(tmp_path, signal.SIGTERM, 2))
    started = time.monotonic()
    thread.start()
    ended, processes = run([WAITS.format(more=60)], tmp_path, start=start)
    thread.join()
    assert time.monotonic() - started < 30
    assert (ended[0].status, ended[0].remark) == ("interrupted", "stopped by SIGKILL")
    assert processes.stopped_by == signal.SIGTERM


@pytest.mark.parametrize("start", ["start_fresh", "Worker(os.environ, ()).start"])
def test_a_signal_that_reaches_the_whole_group_is_each_ones_first(tmp_path: Path, start: str) -> None:
    """As Ctrl-C in a terminal does: what is passed on must not be a second of its kind, which would kill."""
    (tmp_path / "0.log").touch()
    once = WAITS.replace("received.append(number)", "(received.append(number), signal.signal(number, signal.SIG_DFL))")
    program = f"""
import os
from pathlib import Path
from cnnlab.sweep.processes import Processes, Task, start_fresh
from cnnlab.sweep.worker import Worker
ended = {{}}
task = Task([{sys.executable!r}, "-c", {once.format(more=0.5)!r}], Path({str(tmp_path / "0.log")!r}))
processes = Processes(1, [], dict(os.environ))
processes.run([(0, task)], ended.__setitem__, lambda: None, {start})
print(ended[0].status, ended[0].remark)
"""
    group = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True)
    while "ready" not in (tmp_path / "0.log").read_text():
        assert group.poll() is None
        time.sleep(0.01)
    os.killpg(group.pid, signal.SIGINT)
    assert group.communicate(timeout=60)[0].strip() == "interrupted stopped by SIGINT"


def test_the_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    run(["print(1)"], tmp_path)
    assert signal.getsignal(signal.SIGINT) is before


def test_where_we_fail_no_process_is_left_behind(tmp_path: Path) -> None:
    started: list[Processes] = []

    def fail(processes: Processes) -> None:
        started.append(processes)
        raise RuntimeError("no place to print to")

    with pytest.raises(RuntimeError, match="no place"):
        run(["import time; time.sleep(60)"], tmp_path, look=fail)
    (child,) = started[0].running
    assert isinstance(child.process, subprocess.Popen)
    assert child.process.wait(timeout=30) == -signal.SIGTERM
