"""What the terminal needs: lines and tables that fit it, and a spinner while nothing else moves."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:  # rich is imported where something is drawn: a refusal needs none of it
    from rich.status import Status
    from rich.table import Table

WIDEST = 1000  # columns, where the output is no terminal: nothing is cut off
UNKNOWN_WIDTH = 80  # columns, where a terminal does not report how many it has
SHOW_CURSOR, ERASE_LINE = b"\x1b[?25h", b"\r\x1b[2K"
_spinner: "Status | None" = None
_silenced = False


def printable(text: object) -> str:
    """A name from elsewhere, for messages and tables: what a terminal would act on is escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "backslashreplace").decode()
        for letter in str(text)
    )


def width(stream: IO[str] | None = None) -> int | None:
    """The columns of the terminal that the stream is, stdout by default; None where it is a pipe or a file."""
    stream = stream or sys.stdout
    if not stream.isatty():
        return None
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or UNKNOWN_WIDTH
    except OSError:
        return UNKNOWN_WIDTH


def is_live(stream: IO[str]) -> bool:
    """True for a terminal that can redraw a line. FORCE_COLOR asks for colors in a pipe, not for that.

    False for every stream while the output is silenced.
    """
    return not _silenced and stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def wrapped(text: str) -> str:
    """Lines of prose broken between words for the terminal that stderr is, each continued below its own beginning."""
    columns = width(sys.stderr)
    if columns is None:
        return text
    import textwrap

    lines = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()))
        lines += textwrap.wrap(
            line, columns, subsequent_indent=f"{indent}  ", break_long_words=False, break_on_hyphens=False
        ) or [""]
    return "\n".join(lines)


def fitting(variants: "Iterable[Table]", columns: int | None) -> "Table":
    """The first of the variants that fits into so many columns, the last where none does; any fits None."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(width=WIDEST)
    for table in variants:
        if columns is None or Measurement.get(console, console.options, table).maximum <= columns:
            break
    return table


def print_table(table: "Table") -> None:
    """Prints a table as it is: rich would squeeze one that is wider than the terminal."""
    from rich.console import Console

    Console(width=width() or WIDEST, highlight=False).print(table)


@contextmanager
def silenced(wanted: bool) -> Iterator[None]:
    """Nothing is printed to stdout where that is wanted, and no bar is drawn; errors go to stderr."""
    global _silenced
    if not wanted:
        yield
        return
    before, _silenced = _silenced, True
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            yield
    finally:
        _silenced = before


@contextmanager
def waiting(text: str, *, quiet: bool = False) -> Iterator[None]:
    """A spinner with `text` while something takes its time; nothing is left of it.

    Nothing is shown where stdout is no terminal that redraws lines, where it is `quiet`, and within another spinner.
    """
    global _spinner
    if quiet or _spinner or not is_live(sys.stdout):
        yield
        return
    from rich.console import Console
    from rich.status import Status

    _spinner = Status(text, console=Console())
    try:
        with _spinner:
            yield
    finally:
        _spinner = None


def stop_waiting() -> None:
    """Ends the spinner, if there is one, before something else moves: a terminal shows one at a time."""
    if _spinner:
        _spinner.stop()


def leave_terminal() -> None:
    """Shows the cursor again and removes the spinner: for a signal handler that ends the process at once.

    Takes no lock: the code that the signal interrupted may hold it.
    """
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream and not stream.closed and is_live(stream):
            terminal = os.dup(stream.fileno())
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # where another thread may still draw
            os.write(terminal, (ERASE_LINE if _spinner else b"") + SHOW_CURSOR)
            return
