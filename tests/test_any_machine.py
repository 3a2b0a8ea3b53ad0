"""Linux without what macOS and Windows lack: a whole training, its resumption and its evaluation come out the same."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fast_run import FAST, read_json
from image_folders import write_folders

from cnnlab.runtime.device import cpu_count

REPOSITORY = Path(__file__).parents[1]
# what Windows lacks, macOS's part among it; libraries that are built for this system are imported before
TAKEN_AWAY = """
import mmap, multiprocessing, os, signal, sys
import filelock, hydra, psutil, tensorboard, torch, torchvision
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
for module, names in {
    os: ("sched_getaffinity", "pwrite", "sysconf", "O_DIRECTORY"),
    mmap: ("MADV_RANDOM",),
    signal: ("SIGPIPE", "SIGHUP"),
}.items():
    for name in names:
        delattr(module, name)
if len(sys.argv) > 1 and sys.argv[1] == "--without-fork":
    del os.fork
    del sys.argv[1]
from cnnlab.cli import evaluate, train
{command}()
"""


def run_without(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in a fresh process whose modules lack what other systems lack."""
    program = TAKEN_AWAY.replace("{command}", command)
    answer = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer


@pytest.mark.slow
def test_a_run_without_what_other_systems_lack_is_the_same(finished: Path) -> None:
    run_without("train", FAST, "run_dir=elsewhere")
    ours, theirs = (read_json(path / "summary.json") for path in (finished, Path("elsewhere")))
    assert (theirs["test"], theirs["best"], theirs["status"]) == (ours["test"], ours["best"], "completed")


@pytest.mark.slow
def test_own_images_are_cached_resumed_and_evaluated_without_them(in_tmp_path: Path) -> None:
    write_folders(in_tmp_path / "images", {"cat": 20, "dog": 20})
    images = ("data=image_folder", "data.root=images", "data.size=8", "data.batch_size=8")
    streamed = (*images, FAST, "data.memory_fraction=1e-9", "run_dir=run")
    answer = run_without("train", "--without-fork", *streamed, "trainer.max_steps=3")
    assert "decoding 36 images once" in answer.stdout
    assert "with no worker" in answer.stdout
    run_without("train", "--without-fork", "resume=run", "trainer.max_steps=6", "schedule.restart=true")
    run_without("evaluate", "run=run")
    assert list(Path("run").glob("evaluation-test-*.json"))


def test_files_are_read_and_replaced_without_the_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_DIRECTORY"):
        monkeypatch.delattr(os, flag)
    module = runpy.run_path(str(REPOSITORY / "cnnlab/runtime/files.py"))
    for content in (b"old", b"new\r\n\x1a"):
        module["replace_file"](tmp_path / "file", content)
        assert module["read_regular"](tmp_path / "file", 10) == content
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_the_cores_are_counted_without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    assert cpu_count() == 3


def test_the_workflow_runs_targets_of_the_makefile_on_three_systems() -> None:
    job = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]["ci"]
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = [step["run"].split()[1] for step in job["steps"] if "run" in step]
    assert all(f"\n{target}: " in makefile for target in targets)
    assert [system.partition("-")[0] for system in job["strategy"]["matrix"]["os"]] == ["ubuntu", "macos", "windows"]


def test_the_image_of_a_container_copies_files_that_are_there() -> None:
    lines = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]]
    ignored = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied
    assert all((REPOSITORY / name).exists() and f"!{name}" in ignored for name in copied)
