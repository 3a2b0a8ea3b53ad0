"""The optimizer: parameter groups by name, and a state that is keyed by name."""

import fnmatch
import inspect
import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.blocks.normalization import NORMS
from cnnlab.components import Component
from cnnlab.engine.layer_decay import layer_scales
from cnnlab.engine.muon import Muon
from cnnlab.runtime.checks import number
from cnnlab.runtime.errors import ArgumentError, Complaints, ConfigError, did_you_mean, listing

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "muon": Muon,
}
# one kernel updates all parameters, on CPU and on CUDA; others in OPTIMIZERS need not have one
FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
REFUSED: dict[Any, str] = {
    torch.optim.LBFGS: "LBFGS evaluates the loss several times per update, which this training step does not",
    torch.optim.SparseAdam: "SparseAdam updates by sparse gradients alone, and these layers have dense ones",
}
GROUP_OPTIONS = ("lr", "lr_scale", "weight_decay")
_SGD_OPTIONS = ("lr", "momentum", "dampening", "nesterov", "weight_decay", "maximize")
_NOT_NEGATIVE = ("lr", "lr_scale", "weight_decay", "eps", "alpha", "rho", "max_grad_norm")


Group = Mapping[str, float] | Component  # options that differ from the optimizer's, or an optimizer of its own


