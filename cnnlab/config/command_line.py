"""A command line with its options first, as Hydra wants it; users may put them between overrides."""

from collections.abc import Sequence
from dataclasses import dataclass

from cnnlab.config.hydra_internals import options


@dataclass(frozen=True)
class CommandLine:
    """Hydra's options, each with its value where it has one, and the overrides in their order."""

    options: tuple[tuple[str, ...], ...]
    overrides: tuple[str, ...]

    @classmethod
    def read(cls, arguments: Sequence[str]) -> "CommandLine":
        """Splits the arguments; a flag that Hydra does not know is kept for its parser to refuse."""
        known = options()
        found: list[tuple[str, ...]] = []
        overrides: list[str] = []
        rest = list(arguments)
        while rest:
            flag, has_value, value = rest.pop(0).partition("=")
            if not flag.startswith("-"):
                overrides.append(flag + has_value + value)
                continue
            flag = _unabbreviated(flag)
            if has_value:
                found.append((flag, value))
                continue
            action = known.get(flag)
            optional = action is not None and action.nargs == "?" and rest and rest[0] in (action.choices or ())
            takes_next = action is not None and (action.nargs is None or optional)
            found.append((flag, rest.pop(0)) if takes_next and rest else (flag,))
        return cls(tuple(found), tuple(overrides))

    def has(self, *flags: str) -> bool:
        return any(option[0] in flags for option in self.options)

    def value(self, *flags: str) -> str | None:
        """The value of the last of these flags."""
        values = [option[1] for option in self.options if option[0] in flags and len(option) > 1]
        return values[-1] if values else None

    def without(self, *flags: str) -> "CommandLine":
        return CommandLine(tuple(option for option in self.options if option[0] not in flags), self.overrides)

    def arguments(self) -> list[str]:
        """For Hydra's parser."""
        return [*(part for option in self.options for part in option), *self.overrides]


def _unabbreviated(flag: str) -> str:
    """The only option that begins so, as argparse takes it."""
    near = [option for option in options() if flag.startswith("--") and option.startswith(flag)]
    return near[0] if len(near) == 1 else flag
