"""What the checks of several sections share."""

from collections.abc import Iterator, Mapping
from typing import Any

from cnnlab.runtime.errors import Complaints, did_you_mean, listing

SHOWN = 3  # keys that are suggested for one that was given without its section


def as_mapping(section: Any, key: str, complaints: Complaints) -> dict[str, Any]:
    """A copy of a section; empty, with a complaint, where it is no mapping."""
    if isinstance(section, Mapping):
        return dict(section)
    complaints.add(key, f"expected a mapping, received {section!r}")
    return {}


def as_spec(section: Any) -> dict[str, Any]:
    """A component's section as a mapping, where it may be a name alone."""
    return dict(section) if isinstance(section, Mapping) else {"type": section}


def is_quiet(observers: Any) -> bool:
    """True if the section `observers` names none that could print, as `observers=quiet` does."""
    given = observers.values() if isinstance(observers, Mapping) else [observers]
    return all(as_spec(spec).get("type") in ("json_lines", "tensorboard") for spec in given if spec is not None)


def no_such_top_key(key: object, legal: list[str], config: Any) -> str:
    """The message for an unknown key at the top of a config, where `lr` suggests `optimizer.lr`."""
    near = did_you_mean(key, legal)
    deeper = [path for path in _paths(config) if path.endswith(f".{key}")]
    if deeper:
        near = f" did you mean {' or '.join(repr(path) for path in deeper[:SHOWN])}?"
    return f"there is no such key;{near} expected one of {listing(legal)}"


def _paths(config: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a nested mapping."""
    for key, value in config.items() if isinstance(config, Mapping) else ():
        yield f"{prefix}{key}"
        yield from _paths(value, f"{prefix}{key}.")
