"""The device of a run, its memory, and the environment around it."""

import platform
import subprocess
from pathlib import Path

import pytest
import torch

from cnnlab.runtime.device import (
    describe_environment,
    free_memory,
    git_commit,
    machine_memory,
    select_device,
    size_text,
)
from cnnlab.runtime.errors import ConfigError


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with one commit of one file."""
    (tmp_path / "file.txt").write_text("one\n")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "file.txt"], [*identity, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    return tmp_path


def head(repository: Path) -> str:
    return next((repository / ".git" / "refs" / "heads").iterdir()).read_text().strip()


@pytest.mark.parametrize(
    ("name", "usable", "expected"), [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu")]
)
def test_auto_takes_cuda_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, name: str, usable: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
    assert select_device(name).type == expected


def test_auto_never_takes_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert select_device("auto").type == "cpu"
    assert select_device("mps").type == "mps"


def test_a_device_without_a_gpu_and_an_unknown_one_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cuda", "mps"):
        with pytest.raises(ConfigError, match=rf"^device: {name} .* device=cpu or device=auto"):
            select_device(name)
    with pytest.raises(
        ConfigError, match=r"^device: expected auto, cpu, cuda or mps, received 'cdua'; did you mean 'cuda'"
    ):
        select_device("cdua")


def test_each_rank_of_a_machine_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_device", lambda number: None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert select_device("auto") == torch.device("cuda", 1)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    message = "device: torchrun has started 4 ranks on this machine, which has 2 GPUs: expected --nproc-per-node=2"
    with pytest.raises(ConfigError, match=message):
        select_device("cuda")
    assert select_device("cpu") == torch.device("cpu")


def test_the_environment_holds_versions_threads_and_the_commit_of_the_working_directory(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    environment = describe_environment(torch.device("cpu"))
    assert environment["python"] == platform.python_version()
    assert environment["torch"] == torch.__version__
    assert environment["threads"] == torch.get_num_threads()
    assert (environment["device"], environment["cuda"]) == ("cpu", None)
    assert environment["git_commit"] == head(repository)


def test_a_changed_checkout_is_marked_and_an_unknown_file_is_no_change(repository: Path) -> None:
    (repository / "new.txt").write_text("new\n")
    assert git_commit(repository) == head(repository)
    (repository / "file.txt").write_text("two\n")
    assert git_commit(repository) == f"{head(repository)}+changes"


def test_without_git_or_outside_of_a_checkout_there_is_no_commit(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert git_commit(repository.parent) is None
    monkeypatch.setenv("PATH", "")
    assert git_commit(repository) is None


CPU = torch.device("cpu")


def test_the_free_memory_is_a_part_of_the_machines_and_of_a_gpu_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < free_memory(CPU) <= machine_memory()
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (7, 100))
    assert free_memory(torch.device("cuda")) == 7


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [("5000", "2000", 3500), ("5000", "6000", 1), ("max", "2000", None), ("garbage", "", None)],
)
def test_a_container_has_what_its_limit_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, used: str, expected: int | None
) -> None:
    monkeypatch.setattr("cnnlab.runtime.device.CONTROL_GROUP", tmp_path)
    unlimited = free_memory(CPU)
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    (tmp_path / "memory.stat").write_text("active_file 7\ninactive_file 500\n")  # cached files give way
    if expected is None:
        assert free_memory(CPU) == pytest.approx(unlimited, rel=0.5)
    else:
        assert free_memory(CPU) == expected


@pytest.mark.parametrize(("size", "text"), [(999, "999 bytes"), (1_000, "1.0 kB"), (10**15, "1,000,000 GB")])
def test_a_size_is_shown_in_the_unit_that_fits(size: int, text: str) -> None:
    assert size_text(size) == text
