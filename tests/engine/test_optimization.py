import copy
import inspect
import io
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from cnnlab.components import Component
from cnnlab.engine import optimization
from cnnlab.engine.optimization import (
    OPTIMIZERS,
    build_optimizer,
    check_optimizer,
    load_optimizer_state,
    optimizer_state,
)
from cnnlab.engine.schedule import Schedule
from cnnlab.runtime.errors import Complaints, ConfigError

NAMES = ["conv1.weight", "conv1.bias", "norm1.weight", "norm1.bias", "output.weight", "output.bias"]


class Network(nn.Module):
    def __init__(self, *order: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = {"conv1": nn.Conv2d(1, 2, 3), "norm1": nn.BatchNorm2d(2), "output": nn.Linear(2, 3)}
        for name in order or layers:
            self.add_module(name, layers[name])


def component(name: str = "sgd", **arguments: Any) -> Component:
    return Component("optimizer", name, OPTIMIZERS[name], {"lr": 0.1, **arguments})


def torchs(kind: type[torch.optim.Optimizer], **arguments: Any) -> Component:
    return Component("optimizer", kind.__name__, kind, {"lr": 0.1, **arguments})


def options(optimizer: torch.optim.Optimizer, option: str) -> dict[str, Any]:
    """{parameter's name: its group's option}"""
    return {name: group[option] for group in optimizer.param_groups for name in group["names"]}


def give_gradients(network: nn.Module, number: int) -> None:
    """The same gradients for the same names, whatever their order."""
    for name, parameter in network.named_parameters():
        generator = torch.Generator().manual_seed(number * 1000 + NAMES.index(name))
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def take_steps(network: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    for number in numbers:
        give_gradients(network, number)
        optimizer.step()


def saved_and_read(state: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "muon"])
def test_biases_and_norms_are_not_decayed(name: str) -> None:
    optimizer = build_optimizer(component(name, weight_decay=0.01), Network(), {})
    decayed = [name for name, decay in options(optimizer, "weight_decay").items() if decay]
    assert decayed == ["conv1.weight", "output.weight"]
    assert options(optimizer, "weight_decay")["conv1.weight"] == 0.01


def test_the_first_pattern_that_matches_wins() -> None:
    groups = {"conv1.weight": {"lr": 0.5}, "*.weight": {"lr": 0.25}, "conv1.*": {"lr": 0.125, "weight_decay": 0.2}}
    network = Network()
    network.get_parameter("norm1.bias").requires_grad_(False)
    optimizer = build_optimizer(component(weight_decay=0.01), network, groups)
    lrs, decays = options(optimizer, "lr"), options(optimizer, "weight_decay")
    trained = [*NAMES[:3], *NAMES[4:]]
    assert lrs == dict(zip(trained, (0.5, 0.125, 0.25, 0.25, 0.1), strict=True))
    assert (decays["conv1.weight"], decays["conv1.bias"], decays["norm1.weight"]) == (0.01, 0.2, 0.0)


def test_an_lr_scale_multiplies_the_optimizers_lr_and_its_group_stands_last() -> None:
    groups = {"norm1.*": {"lr_scale": 64.0}, "conv1.*": {"lr": 0.5, "lr_scale": 0.5}}
    optimizer = build_optimizer(component(), Network(), groups)
    assert options(optimizer, "lr") == dict(zip(NAMES, (0.25, 0.25, 6.4, 6.4, 0.1, 0.1), strict=True))
    assert optimizer.param_groups[0]["lr"] == 0.1  # what is recorded


def test_layer_decay_multiplies_the_lrs_of_groups() -> None:
    optimizer = build_optimizer(component(), Network(), {"conv1.weight": {"lr": 1.0}}, layer_decay=0.5)
    assert options(optimizer, "lr") == dict(zip(NAMES, (0.5, 0.05, 0.05, 0.05, 0.1, 0.1), strict=True))


class Deep(nn.Sequential):
    """Two hidden weights, hidden1 and hidden2."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv1, self.hidden1 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, bias=False)
        self.norm1, self.pool, self.flatten = nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.hidden2, self.output = nn.Linear(4, 5), nn.Linear(5, 2)


HIDDEN = ["hidden1.weight", "hidden2.weight"]
ADAMW = {"lr": 1e-3, "weight_decay": 0.1}


def with_muon(network: nn.Module, **differences: Any) -> torch.optim.Optimizer:
    muon = component("muon", weight_decay=0.01)
    rest = Component("optimizer.rest", "adamw", torch.optim.AdamW, ADAMW)
    return build_optimizer(muon, network, differences.pop("groups", {}), rest, **differences)


def give_random_gradients(network: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)


def test_muon_updates_hidden_weights_and_the_rest_goes_to_its_own_optimizer() -> None:
    ours, theirs = Deep(), Deep()
    joint = with_muon(ours)
    assert [name for group in joint.param_groups[:1] for name in group["names"]] == HIDDEN
    weights = dict(theirs.named_parameters())
    hidden = [weights.pop(name) for name in HIDDEN]
    plain = [parameter for parameter in weights.values() if parameter.dim() < 2]
    others = [parameter for parameter in weights.values() if parameter.dim() >= 2]
    separate = [
        OPTIMIZERS["muon"]([{"params": hidden}], lr=0.1, weight_decay=0.01),
        torch.optim.AdamW([{"params": others}, {"params": plain, "weight_decay": 0.0}], fused=True, **ADAMW),
    ]
    for seed in range(3):
        give_random_gradients(ours, seed)
        give_random_gradients(theirs, seed)
        joint.step()
        for one in separate:
            one.step()
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    joint.zero_grad()
    assert all(parameter.grad is None for parameter in ours.parameters())


def test_a_group_with_a_type_has_an_optimizer_of_its_own_and_the_schedule_moves_all() -> None:
    network = Deep()
    adam = Component("optimizer.groups.output.*", "adam", torch.optim.Adam, {"lr": 0.5})
    optimizer = build_optimizer(component("sgd"), network, {"output.*": adam, "hidden*": {"lr": 0.25}})
    Schedule(optimizer, lambda step: 0.5)
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    optimizer.step()
    moved = {name: (before[name] - parameter).mean().item() for name, parameter in network.named_parameters()}
    # SGD moves by lr · 2, Adam's first step by lr
    expected = {"conv1": 0.1, "hidden1": 0.25, "norm1": 0.1, "hidden2": 0.25, "output": 0.25}
    assert moved == pytest.approx({name: expected[name.partition(".")[0]] for name in moved}, rel=1e-4)


def test_the_state_of_several_optimizers_is_restored_to_the_bit() -> None:
    network, other = Deep(), Deep()
    optimizer, fresh = with_muon(network), with_muon(other)
    for seed in range(2):
        give_random_gradients(network, seed)
        optimizer.step()
    other.load_state_dict(network.state_dict())
    load_optimizer_state(fresh, saved_and_read(optimizer_state(optimizer)))
    for seed in range(2, 4):
        for one, its in ((network, optimizer), (other, fresh)):
            give_random_gradients(one, seed)
            its.step()
    assert all(map(torch.equal, network.parameters(), other.parameters()))


def test_muon_without_a_hidden_weight_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^optimizer.type: muon updates the weights between the first and the last"):
        with_muon(Network())
    with pytest.raises(ConfigError, match=r"^optimizer.groups: every parameter has an optimizer of its own, and sgd"):
        build_optimizer(component(), Network(), {"*": component("adam")})


def test_an_optimizer_without_an_lr_has_none_to_multiply() -> None:
    class Fixed(torch.optim.SGD):
        def __init__(self, params: Any) -> None:
            super().__init__(params, lr=0.1)

    fixed = Component("optimizer", "mine.Fixed", Fixed)
    with pytest.raises(ConfigError, match=r"^optimizer: mine.Fixed has no lr that layer_decay or lr_scale could"):
        build_optimizer(fixed, Network(), {}, layer_decay=0.5)


def test_an_optimizer_without_weight_decay_is_given_none() -> None:
    optimizer = build_optimizer(torchs(torch.optim.Rprop), Network(), {})
    assert all("weight_decay" not in group for group in optimizer.param_groups)


@pytest.mark.parametrize(
    "arguments",
    [{"name": "sgd", "momentum": 0.9, "nesterov": True}, {"name": "adam"}, {"name": "adamw", "weight_decay": 0.1}],
    ids=lambda arguments: arguments["name"],
)
def test_a_loaded_state_leads_to_the_same_next_steps_in_another_order(arguments: dict[str, Any]) -> None:
    groups = {"output.*": {"lr": 0.02}}
    network, other = Network(), Network("output", "conv1", "norm1")
    optimizer = build_optimizer(component(**arguments), network, groups)
    take_steps(network, optimizer, range(3))
    other.load_state_dict(network.state_dict())
    fresh = build_optimizer(component(**arguments), other, groups)
    saved = saved_and_read(optimizer_state(optimizer))
    assert set(saved["state"]) == set(NAMES)
    load_optimizer_state(fresh, saved)
    take_steps(network, optimizer, range(3, 6))
    take_steps(other, fresh, range(3, 6))
    theirs = network.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize(
    ("optimizer", "groups", "messages"),
    [
        (component(lr=float("nan")), {}, ["lr: expected"]),
        (component(momentum=-0.5), {}, ["momentum: expected"]),
        (component("adam", eps=-1e-8), {}, ["eps: expected"]),
        (component(nesterov=True, momentum=0), {}, ["nesterov: expected"]),
        (component("adam", betas=(1.0, 0.999)), {}, ["betas[0]: expected"]),
        (component("adamw", betas=(0.9, -0.1)), {}, ["betas[1]: expected"]),
        (torchs(torch.optim.LBFGS), {}, ["type: LBFGS evaluates the loss several times per update"]),
        (torchs(torch.optim.SparseAdam), {}, ["type: SparseAdam updates by sparse gradients alone"]),
        (component(), [], ["groups: "]),
        (component(), {"conv1.*": 0.1}, ["groups.conv1.*: "]),
        (component(), {"conv1.*": {}}, ["groups.conv1.*: "]),
        (component(), {"conv1.*": {"momentum": 0.9}}, ["groups.conv1.*.momentum: "]),
        (component(), {"conv1.*": {"lr_scale": -1}}, ["groups.conv1.*.lr_scale: "]),
        (component(), {"conv1.*": component("adamw", betas=(0.9, 2.0))}, ["betas[1]: expected"]),
        (component(), {"conv1.*": torchs(torch.optim.LBFGS)}, ["type: LBFGS evaluates"]),
        (component(), {"conv9.*": component("adamw")}, ["groups.conv9.*: no trained parameter"]),
        (component(), {"conv1.*": {"weight_decy": 0}}, ["groups.conv1.*.weight_decy: .* did you mean 'weight_decay'"]),
        (component(), {"conv1.*": {"lr": -1}}, ["groups.conv1.*.lr: "]),
        (component(), {"conv1.*": {"weight_decay": "none"}}, ["groups.conv1.*.weight_decay: "]),
        (component(), {"conv1.wieght": {"lr": 0.1}}, ["groups.conv1.wieght: .* did you mean 'conv1.weight'"]),
        (
            component(lr=-1, nesterov=True),
            {"conv9.*": {"lr": -1}},
            ["lr: ", "nesterov: ", "groups.conv9.*.lr: ", "groups.conv9.*: "],
        ),
        (component(lr=0.0, momentum=0.9, nesterov=True), {"conv1.*": {"lr": 0.0, "weight_decay": 0.0}}, []),
        (component("adam", betas=(0.0, 0.999)), {}, []),
    ],
)
def test_what_is_out_of_range_or_malformed_is_reported_by_its_key(
    optimizer: Component, groups: Any, messages: list[str]
) -> None:
    complaints = Complaints()
    check_optimizer(optimizer, groups, NAMES, complaints)
    assert len(complaints.messages) == len(messages)
    for received, expected in zip(complaints.messages, messages, strict=True):
        key, _, rest = expected.partition(": ")
        assert received.startswith(f"optimizer.{key}: ")
        assert re.search(rest, received)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (torch.optim.Adam, {"lr": 0.01}),
        (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
        (torch.optim.RMSprop, {"lr": 0.01}),
    ],
)
def test_the_step_moves_the_weights_as_torchs_own_does(
    kind: type[torch.optim.Optimizer], arguments: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    bare = build_optimizer(Component("optimizer", kind.__name__, kind, arguments), ours, {})
    groups: list[dict[str, Any]] = [{"params": [theirs.weight]}, {"params": [theirs.bias], "weight_decay": 0.0}]
    whole = kind(groups, **arguments)  # biases are not decayed here
    for _ in range(5):
        x_NC = torch.randn(8, 4)
        for network, optimizer in ((ours, bare), (theirs, whole)):
            optimizer.zero_grad()
            network(x_NC).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-5, atol=1e-7)  # one kernel rounds in another order
    torch.testing.assert_close(ours.bias, theirs.bias, rtol=1e-5, atol=1e-7)
    assert ours.weight.requires_grad


@pytest.mark.parametrize(
    "arguments",
    [
        {"weight_decay": 0.01},
        {"momentum": 0.9, "dampening": 0.1, "maximize": True},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    ],
)
def test_sgds_step_has_the_bits_of_torchs_fused_one(arguments: dict[str, Any]) -> None:
    ours, theirs = Network(), Network()
    bare = build_optimizer(component("sgd", **arguments), ours, {})
    groups = [{"params": [p for p in theirs.parameters() if (p.dim() > 1) is weights]} for weights in (True, False)]
    groups[1]["weight_decay"] = 0.0  # type: ignore[assignment]
    whole = torch.optim.SGD(groups, lr=0.1, fused=True, **arguments)
    for number in range(6):
        for network, optimizer in ((ours, bare), (theirs, whole)):
            give_gradients(network, number)
            if number == 3:  # a parameter without a gradient stays, and so does its momentum
                network.get_submodule("output").weight.grad = None
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (1 + number)
            optimizer.step()
    assert all(torch.equal(mine, other) for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_parameter_that_gets_its_first_gradient_later_starts_its_momentum_then() -> None:
    """As where a layer is skipped at random; torch's fused SGD raises."""
    ours, theirs = Network(), Network()
    bare = build_optimizer(component("sgd", momentum=0.9, nesterov=True), ours, {})
    plain = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, nesterov=True, fused=False)
    for number in range(4):
        for network, optimizer in ((ours, bare), (theirs, plain)):
            give_gradients(network, number)
            if number < 2:
                network.get_submodule("output").weight.grad = None
            optimizer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_a_scaled_step_with_an_infinite_gradient_is_left_out_as_torch_does() -> None:
    network = Network()
    optimizer = build_optimizer(component("sgd", momentum=0.9), network, {})
    take_steps(network, optimizer, range(2))
    before = copy.deepcopy(network.state_dict())
    give_gradients(network, 2)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(1.0)  # type: ignore[attr-defined]
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "arguments", "fused"),
    [
        (torch.optim.SGD, {"lr": 0.1}, True),
        (torch.optim.Adam, {}, True),
        (torch.optim.AdamW, {}, True),
        (torch.optim.AdamW, {"foreach": True}, None),
        (torch.optim.AdamW, {"fused": False}, False),
        (torch.optim.Adagrad, {}, None),  # it has such a kernel on CPU alone
    ],
)
def test_one_kernel_updates_the_parameters_where_there_is_one(
    kind: type[torch.optim.Optimizer], arguments: dict[str, Any], fused: bool | None
) -> None:
    optimizer = build_optimizer(Component("optimizer", kind.__name__, kind, arguments), nn.Linear(2, 2), {})
    assert optimizer.param_groups[0]["fused"] is fused
    network = nn.Linear(4, 3)
    network.weight = nn.Parameter(torch.rand(3, 8)[:, ::2])  # with gaps in memory
    assert not build_optimizer(torchs(torch.optim.SGD), network, {}).param_groups[0]["fused"]


