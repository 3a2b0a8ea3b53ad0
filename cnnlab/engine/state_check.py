"""A state from a file is compared with the one of a trainer that was just built, before anything uses it.

A momentum of another shape makes a fused optimizer write outside of its memory: torch's `load_state_dict` looks at the
names of parameters alone.
"""

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from cnnlab.engine.optimization import optimizer_state
from cnnlab.engine.trainer import Trainer
from cnnlab.runtime.errors import ConfigError, listing


def check_trainer_state(place: str, trainer: Trainer, given: Any, step: int) -> None:
    """Raises `ConfigError` with the place of what `trainer`, just built, could not have saved after `step`."""
    reference = trainer.state_dict()
    _check_mapping(place, reference, given, deeply=False)
    _check_progress(f"{place} progress", reference["progress"], given["progress"], step)
    parts, own = given["train_state"], reference["train_state"]
    _check_mapping(f"{place} train_state", own, parts, deeply=False)
    check_optimizer_state(f"{place} train_state.optimizer", trainer.train_state.optimizer, parts["optimizer"])
    for name in ("schedule", "scaler", "ema", "loss"):
        check_like(f"{place} train_state.{name}", own[name], parts[name])
    if own["schedule"].keys() == {"steps"} and parts["schedule"]["steps"] != step:
        _refuse(f"{place} train_state.schedule.steps", str(step), parts["schedule"]["steps"])
    check_like(f"{place} train", reference["train"], given["train"])
    check_count(f"{place} train.epoch", given["train"]["epoch"])
    check_count(f"{place} train.position", given["train"]["position"], len(trainer.train))
    check_like(f"{place} tally", reference["tally"], given["tally"])
    check_count(f"{place} tally.count", given["tally"]["count"])
    check_count(f"{place} tally.correct", given["tally"]["correct"], given["tally"]["count"])
    _check_generators(f"{place} generators", reference["generators"], given["generators"])


def _check_progress(place: str, reference: Mapping[str, Any], given: Any, step: int) -> None:
    _check_mapping(place, reference, given, deeply=False)
    if given["step"] != step or type(given["step"]) is not int:
        _refuse(f"{place}.step", f"the {step} of the manifest", given["step"])
    for name in ("images", "recorded_images", "without_improvement"):
        check_count(f"{place}.{name}", given[name])
    for name in ("seconds", "recorded_seconds"):
        check_number(f"{place}.{name}", given[name], 0)
    if given["best"] is not None:
        check_number(f"{place}.best", given["best"])
    for name, most in (("best_step", step), ("best_epoch", math.inf)):
        if given[name] is not None:
            check_count(f"{place}.{name}", given[name], most)
    if not isinstance(given["skipped"], list):
        _refuse(f"{place}.skipped", "a list of steps", given["skipped"])
    for one in given["skipped"]:
        check_count(f"{place}.skipped", one)
    for name in ("best_values", "last_values"):
        values = given[name]
        if not isinstance(values, Mapping) or not all(isinstance(value, int | float) for value in values.values()):
            _refuse(f"{place}.{name}", "a mapping of numbers", values)


def _check_generators(place: str, reference: Mapping[str, Any], given: Any) -> None:
    """Of CUDA and MPS, whose generators may be another machine's, the kind of their states alone."""
    _check_mapping(place, reference, given, deeply=False)
    check_like(f"{place}.numpy", reference["numpy"], given["numpy"])
    check_like(f"{place}.torch", reference["torch"], given["torch"])
    version, internal, _ = reference["python"]
    python = given["python"]
    if not isinstance(python, tuple) or len(python) != 3:
        _refuse(f"{place}.python", "a state of Python's generator", python)
    check_like(f"{place}.python", (version, internal), tuple(python[:2]))
    words, place_in_them = python[1][:-1], python[1][-1]
    if python[0] != version or not all(0 <= word < 1 << 32 for word in words) or not 0 <= place_in_them <= len(words):
        _refuse(f"{place}.python", "a state of Python's generator", python)
    if python[2] is not None:
        check_number(f"{place}.python", python[2])
    if given["numpy"]["name"] != reference["numpy"]["name"]:
        _refuse(f"{place}.numpy.name", repr(reference["numpy"]["name"]), given["numpy"]["name"])
    check_count(f"{place}.numpy.position", given["numpy"]["position"], len(reference["numpy"]["keys"]))
    others = [*given["cuda"], *([] if given["mps"] is None else [given["mps"]])] if _is_list(given["cuda"]) else [None]
    if not all(isinstance(state, Tensor) and state.dtype == torch.uint8 and state.dim() == 1 for state in others):
        _refuse(f"{place}.cuda", "a list of byte tensors", given["cuda"])


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def check_like(place: str, reference: Any, given: Any) -> None:
    """Raises `ConfigError` that names the place where `given` has another structure, type, shape or dtype.

    A whole number does for a float. Values are not compared, but numbers that are finite in a new state stay so.
    """
    if isinstance(reference, Tensor):
        _check_tensor(place, reference, given)
    elif isinstance(reference, Mapping):
        _check_mapping(place, reference, given)
    elif isinstance(reference, list | tuple):
        if type(given) is not type(reference) or len(given) != len(reference):
            _refuse(place, f"{len(reference)} values", given)
        for number, (one, other) in enumerate(zip(reference, given, strict=True)):
            check_like(f"{place}[{number}]", one, other)
    elif isinstance(reference, float):
        check_number(place, given)
    elif type(given) is not type(reference):
        _refuse(place, f"a value of type {type(reference).__name__}", given)


