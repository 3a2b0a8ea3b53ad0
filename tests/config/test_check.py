import math
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import composed

from cnnlab.components import Trust
from cnnlab.config.check import check_config
from cnnlab.config.check_training import schedule_depends_on_length
from cnnlab.config.run_plan import RunPlan
from cnnlab.observers import Console, JSONLines, TensorBoard
from cnnlab.runtime.errors import ConfigError


def check(*overrides: str, **sections: Any) -> RunPlan:
    return check_config({**composed(*overrides), **sections}, Trust())


def complaints(*overrides: str) -> list[str]:
    """The keys of all complaints."""
    with pytest.raises(ConfigError) as refusal:
        check(*overrides)
    lines = [line.strip() for line in str(refusal.value).splitlines()]
    return [line.split(": ")[0] for line in lines if not line.startswith(f"{len(lines) - 1} mistakes")]


def test_every_section_is_checked_before_any_complaint_is_raised() -> None:
    keys = complaints(
        "name=a/b",
        "seed=-1",
        "device=tpu",
        "model.blocks.dropout1.p=2",
        "loss.label_smoothing=2",
        "optimizer.lr=-1",
        "schedule.pct_start=2",
        "trainer.execution.precision=fp8",
        "++observers.console=consol",
    )
    assert sorted(keys) == [
        "device",
        "loss.label_smoothing",
        "model.blocks.dropout1.p",
        "name",
        "observers.console",
        "optimizer.lr",
        "schedule.pct_start",
        "seed",
        "trainer.execution.precision",
    ]


def test_a_mistake_in_the_data_hides_none_in_the_blocks() -> None:
    assert complaints("++data.colour=true", "model.blocks.dropout1.p=2") == ["data.colour", "model.blocks.dropout1.p"]


def test_two_mistakes_in_one_section_are_both_reported() -> None:
    assert complaints("optimizer.lr=-1", "optimizer.momentum=-1") == ["optimizer.lr", "optimizer.momentum"]


def test_a_missing_section_is_named() -> None:
    config = composed()
    del config["loss"]
    with pytest.raises(ConfigError, match="loss: it is missing"):
        check_config(config, Trust())


@pytest.mark.parametrize("section", ["data", "model", "trainer", "observers"])
def test_a_section_has_to_be_a_mapping(section: str) -> None:
    with pytest.raises(ConfigError, match=f"{section}: expected a mapping, received 'text'"):
        check(**{section: "text"})


@pytest.mark.parametrize(("section", "name"), [("loss", "cross_entropy"), ("optimizer", "sgd"), ("schedule", "cosine")])
def test_a_component_can_be_given_by_its_name(section: str, name: str) -> None:
    assert check(**{section: name}).source.describe().classes == 10


BATCH = "data.batch_size=64"
# 1,437 training images − 180 for validation = 1,257 = 19 · 64 + 41


def test_an_epoch_has_the_batches_that_are_full() -> None:
    assert check(BATCH).steps_per_epoch == 19


def test_the_last_batch_counts_where_it_is_kept() -> None:
    assert check(BATCH, "data.drop_last=false").steps_per_epoch == 20


def test_a_limit_shortens_the_epoch() -> None:
    assert check(BATCH, "data.limit=640").steps_per_epoch == 10


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (["trainer.epochs=3"], 57),
        (["trainer.epochs=3", "trainer.max_steps=20"], 20),
        (["trainer.epochs=3", "trainer.max_steps=100"], 57),
        (["trainer.epochs=null", "trainer.max_time=5", "schedule=constant"], None),
    ],
)
def test_the_run_is_as_long_as_its_shortest_limit(overrides: list[str], steps: int | None) -> None:
    assert check(BATCH, *overrides).total_steps == steps


def test_a_schedule_takes_the_length_of_the_run() -> None:
    assert check(BATCH, "trainer.epochs=3").cycles == [(0, 57)]


def test_a_schedule_may_have_a_length_of_its_own() -> None:
    assert check("trainer.epochs=3", "schedule.total_steps=40").cycles == [(0, 40)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"type": "one_cycle"}, True),
        ({"type": "one_cycle", "total_steps": None}, True),
        ({"type": "one_cycle", "total_steps": 50}, False),
        ({"type": "cosine"}, True),
        ({"type": "constant"}, False),
        ({"type": "step", "step_size": 3}, False),
        ({"type": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.1}, True),
        ({"type": "torch.optim.lr_scheduler.CosineAnnealingLR", "T_max": "total_steps"}, True),
        ({"type": "torch.optim.lr_scheduler.CosineAnnealingLR", "T_max": 50}, False),
    ],
)
def test_which_schedules_depend_on_the_length(schedule: dict[str, Any], expected: bool) -> None:
    assert schedule_depends_on_length(schedule) is expected


