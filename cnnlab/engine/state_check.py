"""A state from a file is compared with the one of a trainer that was just built, before anything uses it.

A momentum of another shape makes a fused optimizer write outside of its memory: torch's `load_state_dict` looks at the
names of parameters alone.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from cnnlab.engine.optimization import optimizer_state
from cnnlab.engine.schedule import Schedule
from cnnlab.engine.trainer import Trainer
from cnnlab.runtime.errors import ConfigError, listing
from cnnlab.runtime.randomness import put_back

LARGEST = 2**53  # of a whole number: floats hold it exactly


def check_trainer_state(place: str, trainer: Trainer, given: Any, step: int) -> None:
    """Raises `ConfigError` with the place of what `trainer`, just built, could not have saved after `step`."""
    reference = trainer.state_dict()
    of_ranks = "generators_of_ranks"  # there may be another number of them
    reference.pop(of_ranks, None)
    others = given.get(of_ranks, []) if isinstance(given, Mapping) else []
    given = {key: value for key, value in given.items() if key != of_ranks} if isinstance(given, Mapping) else given
    _check_mapping(place, reference, given, deeply=False)
    for number, generators in enumerate(others if _is_list(others) else [others], 1):
        _check_generators(f"{place} {of_ranks}[{number - 1}]", reference["generators"], generators)
    _check_progress(f"{place} progress", reference["progress"], given["progress"], step)
    parts, own = given["train_state"], reference["train_state"]
    _check_mapping(f"{place} train_state", own, parts, deeply=False)
    check_optimizer_state(f"{place} train_state.optimizer", trainer.train_state.optimizer, parts["optimizer"])
    for name in ("schedule", "scaler", "ema", "loss"):
        check_like(f"{place} train_state.{name}", own[name], parts[name])
    _check_best(f"{place} progress", trainer.settings.monitor, given["progress"])
    _check_counters(place, trainer, given, step)
    check_like(f"{place} train", reference["train"], given["train"])
    check_count(f"{place} train.epoch", given["train"]["epoch"])
    check_count(f"{place} train.position", given["train"]["position"], len(trainer.train))
    batches = given["train"]["epoch"] * len(trainer.train) + given["train"]["position"]
    if batches != step:
        _refuse(f"{place} train", f"the place of batch {step}", batches)
    _check_mapping(f"{place} tally", reference["tally"], given["tally"], deeply=False)
    if not (trainer.train_state.scaler.is_enabled() and isinstance(given["tally"]["loss_sum"], float)):
        check_number(f"{place} tally.loss_sum", given["tally"]["loss_sum"])  # with fp16 a skipped step's is not finite
    check_count(f"{place} tally.count", given["tally"]["count"])
    check_count(f"{place} tally.correct", given["tally"]["correct"], given["tally"]["count"])
    _check_generators(f"{place} generators", reference["generators"], given["generators"])


def _check_counters(place: str, trainer: Trainer, given: Mapping[str, Any], step: int) -> None:
    """What counts steps has counted those of the manifest."""
    parts, skipped = given["train_state"], given["progress"]["skipped"]
    own = isinstance(trainer.train_state.schedule, Schedule)
    if own and (type(parts["schedule"]["steps"]) is not int or parts["schedule"]["steps"] != step):
        _refuse(f"{place} train_state.schedule.steps", str(step), parts["schedule"]["steps"])
    updates = step - sum(one <= step for one in skipped)
    if trainer.train_state.ema and parts["ema"]["updates"] != updates:
        _refuse(f"{place} train_state.ema.updates", str(updates), parts["ema"]["updates"])


def _check_best(place: str, monitor: str | None, given: Mapping[str, Any]) -> None:
    """The trainer compares with these values at the next validation."""
    if monitor is not None and given["best"] is not None:
        compared = {monitor, f"loss/{monitor.split('/')[1]}"}
        if not compared <= given["best_values"].keys():
            _refuse(f"{place}.best_values", f"{listing(sorted(compared))} among them", list(given["best_values"]))
    if given["best_values"] and given["best_values"].keys() != given["last_values"].keys():
        _refuse(f"{place}.last_values", f"values of {listing(given['best_values'])}", list(given["last_values"]))


def _check_progress(place: str, reference: Mapping[str, Any], given: Any, step: int) -> None:
    _check_mapping(place, reference, given, deeply=False)
    if given["step"] != step or type(given["step"]) is not int:
        _refuse(f"{place}.step", f"the {step} of the manifest", given["step"])
    check_count(f"{place}.images", given["images"], LARGEST)
    check_number(f"{place}.seconds", given["seconds"], 0)
    check_count(f"{place}.recorded_images", given["recorded_images"], given["images"])
    check_number(f"{place}.recorded_seconds", given["recorded_seconds"], 0, given["seconds"])
    check_count(f"{place}.without_improvement", given["without_improvement"], step)
    if given["best"] is not None:
        check_number(f"{place}.best", given["best"])
    for name in ("best_step", "best_epoch"):
        if given[name] is not None:
            check_count(f"{place}.{name}", given[name], step)
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

    A whole number does for a float. Text is the same, numbers that are finite in a new state stay so, and whole ones
    do not become negative.
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
    elif type(reference) is int and reference >= 0:
        if isinstance(given, float):  # such as a learning rate that began as 1
            check_number(place, given)
        else:
            check_count(place, given, LARGEST)
    elif type(given) is not type(reference) or (isinstance(reference, str) and given != reference):
        _refuse(place, repr(reference), given)


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
    """Compares with the state that a step makes: names, shapes and dtypes. That step is undone.

    A parameter that had no gradient has None; what a user's own optimizer adds later has the parameter's shape, or
    none. Raises `ConfigError`.
    """
    reference = optimizer_state(optimizer)
    _check_mapping(place, {"state": {}, "groups": []}, given, deeply=False)
    _check_groups(f"{place}.groups", reference["groups"], given["groups"])
    if not isinstance(given["state"], Mapping):
        _refuse(f"{place}.state", "a mapping", given["state"])
    different = sorted(map(str, given["state"].keys() ^ reference["state"].keys()))
    if different:
        kind = "without" if different[0] in given["state"] else "with"
        _refuse(f"{place}.state", f"the parameters of the network, {kind} {different[0]}", list(given["state"])[:5])
    after_a_step = _state_after_a_step(optimizer) if any(one is not None for one in given["state"].values()) else {}
    for name, values in given["state"].items():
        if values is not None:
            _check_values(f"{place}.state.{name}", *after_a_step[name], values)


def _check_values(place: str, parameter: Tensor, reference: Mapping[str, Any], given: Any) -> None:
    known = {key: value for key, value in reference.items() if value is not None}
    if not isinstance(given, Mapping):
        _refuse(place, f"a mapping with {listing(known)}", given)
    check_like(place, known, {key: value for key, value in given.items() if key in known})
    for key, value in given.items():
        if key not in known and isinstance(value, Tensor) and value.dim():
            _check_tensor(f"{place}.{key}", parameter.to(value.dtype), value)


def _check_groups(place: str, reference: Sequence[Mapping[str, Any]], given: Any) -> None:
    if not isinstance(given, list) or len(given) != len(reference):
        _refuse(place, f"{len(reference)} groups of parameters", given)
    own = {tuple(sorted(group["names"])): group for group in reference}
    for number, group in enumerate(given):
        names = group.get("names") if isinstance(group, Mapping) else None
        known = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
        match = own.pop(tuple(sorted(names or ())), None) if known else None
        if match is None:
            _refuse(f"{place}[{number}].names", "the names of one of the groups", names)
        plain = {key: value for key, value in match.items() if key != "names"}
        check_like(f"{place}[{number}]", plain, {key: value for key, value in group.items() if key != "names"})
        for key in ("lr", "weight_decay", "momentum", "eps"):
            if isinstance(group.get(key), int | float):
                check_number(f"{place}[{number}].{key}", group[key], 0)


def _state_after_a_step(optimizer: torch.optim.Optimizer) -> dict[str, tuple[Tensor, dict[str, Any]]]:
    """Each parameter, and the state that a step with gradients of one gives it, by the parameter's name.

    The step is this optimizer's own, since a copy lacks what a user's class keeps beside state and groups; afterwards
    parameters, state, groups and generators are as before.
    """
    by_name = {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }
    kept = {parameter: copy.deepcopy(values) for parameter, values in optimizer.state.items()}
    groups = [dict(group) for group in optimizer.param_groups]
    with put_back([*by_name.values()]):
        for parameter in by_name.values():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        after = optimizer_state(optimizer)["state"]
    optimizer.state.clear()
    optimizer.state.update(kept)
    for group, before in zip(optimizer.param_groups, groups, strict=True):
        group.update(before)
    optimizer.zero_grad()
    return {name: (by_name[name], values or {}) for name, values in after.items()}


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
