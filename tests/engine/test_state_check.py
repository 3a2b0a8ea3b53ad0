"""A state that a trainer could not have saved is refused before it is used, whatever the optimizer."""

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from planted import setting
from torch import nn
from torch.nn import functional as F

from cnnlab.components import Component
from cnnlab.data.normalization import Normalization
from cnnlab.data.resident import ResidentLoader
from cnnlab.data.source import Images
from cnnlab.engine.checkpoint import Checkpoints
from cnnlab.engine.ema import EMA
from cnnlab.engine.execution import Execution
from cnnlab.engine.muon import Muon
from cnnlab.engine.optimization import build_optimizer, optimizer_state
from cnnlab.engine.schedule import Schedule, constant
from cnnlab.engine.settings import TrainerSettings
from cnnlab.engine.state_check import check_trainer_state
from cnnlab.engine.state_file import read_state, write_state
from cnnlab.engine.trainer import Trainer, TrainState
from cnnlab.runtime.errors import ConfigError

OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, amsgrad=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, fused=True),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, momentum=0.9, centered=True),
    "adadelta": torch.optim.Adadelta,
    "plain": lambda parameters: torch.optim.SGD(parameters, 0.1),
}


class Remembers(torch.optim.Optimizer):
    """A user's own: an attribute beside state and groups, plain values, state of another shape and made late."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1, "seen": 0})
        self.decay = 0.5

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["seen"] += 1
            for parameter in group["params"]:
                state = self.state[parameter]
                state["rows"] = parameter.grad.flatten(1).sum(0) * self.decay if parameter.dim() > 1 else None
                state["count"] = state.get("count", 0) + 1
                if state["count"] > 2:
                    state["slow"] = parameter.clone()
                parameter.sub_(parameter.grad, alpha=group["lr"])


OPTIMIZERS |= {
    "adagrad": torch.optim.Adagrad,
    "adafactor": torch.optim.Adafactor,
    "nadam": torch.optim.NAdam,
    "own": Remembers,
}
NO_LENGTHS: Any = dict.fromkeys(("max_steps", "max_time", "clip_norm", "patience", "checkpoint_every", "ema"))


def make_trainer(folder: Path, kind: str = "sgd") -> Trainer:
    """A trainer around a convolution, whose weights lie channels_last, and a linear layer; 4 steps an epoch."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(4, 2)).to(memory_format=torch.channels_last)
    named = list(network.named_parameters())
    if kind == "muon":  # for one weight, beside another optimizer
        optimizer = build_optimizer(ADAMW, network, {"0.weight": MUON})
    else:
        optimizer = OPTIMIZERS[kind]([parameter for _, parameter in named])
        optimizer.param_groups[0]["names"] = [name for name, _ in named]
    x_NCHW = torch.randint(0, 256, (8, 3, 2, 2), dtype=torch.uint8)
    images = Images.of(x_NCHW, torch.arange(8) % 2)
    train = ResidentLoader(images, Normalization((0.0,) * 3, (1.0,) * 3), 2, device=torch.device("cpu"), shuffle=True)
    settings = TrainerSettings(
        **NO_LENGTHS, epochs=2, accumulate=1, log_every=3, validate_every_epochs=None, validate_every_steps=None,
        monitor=None, monitor_test=False, min_delta=0.0,
    )  # fmt: skip
    execution = Execution()
    state = TrainState(
        network, F.cross_entropy, optimizer, Schedule(optimizer, constant()), execution, execution.scaler(CPU),
        EMA(network, 0.9),
    )  # fmt: skip
    return Trainer(state, train, {}, settings, Checkpoints(folder), lambda record: None, meta={})


CPU = torch.device("cpu")


def saved(folder: Path, kind: str = "sgd") -> tuple[dict[str, Any], int]:
    """The state of a trainer that took all its steps, as a file gives it back, and the step."""
    trainer = make_trainer(folder, kind)
    assert trainer.fit() == "completed"
    write_state(folder / "state", trainer.state_dict())
    return read_state(folder / "state"), trainer.progress.step


ADAMW = Component("optimizer", "adamw", torch.optim.AdamW, {"lr": 0.01})
MUON = Component("optimizer.groups.0.weight", "muon", Muon, {"lr": 0.01})