@dataclass(frozen=True)
class OptimizerPlan:
    """The optimizer, and how parameters differ in their update.

    `groups` are by name pattern. `rest` updates what Muon does not. `layer_decay` is in `layer_scales`.
    """

    component: Component
    groups: Mapping[str, Group] = field(default_factory=dict)
    rest: Component | None = None
    layer_decay: float | None = None

    @property
    def components(self) -> list[Component]:
        """Every optimizer, the first of them that of `optimizer.lr`."""
        own = [group for group in self.groups.values() if isinstance(group, Component)]
        return [self.component, *own, *([self.rest] if self.rest else [])]

    def with_lr(self, lr: float) -> "OptimizerPlan":
        component = replace(self.component, arguments={**self.component.arguments, "lr": lr})
        return replace(self, component=component)

    def build(self, network: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(self.component, network, self.groups, self.rest, self.layer_decay)


def check_optimizer(component: Component, groups: Any, names: list[str], complaints: Complaints) -> dict[str, Group]:
    """Complains about values out of range and group patterns that match nothing; returns the groups.

    One with an optimizer of its own is that component already.
    """
    check_component(component, complaints)
    if not isinstance(groups, Mapping):
        complaints.add(
            f"{component.key}.groups",
            f"expected a mapping of name pattern → lr, weight_decay, received {groups!r}",
        )
        return {}
    for pattern, options in groups.items():
        key = f"{component.key}.groups.{pattern}"
        if isinstance(options, Component):
            check_component(options, complaints)
        else:
            _check_options(key, options, complaints)
        if names and not fnmatch.filter(names, str(pattern)):
            complaints.add(
                key,
                f"no trained parameter's name matches it;{did_you_mean(pattern, names)} the first names are "
                f"{', '.join(names[:4])}",
            )
    legal = Mapping | Component
    return {str(pattern): group for pattern, group in groups.items() if isinstance(group, legal)}


def check_component(component: Component, complaints: Complaints) -> None:
    """Complains about an optimizer that does not work here, and about its values out of range."""
    if component.factory in REFUSED:
        expected = "expected a first-order optimizer such as sgd, adam or adamw"
        complaints.add(f"{component.key}.type", f"{REFUSED[component.factory]}; {expected}")
    _check_ranges(component.key, component.arguments, complaints)
    if component.arguments.get("nesterov") and not component.arguments.get("momentum"):
        complaints.add(f"{component.key}.nesterov", "expected momentum > 0 beside it, received none")
    for index, beta in enumerate(component.arguments.get("betas", ())):
        if not 0 <= beta < 1:
            complaints.add(f"{component.key}.betas[{index}]", f"expected a number in [0, 1), received {beta!r}")


def _check_options(key: str, options: Any, complaints: Complaints) -> None:
    legal = ", ".join(GROUP_OPTIONS)
    if not isinstance(options, Mapping) or not options:
        complaints.add(key, f"expected a mapping with {legal}, or with a type, received {options!r}")
        return
    for option in options:
        if option not in GROUP_OPTIONS:
            complaints.add(
                f"{key}.{option}",
                f"expected {legal}, or a type beside it, received {option!r};{did_you_mean(option, GROUP_OPTIONS)}",
            )
    _check_ranges(key, options, complaints)


def _check_ranges(key: str, arguments: Mapping[str, Any], complaints: Complaints) -> None:
    for name, value in arguments.items():
        try:
            if name == "momentum":
                number(name, value, 0, 1, open_maximum=True)
            elif name in _NOT_NEGATIVE and value is not None:
                number(name, value, 0)
        except ArgumentError as error:
            complaints.add_error(key, error)


def build_optimizer(
    component: Component,
    network: nn.Module,
    groups: Mapping[str, Group],
    rest: Component | None = None,
    layer_decay: float | None = None,
) -> torch.optim.Optimizer:
    """The optimizer over all parameters that train; several that act as one, where groups have their own.

    A parameter takes the options, or the optimizer, of the first pattern that its name matches. Norms and biases
    (parameters of fewer than two dimensions) are not decayed unless a pattern sets their weight_decay (arXiv
    1812.01187, section 3.1). With `rest`, the component updates the weights of hidden layers alone. Raises
    `ConfigError`.
    """
    norms = _in_norms(network)
    hidden = _hidden(network, norms)
    scales = layer_scales(network, layer_decay) if layer_decay is not None else {}
    grouped: dict[int, dict[tuple[tuple[str, float], ...], dict[str, Any]]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        group = next((group for pattern, group in groups.items() if fnmatch.fnmatchcase(name, pattern)), {})
        usual = component if rest is None or id(parameter) in hidden else rest
        owner, options = (group, {}) if isinstance(group, Component) else (usual, dict(group))
        if "weight_decay" in owner.parameters and (parameter.dim() < 2 or id(parameter) in norms):
            options.setdefault("weight_decay", 0.0)
        _scale_lr(options, owner, scales.get(name, 1.0))
        alike = grouped.setdefault(id(owner), {})
        one = alike.setdefault(tuple(sorted(options.items())), {"params": [], "names": [], **options})
        one["params"].append(parameter)
        one["names"].append(name)
    _spare_the_compiler()
    if id(component) not in grouped:
        raise ConfigError(_nothing_left(component, rest))
    owners = OptimizerPlan(component, groups, rest).components
    built = [_build(owner, [*grouped[id(owner)].values()]) for owner in owners if id(owner) in grouped]
    return built[0] if len(built) == 1 else _without_ceremony(Optimizers(built))


def _build(component: Component, parameter_groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    parameters = [parameter for group in parameter_groups for parameter in group["params"]]
    known = {"fused": True} if _can_be_fused(component, parameters) else {}
    unscaled_first = sorted(parameter_groups, key=lambda group: "lr_scale" in group)  # the first one's lr is recorded
    optimizer = component.build(params=unscaled_first, **known)
    assert isinstance(optimizer, torch.optim.Optimizer)
    return _without_ceremony(optimizer)


def _in_norms(network: nn.Module) -> set[int]:
    norms = [module for module in network.modules() if isinstance(module, NORMS)]
    return {id(parameter) for norm in norms for parameter in norm.parameters(recurse=False)}


def _hidden(network: nn.Module, norms: Collection[int]) -> set[int]:
    """The weights of two dimensions and more, without the first and the last."""
    weights = [id(one) for one in network.parameters() if one.dim() >= 2 and id(one) not in norms]
    return {*weights[1:-1]}


def _scale_lr(options: dict[str, float], owner: Component, layer_scale: float) -> None:
    """Multiplies the lr of the options, or of their optimizer; `lr_scale` then keeps the factor."""
    scale = options.pop("lr_scale", 1.0) * layer_scale
    if scale != 1:
        lr = options.get("lr", owner.arguments.get("lr", getattr(owner.parameters.get("lr"), "default", None)))
        if not isinstance(lr, int | float):
            raise ConfigError(f"{owner.key}: {owner.type} has no lr that layer_decay or lr_scale could multiply")
        options |= {"lr": lr * scale, "lr_scale": scale}


def _nothing_left(component: Component, rest: Component | None) -> str:
    if rest is None:
        return f"{component.key}.groups: every parameter has an optimizer of its own, and {component.type} has none"
    return (
        f"{component.key}.type: {component.type} updates the weights between the first and the last layer, and none of "
        f"these trains: expected another, such as adamw"
    )


class Optimizers(torch.optim.Optimizer):
    """Several optimizers, each of parameters of its own, as one: `param_groups` and `state` are those of all."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        super().__init__([group for one in optimizers for group in one.param_groups], {})
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for one in self.optimizers:
            one.param_groups = list(islice(groups, len(one.param_groups)))
            one.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """By `load_state_dict`, which replaces groups and state."""
        super().__setstate__(state)
        self._share()

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for one in self.optimizers:
            one.step()


def is_fused(component: Component) -> bool:
    """Whether the update is one kernel, where the parameters allow it and the config sets no other way."""
    return component.factory in FUSED and not component.arguments.keys() & {"fused", "foreach", "differentiable"}


def _can_be_fused(component: Component, parameters: Iterable[Tensor]) -> bool:
    """Whether one kernel can update all parameters of a group, in a fraction of the time of a kernel for each.

    It assumes that parameter, gradient and state are laid out alike, whatever their strides. Backward passes give a
    gradient its parameter's strides where these leave no gaps.
    """
    return is_fused(component) and all(
        parameter.device.type in ("cpu", "cuda")
        and parameter.is_floating_point()
        and torch.empty_like(parameter).stride() == parameter.stride()
        for parameter in parameters
    )


def _spare_the_compiler() -> None:
    """Keeps torch from importing its compiler, for seconds, when an optimizer is first made.

    torch does so only to exempt these methods from compilation, and stores on each what it then calls; they are not
    compiled here. Another version of torch that stores it elsewhere imports the compiler.
    """
    exempted: tuple[Any, ...] = (
        torch.optim.Optimizer.add_param_group,
        torch.optim.Optimizer.load_state_dict,
        torch.optim.Optimizer.state_dict,
        torch.optim.Optimizer.zero_grad,
    )
    for method in exempted:
        plain = inspect.unwrap(method)
        vars(plain).setdefault("__dynamo_disable", plain)


def _without_ceremony(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Gives one of torch's or our optimizers a bare `step`, and a `zero_grad` that only drops the gradients.

    torch's wrappers import the compiler to break graphs for it, and mark the methods for the profiler, which takes a
    tenth of a tiny network's step.
    """
    if type(optimizer).__module__.startswith(("torch.optim.", "cnnlab.")):
        fused_sgd = type(optimizer) is torch.optim.SGD and _in_one_kernel(optimizer)
        plain: Any = _fused_sgd_step if fused_sgd else inspect.unwrap(type(optimizer).step)
        optimizer.step = types.MethodType(torch.no_grad()(plain), optimizer)  # type: ignore[method-assign]
        optimizer.zero_grad = types.MethodType(_forget_gradients, optimizer)  # type: ignore[method-assign]
    return optimizer


def _in_one_kernel(optimizer: torch.optim.Optimizer) -> bool:
    """Whether one kernel updates each group: fused, on one device and of one dtype."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return bool(optimizer.defaults["fused"]) and len({(one.device, one.dtype) for one in parameters}) == 1


def _fused_sgd_step(optimizer: torch.optim.SGD) -> None:
    """`torch.optim.SGD.step` without its checks in each step, which take half of its time in a small network.

    A step that makes momenta, such as the first one, is torch's own, and so is one with sparse gradients. If fp16's
    scaled gradients overflow in it, it is skipped: torch would leave the momenta uninitialised.
    """
    scaling: dict[str, Any] = {name: getattr(optimizer, name, None) for name in ("grad_scale", "found_inf")}
    calls = []
    for group in optimizer.param_groups:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]  # frozen ones stay
        gradients = [parameter.grad for parameter in parameters]
        states = [optimizer.state.get(one, {}) for one in parameters] if group["momentum"] else []
        momenta = [state.get("momentum_buffer") for state in states]
        if any(one is None or one.is_sparse for one in (*gradients, *momenta)):
            if not scaling["found_inf"]:  # None, or a tensor that is read: the device is waited for
                _begin_missing_momenta(optimizer)
                inspect.unwrap(type(optimizer).step)(optimizer)
            return
        if parameters:
            calls.append((parameters, gradients, momenta, group))
    for parameters, gradients, momenta, group in calls:
        options: dict[str, Any] = {name: group[name] for name in _SGD_OPTIONS}
        torch._fused_sgd_(parameters, gradients, momenta, **options, is_first_step=False, **scaling)


def _begin_missing_momenta(optimizer: torch.optim.SGD) -> None:
    """Zeros for parameters that get their first gradient later than others of their group: torch's step raises there.

    Without dampening the momentum that follows is the gradient, as it would be in a first step.
    """
    for group in optimizer.param_groups:
        trained = [one for one in group["params"] if group["momentum"] and one.grad is not None]
        new = [one for one in trained if optimizer.state[one].get("momentum_buffer") is None]
        for parameter in new if len(new) < len(trained) else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _forget_gradients(optimizer: torch.optim.Optimizer, set_to_none: bool = True) -> None:
    assert set_to_none
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """`{"state": {name: …}, "groups": […]}`: by name, so that the order of the parameters may change.

    A parameter that had no gradient yet is there with None: a missing one is noticed.
    """
    state = optimizer.state_dict()
    names = [name for group in optimizer.param_groups for name in group["names"]]
    return {
        "state": {name: state["state"].get(index) for index, name in enumerate(names)},
        "groups": [{key: value for key, value in group.items() if key != "params"} for group in state["param_groups"]],
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Restores what `optimizer_state` returned, to the parameters of the same names, in any order.

    Raises `ConfigError` where the saved groups hold other parameters.
    """
    names = [name for group in optimizer.param_groups for name in group["names"]]
    index_of = {name: index for index, name in enumerate(names)}
    by_names = {frozenset(group["names"]): group for group in saved["groups"]}
    groups = []
    for group, plain in zip(optimizer.param_groups, optimizer.state_dict()["param_groups"], strict=True):
        match = by_names.get(frozenset(group["names"]))
        if match is None:
            raise ConfigError(
                f"optimizer: the saved state has other groups of parameters: none of them is {listing(group['names'])}"
            )
        groups.append({**match, "names": group["names"], "params": plain["params"]})
    state = {index_of[name]: values for name, values in saved["state"].items() if values is not None}
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for parameter, values in optimizer.state.items():
        values.update({name: _laid_out_as(parameter, value) for name, value in values.items()})


def _laid_out_as(parameter: Tensor, value: Any) -> Any:
    """A tensor of the parameter's shape with its strides, which a fused update assumes."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
