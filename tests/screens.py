"""Terminals for tests: a stream that says it is one."""

import io


class Terminal(io.StringIO):
    """Keeps what a terminal would get."""

    def isatty(self) -> bool:
        return True
