"""Shared by all tests: one thread each (they run side by side), and a clean place to write."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; the tests run side by side


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory is empty and the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
