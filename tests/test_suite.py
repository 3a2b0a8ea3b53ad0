"""The suite's own promises: no network, and as many repetitions as asked for."""

import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from repetitions import times


def test_the_network_is_refused_even_where_every_exception_is_caught() -> None:
    assert not issubclass(pytest.fail.Exception, Exception)
    with pytest.raises(pytest.fail.Exception, match="must not access the network"):
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open("http://192.0.2.1/", timeout=1)
    with pytest.raises(pytest.fail.Exception, match="must not access the network"), socket.socket() as opened:
        opened.connect_ex(("127.0.0.1", 9))


def test_processes_reach_each_other_through_unix_sockets(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as opened:
        listening.bind(str(tmp_path / "socket"))
        listening.listen()
        opened.connect(str(tmp_path / "socket"))


def test_a_fresh_process_downloads_nothing() -> None:
    script = "import urllib.request; urllib.request.urlopen('https://192.0.2.1/', timeout=1)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "URLError: <urlopen error [Errno 1" in ended.stderr  # refused or unreachable


def test_a_repetition_is_counted_in_full_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CNNLAB_TORTURE", raising=False)
    assert times(2, 100) == 2
    monkeypatch.setenv("CNNLAB_TORTURE", "1")
    assert times(2, 100) == 100
