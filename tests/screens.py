"""Terminals for tests: a stream that says it is one, and a real one for a process."""

import io
import os
import subprocess
import sys

import pytest

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


class Terminal(io.StringIO):
    """Keeps what a terminal would get."""

    def isatty(self) -> bool:
        return True


def on_a_terminal(program: str, *arguments: str) -> tuple[int, str]:
    """Exit status and output of Python code in a process whose terminal has 80 columns."""
    pty = pytest.importorskip("pty", reason="Windows has none")
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=its,
        stdout=its,
        stderr=its,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
        start_new_session=True,
    )
    os.close(its)
    shown = b""
    try:
        while part := os.read(ours, 1 << 16):
            shown += part
    except OSError:  # Linux says so when the process has ended
        pass
    os.close(ours)
    return process.wait(), shown.decode()
