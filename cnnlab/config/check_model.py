"""The sections `model` and `loss`: the network, its starting weights, and a loss that fits its output."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from cnnlab.blocks.activation import Step, TwoClasses
from cnnlab.blocks.facts import format_shape
from cnnlab.components import Registry, Trust, attempt, bind, build_settings
from cnnlab.config.init_from import InitFrom
from cnnlab.config.sections import as_mapping
from cnnlab.data.source import DataSpec
from cnnlab.losses import LOSSES, ClassWeighted, check_untrained, takes
from cnnlab.network import NetworkPlan, plan_network
from cnnlab.network.read import Reader
from cnnlab.runtime.device import machine_memory
from cnnlab.runtime.errors import ArgumentError, Complaints, no_such_key

LOSS = Registry("loss", LOSSES, nn.Module, ("torch.nn",))
MODEL_KEYS = ("init", "init_from", "freeze", "blocks")
ACTIVATIONS = (nn.Softmax, nn.Sigmoid, nn.Tanh, nn.LogSoftmax, Step, TwoClasses)
BYTES_PER_PARAMETER = 2 * 4  # weights and gradients in fp32 are the least that training needs


def check_model(given: Any, spec: DataSpec | None, complaints: Complaints, trust: Trust) -> NetworkPlan | None:
    """The network for the data's images; without `spec` the blocks' own mistakes are reported all the same."""
    section = as_mapping(given, "model", complaints)
    for name in section:
        if name not in MODEL_KEYS:
            complaints.add(f"model.{name}", no_such_key(name, MODEL_KEYS))
    if spec is None:
        Reader(complaints, {"classes": 2}, trust).read(section.get("blocks"), "model.blocks")
        return None
    plan = plan_network(
        spec.input_shape,
        section.get("blocks"),
        complaints,
        classes=spec.classes,
        trust=trust,
        **{name: section[name] for name in ("init", "freeze") if name in section},
    )
    if plan:
        check_output(plan, spec, complaints)
        check_memory(plan, complaints)
    return plan


def check_output(plan: NetworkPlan, spec: DataSpec, complaints: Complaints) -> None:
    """The network has to give one number for each class."""
    if plan.output_shape == (spec.classes,):
        return
    complaints.add(
        plan.layers[-1].component.key,
        f"the network's output is {format_shape(plan.output_shape)}: expected {spec.classes}, one number for "
        f"each of the {spec.classes} classes of the data, as {{type: linear, out_features: classes}} gives"
        + (", or two_classes after one neuron's activation" if spec.classes == 2 else ""),
    )


def check_memory(plan: NetworkPlan, complaints: Complaints) -> None:
    """Weights and gradients have to fit into this machine's memory."""
    parameters = sum(row.parameters for row in plan.rows)
    needed, available = BYTES_PER_PARAMETER * parameters, machine_memory()
    if needed > available:
        complaints.add(
            "model.blocks",
            f"weights and gradients of {parameters:,} parameters take {needed / 1e9:,.0f} GB, and this machine "
            f"has {available / 1e9:,.0f}: expected a smaller network",
        )


def check_init_from(model: Any, complaints: Complaints) -> InitFrom | None:
    """`model.init_from`: a path, or a mapping with one."""
    given = model.get("init_from") if isinstance(model, Mapping) else None
    if given is None:
        return None
    if not isinstance(given, str | Mapping):
        complaints.add("model.init_from", f"expected a path or a mapping with one, received {given!r}")
        return None
    settings = {"path": given} if isinstance(given, str) else given
    return build_settings(InitFrom, settings, "model.init_from", complaints)


def check_loss(
    section: Any, network: NetworkPlan | None, spec: DataSpec | None, complaints: Complaints, trust: Trust
) -> nn.Module | None:
    """The loss, which has to fit the number of classes and the network's last layer."""
    component = bind(section, "loss", LOSS, complaints, trust=trust)
    loss: nn.Module | None = attempt(component.build, complaints) if component else None
    if component is None or loss is None:
        return None
    try:
        check_untrained(loss)
        if isinstance(loss, ClassWeighted) and spec:
            loss.check_classes(spec.classes)
    except ArgumentError as error:
        complaints.add_error("loss", error)
    if network:
        check_loss_against_network(component.type, loss, network, complaints)
    return loss


def check_loss_against_network(name: str, loss: nn.Module, network: NetworkPlan, complaints: Complaints) -> None:
    """A loss takes logits or activations, and the last layer has to give just those."""
    last = network.layers[-1]
    gives_activations = issubclass(network.output_type, ACTIVATIONS)
    if takes(loss) == "logits" and gives_activations:
        complaints.add(
            "loss",
            f"{name} takes logits, but the last layer {last.name!r} is {last.component.type}, which gives "
            f"activations: expected a last layer such as linear; remove it with '~{last.component.key}'",
        )
    if takes(loss) == "activations" and not gives_activations:
        complaints.add(
            "loss",
            f"{name} takes activations, but the last layer {last.name!r} is {last.component.type}, which gives "
            f"logits: expected a last layer such as sigmoid or softmax; add one with "
            f"model.blocks.activation=sigmoid",
        )
