"""Errors for users; `assert` is for programmers."""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A mistake in the config; the message has the key, what was expected and received, and the nearest legal name."""


class ArgumentError(ConfigError):
    """A constructor's argument that it cannot take. Whoever knows the component's key puts it in front.

    `argument` is the parameter's name, so that `Dropout(p=1.5)` in `model.blocks.dropout1` becomes
    `model.blocks.dropout1.p: …`.
    """

    def __init__(self, argument: str, message: str) -> None:
        super().__init__(f"{argument}: {message}")
        self.argument = argument
        self.message = message


class TrainingError(RuntimeError):
    """Training cannot continue; the message has the reason, such as a non-finite loss or a full disk."""


class NonFiniteError(TrainingError):
    """A loss or weights that are not finite; `step` is the update that made them so."""

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


class Interrupted(BaseException):
    """A signal asked the run to stop and it has saved. No `Exception`: it ends a sweep, too."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_status = 128 + signal_number


class Complaints:
    """Collects all complaints, so that a user can correct them together."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def add(self, key: str, message: str) -> None:
        self.messages.append(f"{key}: {message}" if key else message)

    def add_error(self, key: str, error: Exception) -> None:
        """Adds what a constructor raised, at the argument's own key where the error names one."""
        if isinstance(error, ArgumentError):
            self.add(f"{key}.{error.argument}" if key else error.argument, error.message)
        else:
            self.add(key, first_line(error))

    def raise_if_any(self) -> None:
        """Raises one `ConfigError` with every message on a line of its own, first complaint first."""
        messages = list(dict.fromkeys(self.messages))
        if len(messages) == 1:
            raise ConfigError(messages[0])
        if messages:
            raise ConfigError("\n  ".join([f"{len(messages)} mistakes in the config:", *messages]))


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def did_you_mean(name: object, legal: Iterable[str]) -> str:
    """` did you mean 'epochs'?` with a leading blank, or nothing where no legal name is near."""
    near = difflib.get_close_matches(str(name), [str(option) for option in legal], n=1, cutoff=0.6)
    return f" did you mean {near[0]!r}?" if near else ""


def no_such_key(key: object, legal: Iterable[str]) -> str:
    """The message for a key that does not exist, with the nearest legal one."""
    options = list(legal)
    if not options:
        return "there is no such key: nothing can be set here"
    return f"there is no such key;{did_you_mean(key, options)} expected one of {listing(options)}"


def listing(names: Iterable[object]) -> str:
    """`a, b, c`, or a dash for an empty set."""
    return ", ".join(str(name) for name in names) or "–"
