"""Shared by all tests: one thread each (they run side by side), no network, no data set, a clean place to write."""

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; the tests run side by side

DATA = Path(os.environ.get("CNNLAB_DATA") or "nowhere").absolute()
NETWORK_EVENTS = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname")


def refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    """Fails a test at its first network access, which no `except Exception` hides; Unix sockets serve processes."""
    if event not in NETWORK_EVENTS or getattr(arguments[0], "family", None) == socket.AF_UNIX:
        return
    pytest.fail(f"a test must not access the network: {event}{arguments}")


sys.addaudithook(refuse_network)  # inherited by forked processes; those started afresh find a proxy that is not there
os.environ.update(http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9", no_proxy="")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if torture := item.get_closest_marker("torture"):
        item.user_properties.append(("figure", torture.kwargs["figure"]))
    if item.get_closest_marker("mnist") and not (DATA / "MNIST/raw/train-images-idx3-ubyte").is_file():
        pytest.skip("CNNLAB_DATA names no folder with MNIST")


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads a person's data sets, or writes decoded images into a person's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CNNLAB_DATA", raising=False)
        patch.setenv("CNNLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """The `data.root` of real MNIST, for tests marked `mnist`."""
    return DATA


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory is empty and the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def completed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A completed run of six steps. Read it, leave it as it is."""
    from fast_run import train_fast  # imports torch, which must find one thread

    path = tmp_path_factory.mktemp("completed") / "run"
    answer = train_fast(f"run_dir={path}")
    assert answer.code == 0, answer.err
    return path


@pytest.fixture
def finished(completed_run: Path, in_tmp_path: Path) -> Path:
    """A copy of the completed run under the working directory."""
    return Path(shutil.copytree(completed_run, in_tmp_path / "run"))
