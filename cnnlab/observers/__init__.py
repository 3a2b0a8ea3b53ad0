"""Observers of a run: they read the trainer's records and never steer it."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from cnnlab.engine.records import Record
from cnnlab.observers.console import Console
from cnnlab.observers.json_lines import JSONLines
from cnnlab.observers.tensorboard import TensorBoard
from cnnlab.runtime.errors import first_line
from cnnlab.runtime.terminal import wrapped


@runtime_checkable
class Observer(Protocol):
    """Takes every record of a run, the first of them `Started`; `close` is called once at its end."""

    def log(self, record: Record) -> None: ...
    def close(self) -> None: ...


OBSERVERS: dict[str, Callable[..., Observer]] = {
    "console": Console,
    "json_lines": JSONLines,
    "tensorboard": TensorBoard,
}


class Observers:
    """All observers of a run as one. One that fails is reported once and dropped; the others and training continue."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = list(observers)

    def log(self, record: Record) -> None:
        self._each(lambda observer: observer.log(record))

    def close(self) -> None:
        self._each(lambda observer: observer.close())

    def _each(self, call: Callable[[Observer], None]) -> None:
        for observer in list(self.observers):
            try:
                call(observer)
            except Exception as error:  # a full disk or a broken pipe must not end the run
                self.observers.remove(observer)
                with contextlib.suppress(Exception):
                    observer.close()
                warning = (
                    f"warning: the observer {type(observer).__name__} failed and is dropped: "
                    f"{type(error).__name__}: {first_line(error)}"
                )
                print(wrapped(warning, sys.stderr), file=sys.stderr)