def test_a_restarted_schedule_runs_through_its_curve_again() -> None:
    plan = check(BATCH, "trainer.epochs=3", "schedule=cosine", "schedule.warmup=0", "schedule.restarts=[20]")
    cosines = [(1 + math.cos(math.pi * n / length)) / 2 for length in (20, 37) for n in range(length)]
    assert learning_rates(plan, 57) == pytest.approx([0.1 * factor for factor in cosines])


@pytest.mark.parametrize("restarts", ["[57]", "[20,10]", "[0]", "[1.5]", "7"])
def test_restarts_are_increasing_steps_within_the_run(restarts: str) -> None:
    assert complaints(BATCH, "trainer.epochs=3", f"schedule.restarts={restarts}") == ["schedule.restarts"]


def test_restart_is_for_a_resumed_run() -> None:
    with pytest.raises(ConfigError, match=r"schedule.restart: .*resume=RUN"):
        check("++schedule.restart=true")


def test_a_schedule_of_torchs_own_is_not_restarted() -> None:
    torchs = {"type": "torch.optim.lr_scheduler.StepLR", "step_size": 3, "restarts": [4]}
    with pytest.raises(ConfigError, match=r"schedule.restarts: .*StepLR keeps its position"):
        check(schedule=torchs)


def learning_rates(plan: RunPlan, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    schedule = plan.build_schedule(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_total_steps_may_be_named_in_a_torch_schedulers_arguments() -> None:
    schedule = {"type": "torch.optim.lr_scheduler.CosineAnnealingLR", "T_max": "total_steps"}
    rates = learning_rates(check("trainer.max_steps=10", schedule=schedule), 11)
    assert rates[5] == pytest.approx(0.05)
    assert rates[10] == pytest.approx(0)


def test_a_schedule_knows_the_steps_of_an_epoch() -> None:
    plan = check(BATCH, "data.limit=128", schedule={"type": "step", "step_size": 1, "gamma": 0.5})
    assert learning_rates(plan, 5) == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025])


TORCHS = "torch.optim.lr_scheduler"


