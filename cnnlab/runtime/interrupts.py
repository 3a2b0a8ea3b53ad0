"""SIGINT and SIGTERM before there is anything to save."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cnnlab.runtime.terminal import leave_terminal


@contextmanager
def exit_at_interrupt() -> Iterator[None]:
    """Either ends the process at once, with status 130 or 143, and leaves the terminal as it was.

    An exception within an import of torch would have a long traceback.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: Any) -> None:
        leave_terminal()
        os._exit(128 + number)

    previous = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