def test_momentum_saved_in_another_layout_goes_to_its_own_weights() -> None:
    def trained(layout: torch.memory_format) -> tuple[nn.Conv2d, torch.optim.Optimizer]:
        torch.manual_seed(0)
        network = nn.Conv2d(3, 4, 3).to(memory_format=layout)  # type: ignore[call-overload]
        return network, build_optimizer(component("sgd", momentum=0.9), network, {})

    x_NCHW = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    moved = []
    for layout in (torch.contiguous_format, torch.channels_last):
        network, optimizer = trained(torch.contiguous_format)
        network(x_NCHW).square().sum().backward()
        optimizer.step()
        saved = optimizer_state(optimizer)
        network, optimizer = trained(layout)
        load_optimizer_state(optimizer, saved)
        network.weight.grad = torch.zeros_like(network.weight)
        optimizer.step()  # by the momentum alone
        moved.append(network.weight.detach())
    torch.testing.assert_close(moved[0], moved[1])


def test_torchs_schedulers_still_see_the_steps() -> None:
    network = nn.Linear(2, 2)
    optimizer = build_optimizer(component("sgd"), network, {})
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler.step()  # warns, which is an error here, where it saw no optimizer.step before
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_a_users_own_optimizer_keeps_its_step() -> None:
    class Mine(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            self.called = True

    optimizer = build_optimizer(Component("optimizer", "mine", Mine, {"lr": 0.1}), nn.Linear(2, 2), {})
    optimizer.step()
    assert isinstance(optimizer, Mine)
    assert optimizer.called


@pytest.fixture
def _uninitialised_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    yield
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_uninitialised_memory_is_nan")
def test_an_overflow_in_the_first_update_leaves_the_momentum_for_the_next() -> None:
    """torch's fused SGD makes the momenta in that update, and leaves them uninitialised."""
    ours, theirs = Network(), Network()
    optimizer = build_optimizer(component("sgd", momentum=0.9, dampening=0.5), ours, {})
    for overflow in (1.0, 0.0, 0.0):
        give_gradients(ours, 2)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(overflow)  # type: ignore[attr-defined]
        optimizer.step()
    plain = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, dampening=0.5)
    take_steps(theirs, plain, range(2, 3))
    take_steps(theirs, plain, range(2, 3))
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_an_optimizer_added_to_the_table_is_not_assumed_to_be_fused() -> None:
    source = inspect.getsource(optimization).replace('"sgd": ', '"rmsprop": torch.optim.RMSprop, "sgd": ')
    extended: dict[str, Any] = {"__name__": "extended"}
    exec(source, extended)
    rmsprop = Component("optimizer", "rmsprop", extended["OPTIMIZERS"]["rmsprop"], {"lr": 0.1})
    assert extended["build_optimizer"](rmsprop, nn.Linear(2, 2), {}).defaults["lr"] == 0.1
