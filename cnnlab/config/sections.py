"""What the checks of several sections share."""

from collections.abc import Mapping
from typing import Any

from cnnlab.runtime.errors import Complaints


def as_mapping(section: Any, key: str, complaints: Complaints) -> dict[str, Any]:
    """A copy of a section; empty, with a complaint, where it is no mapping."""
    if isinstance(section, Mapping):
        return dict(section)
    complaints.add(key, f"expected a mapping, received {section!r}")
    return {}


def as_spec(section: Any) -> dict[str, Any]:
    """A component's section as a mapping, where it may be a name alone."""
    return dict(section) if isinstance(section, Mapping) else {"type": section}
