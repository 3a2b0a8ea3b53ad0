"""Shared by all tests: one thread each (they run side by side), and a clean place to write."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; the tests run side by side


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test writes decoded images into a person's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CNNLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory is empty and the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def completed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps that came to its end. Read it, leave it as it is."""
    from fast_run import train_fast  # imports torch, which is to find one thread

    path = tmp_path_factory.mktemp("completed") / "run"
    answer = train_fast(f"run_dir={path}")
    assert answer.code == 0, answer.err
    return path


@pytest.fixture
def finished(completed_run: Path, in_tmp_path: Path) -> Path:
    """A copy of the completed run under the working directory."""
    return Path(shutil.copytree(completed_run, in_tmp_path / "run"))
