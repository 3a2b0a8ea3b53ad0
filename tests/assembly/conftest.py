"""One short run for all tests of this folder; each test gets a copy that it may spoil."""

import shutil
from pathlib import Path

import pytest
from fast_run import train_fast


@pytest.fixture(scope="session")
def completed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps that came to its end. Read it, leave it as it is."""
    path = tmp_path_factory.mktemp("completed") / "run"
    answer = train_fast(f"run_dir={path}")
    assert answer.code == 0, answer.err
    return path


@pytest.fixture
def finished(completed_run: Path, in_tmp_path: Path) -> Path:
    """A copy of the completed run under the working directory."""
    return Path(shutil.copytree(completed_run, in_tmp_path / "run"))
