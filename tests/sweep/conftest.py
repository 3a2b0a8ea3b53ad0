"""Sweeps start their jobs as copies of one process, which lives as long as the tests do: imports take seconds."""

from contextlib import nullcontext

import pytest
import trainings


@pytest.fixture(autouse=True)
def _one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnlab.sweep.launcher.starter", lambda environment, jobs: nullcontext(trainings.start()))