@pytest.mark.parametrize("kind", [*OPTIMIZERS, "muon"])
def test_what_a_trainer_saved_is_accepted_and_continues(tmp_path: Path, kind: str) -> None:
    state, step = saved(tmp_path, kind)
    trainer = make_trainer(tmp_path, kind)
    before = copy.deepcopy(trainer.train_state.network.state_dict())
    check_trainer_state("state", trainer, state, step)
    assert all(torch.equal(before[name], value) for name, value in trainer.train_state.network.state_dict().items())
    assert_fresh(trainer, make_trainer(tmp_path, kind))  # nothing is left of the comparison
    trainer.load_state_dict(state)


@pytest.mark.parametrize("planted", [torch.zeros(1), torch.zeros(1).expand(4, 3, 2, 2)[..., :1], 3.0, None], ids=str)
@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw", "rmsprop", "adadelta", "muon"])
def test_an_optimizers_tensor_of_another_shape_or_kind_is_refused(tmp_path: Path, kind: str, planted: Any) -> None:
    state, step = saved(tmp_path, kind)
    moments = state["train_state"]["optimizer"]["state"]["0.weight"]
    for name in [name for name, value in moments.items() if isinstance(value, torch.Tensor) and value.dim() == 4]:
        changed = copy.deepcopy(state)
        changed["train_state"]["optimizer"]["state"]["0.weight"][name] = planted
        with pytest.raises(ConfigError, match=rf"optimizer\.state\.0\.weight\.{name}: expected a float32 tensor"):
            check_trainer_state("state", make_trainer(tmp_path, kind), changed, step)


def put(place: str, value: Any) -> Any:
    """A function that puts a value at `a.b.c` of a state; a missing one is left out."""

    def change(state: dict[str, Any]) -> None:
        *path, last = place.split(".")
        node = state
        for name in path:
            node = node[name]
        if value is MISSING:
            del node[last]
        else:
            node[last] = value

    return change


MISSING = object()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("tally", MISSING),
        ("extra", 1),
        ("progress.step", -5),
        ("progress.step", 7),
        ("progress.step", True),
        ("progress.seconds", float("nan")),
        ("progress.best", "high"),
        ("progress.best_step", 10**12),
        ("progress.best_values", [1]),
        ("progress.images", -1),
        ("train.position", 10**12),
        ("train.position", "1"),
        ("train.epoch", -1),
        ("tally.count", -1),
        ("tally.correct", 10**9),
        ("tally.loss_sum", float("inf")),
        ("train_state.schedule.steps", "zzz"),
        ("train_state.schedule.steps", 3),
        ("train_state.ema", None),
        ("train_state.ema.updates", 1.5),
        ("train_state.scaler", {"scale": 1}),
        ("train_state.optimizer.groups", []),
        ("train_state.optimizer.state", [1]),
        ("train_state.optimizer.state", {"unknown": {"momentum_buffer": torch.zeros(1)}}),
        ("generators.torch", torch.zeros(3, dtype=torch.uint8)),
        ("generators.torch", torch.zeros(5056)),
        ("generators.python", (3, (1,) * 625, None)),
        ("generators.python", (3, (-1,) * 625, None)),
        ("generators.python", "x"),
        ("generators.numpy.position", 10**9),
        ("generators.numpy.name", "other"),
        ("generators.cuda", [1]),
        ("generators.cuda", 3),
    ],
)
def test_a_planted_value_is_refused_by_its_place(tmp_path: Path, place: str, value: Any) -> None:
    state, step = saved(tmp_path)
    put(place, value)(state)
    if place == "generators.python" and value == (3, (1,) * 625, None):
        check_trainer_state("state", make_trainer(tmp_path), state, step)  # a legal state
        return
    with pytest.raises(ConfigError, match=r"state[ :].*expected"):
        check_trainer_state("state", make_trainer(tmp_path), state, step)


