"""The order of layers in a mapping, and what each of them reads."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from cnnlab.blocks.graph import INPUT, Graph
from cnnlab.runtime.errors import Complaints, did_you_mean, listing

OWN_INPUT = "input"  # in `from`, what reaches the mapping of blocks
TAKEN_IN_COLUMNS = (nn.Sequential(), Graph({}, {}))
TAKEN_IN_BRANCHES = (nn.ModuleDict(),)


def check_names(
    blocks: Mapping[str, Any], key: str, complaints: Complaints, taken_in: Sequence[nn.Module] = TAKEN_IN_COLUMNS
) -> None:
    """Complains of what is no name of a layer, or an attribute of the modules `taken_in`."""
    for name in blocks:
        if not name.isidentifier():
            complaints.add(
                f"{key}.{name}",
                "expected a layer name of letters, digits and underscores, starting with no digit",
            )
        elif any(hasattr(module, name) for module in taken_in):
            complaints.add(f"{key}.{name}", f"torch's modules use the name {name!r} themselves: expected another")


def in_order(blocks: Mapping[str, Any], key: str, complaints: Complaints) -> list[str]:
    """YAML order, each layer followed by those that stand `after` it; a null layer can still be an anchor."""
    followers: dict[str, list[str]] = {name: [] for name in blocks}
    roots = []
    for name, spec in blocks.items():
        anchor = spec.get("after") if isinstance(spec, Mapping) else None
        if anchor is None:
            roots.append(name)
        elif isinstance(anchor, str) and anchor in blocks and anchor != name:
            followers[anchor].append(name)
        else:
            others = [other for other in blocks if other != name]
            complaints.add(
                f"{key}.{name}.after",
                f"there is no other layer {anchor!r};{did_you_mean(anchor, others)} expected one of {listing(others)}",
            )
            roots.append(name)
    order: list[str] = []
    waiting = roots[::-1]
    while waiting:
        name = waiting.pop()
        order.append(name)
        waiting.extend(reversed(followers[name]))
    circle = [name for name in blocks if name not in order]
    if circle:
        complaints.add(f"{key}.{circle[0]}.after", f"the layers {listing(circle)} stand after each other in a circle")
    return [name for name in order if blocks[name] is not None]


def default_sources(names: Sequence[str]) -> list[str]:
    """What each layer of a chain reads: the one before it, the first one what reaches the mapping."""
    return [INPUT, *names][: len(names)]


def sources_of(
    blocks: Mapping[str, Any], order: Sequence[str], key: str, complaints: Complaints
) -> dict[str, tuple[str, ...]]:
    """What each layer reads, by default the previous one. Complains of what is not earlier, and of what is not read."""
    found: dict[str, tuple[str, ...]] = {}
    specs = {name: spec for name, spec in blocks.items() if isinstance(spec, Mapping)}
    given = {name: spec["from"] for name, spec in specs.items() if spec.get("from") is not None}
    for name, previous in zip(order, default_sources(order), strict=True):
        if name not in given:
            found[name] = (previous,)
            continue
        names = [given[name]] if isinstance(given[name], str) else given[name]
        if not isinstance(names, list | tuple) or not names or not all(isinstance(one, str) for one in names):
            complaints.add(f"{key}.{name}.from", f"expected a layer's name or a list of them, received {given[name]!r}")
            continue
        legal = [OWN_INPUT, *order[: order.index(name)]]
        problems = [_not_earlier(one, name, blocks, given) for one in dict.fromkeys(names) if one not in legal]
        if OWN_INPUT in names and OWN_INPUT in order:
            problems.append(f"{OWN_INPUT!r} is what reaches these blocks: expected another name for that layer;")
        for problem in problems:
            complaints.add(f"{key}.{name}.from", f"{problem} expected some of {listing(legal)}")
        if not problems:
            found[name] = tuple(INPUT if one == OWN_INPUT else one for one in names)
    if len(found) == len(order):
        _check_read(found, key, complaints)
    return found


def _check_read(found: Mapping[str, tuple[str, ...]], key: str, complaints: Complaints) -> None:
    read = {source for sources in found.values() for source in sources}
    for name in [*found][:-1]:
        if name not in read:
            complaints.add(
                f"{key}.{name}",
                f"no layer reads its output: expected {name!r} in the `from` of a later layer, or null in its place",
            )


def _not_earlier(source: str, name: str, blocks: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    if source == name:
        return f"{name!r} cannot read itself;"
    if source not in blocks:
        return f"there is no layer {source!r};{did_you_mean(source, [OWN_INPUT, *blocks])}"
    if blocks[source] is None:
        return f"the layer {source!r} is removed (null);"
    back = name in ([given[source]] if isinstance(given.get(source), str) else given.get(source, ()))
    circle = f", and {source!r} reads {name!r}: a circle" if back else ""
    return f"{name!r} reads {source!r}, which comes after it{circle};"
