import math
import random
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cnnlab.engine import autotune
from cnnlab.engine.autotune import LIMIT, ROUNDS, WARM_UP, Trial, choose, table
from cnnlab.engine.execution import Execution
from cnnlab.runtime.errors import TrainingError

PRECISIONS, LAYOUTS, COMPILED = ["fp32", "bf16"], ["channels_last", "contiguous"], ["none", "network", "step"]
Cost = Callable[[Execution], float]


class Machine:
    """Takes as long for a step as it is told, on a clock of its own, and counts the steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: Cost, loss: Cost = lambda execution: 2.3) -> None:
        self.now = 0.0
        self.seconds, self.loss = seconds, loss
        self.steps: dict[tuple[str, str, str], int] = {}
        monkeypatch.setattr(autotune, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def prepare(self, execution: Execution) -> Callable[[], float]:
        key = (execution.precision, execution.layout, execution.compile)
        self.steps[key] = 0

        def step() -> float:
            self.steps[key] += 1
            self.now += self.seconds(execution)
            return self.loss(execution)

        return step

    def choose(self, wanted: Execution) -> tuple[Execution, list[Trial]]:
        return choose(wanted, PRECISIONS, LAYOUTS, COMPILED, self.prepare)


@pytest.mark.parametrize(("share", "layout"), [(0.5, "contiguous"), (0.89, "contiguous"), (0.91, "channels_last")])
def test_the_usual_gives_way_to_what_is_a_tenth_faster(
    monkeypatch: pytest.MonkeyPatch, share: float, layout: str
) -> None:
    machine = Machine(monkeypatch, lambda execution: 0.01 * (share if execution.layout == "contiguous" else 1))
    best, trials = machine.choose(Execution(layout="auto"))
    assert best == Execution("fp32", layout, "none")
    assert [trial.verdict for trial in trials] == (["", "chosen"] if layout == "contiguous" else ["chosen", ""])
    assert machine.steps == {("fp32", each, "none"): WARM_UP + ROUNDS for each in LAYOUTS}


def test_what_slows_down_a_whole_round_moves_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, lambda execution: 0.0)
    # the machine is slow every other round; contiguous is 5 % slower in each
    machine.seconds = lambda execution: (
        (0.01 if max(machine.steps.values()) % 2 else 0.05) * (1.05 if execution.layout == "contiguous" else 1)
    )
    assert machine.choose(Execution(layout="auto"))[0].layout == "channels_last"


def test_nothing_is_timed_where_nothing_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, lambda execution: 1.0)
    wanted = Execution("bf16", "contiguous", "network")
    assert machine.choose(wanted) == (wanted, [])
    assert choose(Execution(layout="auto"), PRECISIONS, ["contiguous"], ["none"], machine.prepare)[1] == []
    assert machine.steps == {}


def test_a_faster_precision_with_another_loss_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    for loss, expected in ((2.3 * 1.019, "bf16"), (2.3 * 1.021, "fp32"), (math.nan, "fp32")):
        machine = Machine(
            monkeypatch,
            lambda execution: 0.01 if execution.precision == "fp32" else 0.001,
            lambda execution, loss=loss: 2.3 if execution.precision == "fp32" else loss,  # type: ignore[misc]
        )
        best, trials = machine.choose(Execution("auto"))
        assert best.precision == expected
        assert (trials[1].verdict == "another loss") is (expected == "fp32")


def test_only_the_fastest_precision_and_layout_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {"fp32": 0.01, "bf16": 0.004, "channels_last": 1.0, "contiguous": 2.0, "none": 1, "network": 0.7, "step": 2}
    machine = Machine(monkeypatch, lambda e: costs[e.precision] * costs[e.layout] * costs[e.compile])
    best, _ = machine.choose(Execution("auto", "auto", "auto"))
    assert best == Execution("bf16", "channels_last", "network")
    assert [key for key in machine.steps if key[2] != "none"] == [
        ("bf16", "channels_last", "network"),
        ("bf16", "channels_last", "step"),
    ]


def test_a_fixed_compilation_waits_until_the_layout_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, lambda execution: 0.01)
    best, trials = machine.choose(Execution(layout="auto", compile="step"))
    assert best == Execution("fp32", "channels_last", "step")
    assert {trial.execution.compile for trial in trials} == {"none"}


def test_where_one_step_is_slow_the_usual_is_taken_after_one(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, lambda execution: LIMIT)
    best, trials = machine.choose(Execution("auto", "auto"))
    assert best == Execution()
    assert machine.steps == {("fp32", "channels_last", "none"): 1}
    assert "slow" in trials[0].verdict


def test_one_that_is_slow_is_left_after_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, lambda execution: 0.01 if execution.precision == "fp32" else LIMIT)
    best, trials = machine.choose(Execution("auto"))
    assert best.precision == "fp32"
    assert machine.steps["bf16", "channels_last", "none"] == 1
    assert trials[1].verdict == "slow"


def test_the_timing_ends_with_the_round_that_reaches_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, lambda execution: LIMIT / 5)
    machine.choose(Execution(layout="auto"))
    assert set(machine.steps.values()) == {WARM_UP + 3}  # 3 rounds of 2 steps


def captured(execution: Execution) -> bool:
    return execution.cuda_graph is True


@pytest.mark.parametrize(("seconds", "expected"), [(0.001, True), (0.0095, False)])
def test_a_step_is_captured_where_that_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, seconds: float, expected: bool
) -> None:
    machine = Machine(monkeypatch, lambda execution: seconds if captured(execution) else 0.01)
    wanted = Execution(layout="auto", cuda_graph="auto")
    best, trials = choose(wanted, PRECISIONS, LAYOUTS, COMPILED, machine.prepare, [False, True])
    assert best == Execution(cuda_graph=expected)
    # layouts are compared as they are going to be computed
    assert [captured(trial.execution) for trial in trials] == [False, True, expected, expected]
    assert "  cuda_graph   ms/step" in table(trials)


def test_what_cannot_be_captured_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(execution: Execution) -> float:
        if captured(execution):
            raise TrainingError("it asks for a value")
        return 0.01

    machine = Machine(monkeypatch, fails)
    best, trials = choose(Execution(cuda_graph="auto"), PRECISIONS, LAYOUTS, COMPILED, machine.prepare, [False, True])
    assert best == Execution()
    assert [trial.verdict for trial in trials] == ["chosen", "not capturable"]


def test_a_precision_or_compilation_that_cannot_be_captured_is_tried_without(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, lambda execution: 0.001 if captured(execution) else 0.01)
    wanted = Execution("auto", compile="auto", cuda_graph="auto")
    _, trials = choose(wanted, ["fp32", "fp16"], LAYOUTS, COMPILED, machine.prepare, [False, True])
    tried = {(t.execution.precision, t.execution.compile, t.execution.cuda_graph) for t in trials}
    assert tried == {
        ("fp32", "none", False),
        ("fp32", "none", True),
        ("fp16", "none", False),
        ("fp32", "network", False),
        ("fp32", "step", True),
    }


def test_a_network_with_graphs_of_its_own_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, lambda execution: 0.01)
    wanted = Execution(compile="network", cuda_graph="auto")
    best, trials = choose(wanted, PRECISIONS, LAYOUTS, COMPILED, machine.prepare, [False, True])
    assert best == Execution(compile="network")
    assert trials == []


def test_what_cannot_be_compiled_or_has_no_memory_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(execution: Execution) -> float:
        if execution.compile == "network":
            raise TrainingError("torch could not compile it")
        if execution.compile == "step":
            raise torch.OutOfMemoryError("too much")
        return 0.01

    best, trials = Machine(monkeypatch, fails).choose(Execution(compile="auto"))
    assert best.compile == "none"
    assert [trial.verdict for trial in trials] == ["chosen", "not compilable", "out of memory"]


def test_each_begins_with_the_same_draws_and_the_generators_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, float, float]] = []

    def draws(execution: Execution) -> float:
        drawn.append((float(torch.rand(())), random.random(), float(np.random.rand())))
        return 0.01

    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    expected = (float(torch.rand(())), random.random(), float(np.random.rand()))
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    Machine(monkeypatch, draws).choose(Execution(layout="auto"))
    assert drawn[0] == drawn[WARM_UP] == expected
    assert (float(torch.rand(())), random.random(), float(np.random.rand())) == expected


def test_the_table_fits_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds, lines in ((0.0123456, 2 + 4 + 3), (12.3456, 2 + 1 + 1)):
        machine = Machine(monkeypatch, lambda execution, seconds=seconds: seconds)  # type: ignore[misc]
        text = table(machine.choose(Execution("auto", "auto", "auto"))[1])
        assert max(map(len, text.splitlines())) <= 80
        assert len(text.splitlines()) == lines
        assert text.count("chosen") == 2
        assert f"{1000 * seconds:,.2f}" in text