def check_number(place: str, given: Any, minimum: float = -math.inf, maximum: float = math.inf) -> None:
    """Raises `ConfigError` for anything but a finite number in the interval."""
    number = isinstance(given, int | float) and not isinstance(given, bool)
    if not number or not math.isfinite(given) or not minimum <= given <= maximum:
        limits = f" from {minimum} to {maximum}" if math.isfinite(minimum) or math.isfinite(maximum) else ""
        _refuse(place, f"a finite number{limits}", given)


def check_count(place: str, given: Any, maximum: float = math.inf) -> None:
    """Raises `ConfigError` for anything but a whole number from 0 to `maximum`."""
    if type(given) is not int or not 0 <= given <= maximum:
        _refuse(place, f"a whole number from 0 to {maximum}", given)


def check_optimizer_state(place: str, optimizer: torch.optim.Optimizer, given: Any) -> None:
    """Compares with the state that a step of a copy makes, with gradients of zero: shapes, dtypes and names.

    A parameter that had no gradient has no state. Raises `ConfigError`.
    """
    reference = optimizer_state(optimizer)
    _check_mapping(place, {"state": {}, "groups": []}, given, deeply=False)
    groups = {frozenset(group["names"]): group for group in reference["groups"]}
    _check_groups(f"{place}.groups", groups, given["groups"])
    if not isinstance(given["state"], Mapping):
        _refuse(f"{place}.state", "a mapping", given["state"])
    after_a_step = optimizer_state(_stepped(optimizer))["state"] if given["state"] else {}
    for name, values in given["state"].items():
        if name not in after_a_step:
            _refuse(f"{place}.state", f"names among {listing(sorted(after_a_step)[:5])}, …", name)
        if values:
            check_like(f"{place}.state.{name}", after_a_step[name], values)


def _check_groups(place: str, groups: Mapping[frozenset[str], Mapping[str, Any]], given: Any) -> None:
    if not isinstance(given, list) or len(given) != len(groups):
        _refuse(place, f"{len(groups)} groups of parameters", given)
    for number, group in enumerate(given):
        names = group.get("names") if isinstance(group, Mapping) else None
        known = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
        reference = groups.get(frozenset(names or ())) if known else None
        if reference is None:
            _refuse(f"{place}[{number}].names", "the names of one of the groups", names)
        plain = {key: value for key, value in reference.items() if key != "names"}
        check_like(f"{place}[{number}]", plain, {key: value for key, value in group.items() if key != "names"})


def _stepped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """A copy, with parameters of its own, that took a step with gradients of zero."""
    other = copy.deepcopy(optimizer)
    for group in other.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    with torch.no_grad():
        inspect.unwrap(type(other).step)(other)  # torch's decorators would import its compiler, which takes a second
    return other


def _check_tensor(place: str, reference: Tensor, given: Any) -> None:
    expected = f"a {_named(reference)} tensor {tuple(reference.shape)}"
    if not isinstance(given, Tensor):
        _refuse(place, expected, given)
    if given.shape != reference.shape or given.dtype != reference.dtype:
        raise ConfigError(f"{place}: expected {expected}, received a {_named(given)} tensor {tuple(given.shape)}")


def _named(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _check_mapping(place: str, reference: Mapping[Any, Any], given: Any, *, deeply: bool = True) -> None:
    if not isinstance(given, Mapping) or given.keys() != reference.keys():
        received = list(given) if isinstance(given, Mapping) else given
        _refuse(place, f"a mapping with {listing(reference)}", received)
    for key, value in reference.items() if deeply else ():
        check_like(f"{place}.{key}", value, given[key])


def _refuse(place: str, expected: str, given: Any) -> NoReturn:
    text = repr(given) if not isinstance(given, Tensor | Sequence) or isinstance(given, str) else _shape_of(given)
    raise ConfigError(f"{place}: expected {expected}, received {text[:80]}")


def _shape_of(given: Any) -> str:
    return f"a tensor {tuple(given.shape)}" if isinstance(given, Tensor) else f"{type(given).__name__} {given!r}"