@pytest.mark.parametrize(
    "schedule",
    [
        {"type": f"{TORCHS}.LRScheduler"},
        {"type": f"{TORCHS}.StepLR", "step_size": 0},
    ],
)
def test_a_scheduler_that_cannot_take_a_step_is_refused(schedule: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^schedule: "):
        check(schedule=schedule)


@pytest.mark.parametrize("name", [".x", "x.", "..", "a..b", "a b.c"])
def test_a_dotted_name_is_of_identifiers(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^loss: expected a dotted name such as torch\.nn\.Name, received "):
        check(loss=name)


def test_a_group_of_parameters_has_its_own_lr() -> None:
    plan = check("+optimizer.groups={conv1*: {lr: 0.5}}")
    optimizer = plan.build_optimizer(plan.network.build())
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}
    assert (rates["conv1.weight"], rates["conv2.weight"]) == (0.5, 0.05)


def test_a_network_without_parameters_has_nothing_to_train() -> None:
    blocks = {"pool": {"type": "adaptive_avg_pool", "output_size": [2, 5]}, "flatten": "flatten"}
    with pytest.raises(ConfigError, match=r"model\.blocks: no block has a parameter"):
        check(model={"init": "default", "blocks": blocks})


def test_an_activation_within_a_last_sequence_is_noticed() -> None:
    head = {"type": "sequential", "blocks": {"l": {"type": "linear", "out_features": "classes"}, "s": "softmax"}}
    with pytest.raises(ConfigError, match="loss: cross_entropy takes logits"):
        check(model={"init": "default", "blocks": {"flatten": "flatten", "head": head}})


LAST_LAYERS = ["step", "sigmoid", "tanh", "softmax", None]
LOSSES_AND_LAST_LAYERS = [
    *((loss, last) for loss in ("cross_entropy", "quadratic") for last in LAST_LAYERS),
    *((loss, "sigmoid") for loss in ("bce", "focal", "torch.nn.CrossEntropyLoss")),
]


@pytest.mark.parametrize(("loss", "last"), LOSSES_AND_LAST_LAYERS)
def test_a_loss_goes_with_logits_or_with_activations(loss: str, last: str | None) -> None:
    blocks = {"flatten": "flatten", "output": {"type": "linear", "out_features": "classes"}, "last": last}
    sections = {"model": {"init": "default", "blocks": blocks}, "loss": {"type": loss}}
    if (loss == "quadratic") == (last is not None):
        check(**sections)
        return
    advice = r"add one with model\.blocks\.activation=sigmoid" if loss == "quadratic" else r"~model\.blocks\.last"
    with pytest.raises(ConfigError, match=rf"^loss: {loss} takes .*{advice}"):
        check(**sections)


def test_one_neuron_may_stand_for_two_classes() -> None:
    plan = check("experiment=perceptron")
    assert (plan.network.output_shape, plan.spec.classes) == ((2,), 2)


def test_a_single_output_for_two_classes_names_two_classes() -> None:
    blocks = {"flatten": "flatten", "neuron": {"type": "linear", "out_features": 1}}
    with pytest.raises(ConfigError, match=r"neuron: the network's output is 1: expected 2, .* or two_classes after"):
        check("data=logic_gates", model={"init": "default", "blocks": blocks})


def test_quadratic_loss_takes_sigmoid_outputs() -> None:
    plan = check("loss=quadratic", "+model.blocks.activation=sigmoid")
    assert plan.network.output_type is torch.nn.Sigmoid


def test_observers_come_in_the_order_of_the_yaml() -> None:
    assert [type(observer) for observer in check().observers] == [Console, TensorBoard, JSONLines]


def test_an_observer_that_is_null_is_left_out() -> None:
    assert [type(observer) for observer in check("observers.console=null").observers] == [TensorBoard, JSONLines]


@pytest.mark.parametrize(("given", "expected"), [("auto", True), ("true", True), ("false", False)])
def test_arithmetic_on_cpu_is_deterministic_unless_turned_off(given: str, expected: bool) -> None:
    assert check(f"trainer.deterministic={given}", "device=cpu").deterministic is expected


def test_the_wanted_directory_is_kept() -> None:
    assert check("run_dir=some/where").run_dir == Path("some/where")


def test_a_class_of_the_users_own_is_refused_where_it_is_not_trusted() -> None:
    config = composed("++model.blocks.relu1=my.package.Block")
    with pytest.raises(ConfigError, match=r"model.blocks.relu1: the saved config names the class 'my.package.Block'"):
        check_config(config, Trust(False))


def test_torchs_own_classes_need_no_trust() -> None:
    config = composed("++model.blocks.relu1=torch.nn.Hardswish")
    assert check_config(config, Trust(False)).network.layers[3].component.factory is torch.nn.Hardswish


NORM_OF_ONE_VALUE = "+model.blocks.norm={type: batch_norm, after: flatten}"
TEN_IMAGES = ("data.limit=10", "data.validation.count=0", "trainer.monitor=null", "data.drop_last=false")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.batch_size=1"], "data.batch_size: a batch of data.batch_size=1 leaves a single image"),
        (
            ["data.batch_size=3"],
            r"data.batch_size: the last batch of an epoch \(10 mod 3 = 1 images\) leaves",
        ),
        (
            ["data.batch_size=5", "trainer.accumulate=4"],
            "a batch of data.batch_size=5 in trainer.accumulate=4 microb",
        ),
    ],
)
def test_a_microbatch_of_one_image_is_refused_where_a_norm_needs_more(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        check(*TEN_IMAGES, NORM_OF_ONE_VALUE, *overrides)
    assert "the layer 'norm' needs more than one value per channel" in str(refusal.value)


@pytest.mark.parametrize(
    "overrides",
    [
        [NORM_OF_ONE_VALUE, "data.batch_size=5"],
        [NORM_OF_ONE_VALUE, "data.batch_size=3", "data.drop_last=true"],
        [NORM_OF_ONE_VALUE, "data.batch_size=1", "+model.freeze=[norm]"],
        ["+model.blocks.norm={type: batch_norm, after: conv1}", "data.batch_size=1"],  # many places in one image
    ],
)
def test_a_norm_that_gets_several_values_per_channel_is_accepted(overrides: list[str]) -> None:
    assert check(*TEN_IMAGES, *overrides)
