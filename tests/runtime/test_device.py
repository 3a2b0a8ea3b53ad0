"""Which device a run uses, and what machine that is."""

import platform
import subprocess
from pathlib import Path

import pytest
import torch

from cnnlab.runtime.device import describe_environment, git_commit, select_device
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


@pytest.mark.parametrize(("usable", "expected"), [(True, "cuda"), (False, "cpu")])
def test_auto_takes_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch, usable: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
    assert select_device("auto").type == expected


def test_cpu_is_taken_where_there_is_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert select_device("cpu").type == "cpu"


def test_cuda_without_a_gpu_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"^device: cuda .* device=cpu or device=auto"):
        select_device("cuda")


def test_an_unknown_device_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^device: expected auto, cpu or cuda, received 'cdua'; did you mean 'cuda'"):
        select_device("cdua")


def test_the_environment_holds_versions_and_threads() -> None:
    environment = describe_environment(torch.device("cpu"))
    assert environment["python"] == platform.python_version()
    assert environment["torch"] == torch.__version__
    assert environment["threads"] == torch.get_num_threads()
    assert (environment["device"], environment["cuda"]) == ("cpu", None)


def test_the_environment_holds_the_commit_of_the_working_directory(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    assert describe_environment(torch.device("cpu"))["git_commit"] == head(repository)


def test_a_changed_checkout_is_marked(repository: Path) -> None:
    (repository / "file.txt").write_text("two\n")
    assert git_commit(repository) == f"{head(repository)}+changes"


def test_files_that_git_does_not_know_are_no_change(repository: Path) -> None:
    (repository / "new.txt").write_text("new\n")
    assert git_commit(repository) == head(repository)


def test_outside_of_a_checkout_there_is_no_commit(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None


def test_without_git_there_is_no_commit(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_commit(repository) is None