@pytest.mark.parametrize("value", ["0.1", None, True, float("nan"), [0.1]], ids=str)
def test_a_hyperparameter_of_another_type_is_refused(tmp_path: Path, value: Any) -> None:
    state, step = saved(tmp_path)
    state["train_state"]["optimizer"]["groups"][0]["lr"] = value
    with pytest.raises(ConfigError, match=r"groups\[0\].lr: expected a finite number"):
        check_trainer_state("state", make_trainer(tmp_path), state, step)


def assert_fresh(trainer: Trainer, other: Trainer) -> None:
    mine, fresh = (optimizer_state(one.train_state.optimizer) for one in (trainer, other))
    assert mine["groups"] == fresh["groups"]
    assert mine["state"].keys() == fresh["state"].keys()
    for name, values in fresh["state"].items():
        assert all(torch.equal(value, mine["state"][name][key]) for key, value in (values or {}).items())


MOMENTUM = "train_state/optimizer/state/0.weight/momentum_buffer"
GROUP = "train_state/optimizer/groups/0"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *[
            (MOMENTUM, value)
            for value in (torch.zeros(1), torch.zeros(()), torch.zeros(4, 3, 2, 2).double(), None, ...)
        ],
        *[("train_state/optimizer/state/0.weight", value) for value in (..., {}, [])],
        ("train_state/optimizer/state/0.weight/more", torch.zeros(3)),
        *[(f"{GROUP}/lr", value) for value in (..., None, "0.1", math.nan, -1.0)],
        *[(f"{GROUP}/names", value) for value in (..., None, ["0.weight"] * 4, [1])],
        *[("train_state/schedule/steps", value) for value in (-5, 7, 8.0, "zzz", True, None, 10**400)],
        *[("train_state/ema/updates", value) for value in (-1, 7, 9, 10**12)],
        *[("train/position", value) for value in (-1, 3, 10**12, 1.0, None)],
        *[("train/epoch", value) for value in (-1, 0, 10**12)],
        *[("progress/recorded_images", value) for value in (-1, 10**6)],
        ("progress/recorded_seconds", 1e9),
        ("progress/without_improvement", 9),
        ("progress/best_epoch", 9),
        *[("tally/loss_sum", value) for value in ("0", None)],
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_value_that_no_run_has_is_refused(tmp_path: Path, path: str, value: Any) -> None:
    state, step = saved(tmp_path)
    setting(path, value)(state)
    with pytest.raises(ConfigError, match=r"^state "):
        check_trainer_state("state", make_trainer(tmp_path), state, step)


def test_a_best_without_the_values_that_the_next_is_compared_with_is_refused(tmp_path: Path) -> None:
    state, step = saved(tmp_path)
    trainer = make_trainer(tmp_path)
    trainer.settings = dataclasses.replace(trainer.settings, monitor="accuracy/val")
    state["progress"] |= {"best": 0.5, "best_step": 4, "best_epoch": 1, "best_values": {"accuracy/val": 0.5}}
    state["progress"]["last_values"] = {"accuracy/val": 0.5, "loss/val": 1.0}
    with pytest.raises(ConfigError, match=r"best_values: expected accuracy/val, loss/val among them"):
        check_trainer_state("state", trainer, state, step)
    state["progress"]["best_values"]["loss/val"] = math.nan
    check_trainer_state("state", trainer, state, step)
    del state["progress"]["last_values"]["loss/val"]
    with pytest.raises(ConfigError, match=r"last_values: expected values of accuracy/val, loss/val"):
        check_trainer_state("state", trainer, state, step)


def test_a_loss_that_fp16_skipped_is_accepted(tmp_path: Path) -> None:
    state, step = saved(tmp_path)
    trainer = make_trainer(tmp_path)
    trainer.train_state.scaler = torch.amp.GradScaler("cpu")
    state["train_state"]["scaler"] = trainer.train_state.scaler.state_dict()
    state["tally"]["loss_sum"] = math.nan
    check_trainer_state("state", trainer, state, step)


def test_a_state_whose_tensors_share_memory_is_refused(tmp_path: Path) -> None:
    structure = {"dict": [[name, {"tensor": "0"}] for name in "xy"]}
    safetensors.torch.save_file({"0": torch.zeros(3)}, tmp_path / "state", {"structure": json.dumps(structure)})
    with pytest.raises(ValueError, match="it is no state"):
        read_state(tmp_path / "state")
