"""What the terminal needs: lines and tables that fit it, and a spinner while nothing else moves."""

import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:  # rich is imported where something is drawn: a refusal needs none of it
    from rich.status import Status
    from rich.table import Table

WIDEST = 1000  # columns, where the output is no terminal: nothing is cut off
UNKNOWN_WIDTH = 80  # columns, where a terminal does not report how many it has
NO_BREAK = "\0"  # stands for a blank at which no line is broken
SHOW_CURSOR, ERASE_LINE = b"\x1b[?25h", b"\r\x1b[2K"
_spinner: "Status | None" = None
_silenced = False


def printable(text: object) -> str:
    """A name from elsewhere, for messages and tables: what a terminal would act on is escaped."""
    given = str(text)
    if given.isprintable():  # nearly always
        return given
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "backslashreplace").decode()
        for letter in given
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
    """True for a terminal that can redraw a line. FORCE_COLOR asks for colours in a pipe, not for that.

    False for every stream while the output is silenced.
    """
    return not _silenced and stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def wrapped(text: str, stream: IO[str], unbroken: Iterable[object] = ()) -> str:
    """Lines broken for the terminal that the stream is, each continued below its own beginning.

    A line is broken where two blanks separate its columns, else between words. A word is never broken, nor is what
    `unbroken` lists, such as a path with blanks: what is wider than the terminal stands on a line of its own.
    """
    columns = width(stream)
    if columns is None:
        return text
    for part in map(str, unbroken):
        text = text.replace(part, part.replace(" ", NO_BREAK))
    lines = [line for given in text.split("\n") for line in _broken(given, columns)]
    return "\n".join(lines).replace(NO_BREAK, " ")


def _broken(line: str, columns: int) -> list[str]:
    indent = " " * (len(line) - len(line.lstrip(" ")) + 2)
    done, current = [], ""
    for gap, part in re.findall(r"( *)([^ ]+(?: [^ ]+)*)", line):
        if _cells(current + gap + part) <= columns:
            current += gap + part
            continue
        if current and _cells(indent + part) <= columns:
            done.append(current)
            current = indent + part
            continue
        for word in part.split(" "):
            if current and _cells(current + gap + word) > columns:
                done.append(current)
                current, gap = "", indent if _cells(indent + word) <= columns else ""
            current, gap = current + gap + word, " "
    return [*done, current]


def _cells(text: str) -> int:
    """The columns that a text takes: East Asian letters take two."""
    return len(text) + sum(unicodedata.east_asian_width(letter) in "WF" for letter in text if letter > "\u0fff")


def print_wrapped(text: object, *unbroken: object, flush: bool = False) -> None:
    """Prints lines to stdout as `wrapped` breaks them."""
    print(wrapped(str(text), sys.stdout, unbroken), flush=flush)


def print_command(title: str, program: str, argument: str) -> None:
    """Prints a command to copy, over two lines of a shell where one is too narrow."""
    line, columns = f"  {title:<10} {program} {argument}", width()
    if columns and _cells(line) > columns and os.name != "nt":
        line = f"  {title:<10} {program} \\\n    {argument}"
    print(line)


def print_written(folder: Path, paths: Sequence[Path]) -> None:
    """Prints where the files were written: whole paths, or names below the folder where the paths are too wide."""
    lines, columns = [f"written to {paths[0]}", *(f"           {path}" for path in paths[1:])], width()
    if columns and max(map(_cells, lines)) > columns:
        lines = [f"written to {folder}", *(f"  {path.relative_to(folder)}" for path in paths)]
    print("\n".join(lines))


def fitting(variants: "Iterable[Table]", columns: int | None) -> "Table":
    """The first of the variants that fits into so many columns, the last where none does; any fits None."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(width=WIDEST)
    for table in variants:
        if columns is None or Measurement.get(console, console.options, table).maximum <= columns:
            break
    return table


def print_table(table: "Table", *, markup: bool = True) -> None:
    """Prints a table to stdout, whole where that is no terminal; in one that is too narrow its cells are cut off."""
    from rich.console import Console

    Console(width=width() or WIDEST, highlight=False, markup=markup).print(table)


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
