"""SIGINT before there is anything to save."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cnnlab.runtime.terminal import leave_terminal


@contextmanager
def exit_at_interrupt() -> Iterator[None]:
    """SIGINT ends the process at once, with status 130: an exception within an import of torch has a long traceback."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: Any) -> None:
        leave_terminal()
        os._exit(128 + number)

    previous = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
