import math
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cnnlab.engine import autotune
from cnnlab.engine.autotune import LIMIT, ROUNDS, WARM_UP, Trial, compare, one_line, table
from cnnlab.engine.execution import Execution
from cnnlab.runtime.errors import TrainingError

LAYOUTS = ["channels_last", "contiguous"]
EITHER = [False, True]
CANDIDATES = {"precision": ["fp32", "bf16"], "layout": LAYOUTS, "compile": EITHER, "cuda_graph": EITHER}
Measure = Callable[[Execution], float]


class Machine:
    """Takes `seconds` for a step, on a clock of its own, and counts the steps."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, seconds: Measure, loss: Measure = lambda execution: 2.3
    ) -> None:
        self.now = 0.0
        self.seconds, self.loss = seconds, loss
        self.steps: dict[tuple[str, str, bool | str], int] = {}
        monkeypatch.setattr(autotune, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def prepare(self, execution: Execution) -> Callable[[], float]:
        key = (execution.precision, execution.layout, execution.compile)
        self.steps[key] = 0

        def step() -> float:
            self.steps[key] += 1
            self.now += self.seconds(execution)
            return self.loss(execution)

        return step

    def autotune(self, wanted: Execution, **candidates: Any) -> tuple[Execution, list[Trial]]:
        return autotune.autotune(wanted, CANDIDATES | candidates, self.prepare)


@pytest.mark.parametrize(("fraction", "layout"), [(0.5, "contiguous"), (0.89, "contiguous"), (0.91, "channels_last")])
def test_the_default_is_replaced_by_what_is_a_tenth_faster(
    monkeypatch: pytest.MonkeyPatch, fraction: float, layout: str
) -> None:
    machine = Machine(monkeypatch, lambda execution: 0.01 * (fraction if execution.layout == "contiguous" else 1))
    best, trials = machine.autotune(Execution(layout="auto"))
    assert best == Execution("fp32", layout)
    assert [trial.verdict for trial in trials] == (["", "chosen"] if layout == "contiguous" else ["chosen", ""])
    assert machine.steps == {("fp32", each, False): WARM_UP + ROUNDS for each in LAYOUTS}


def test_what_slows_down_a_whole_round_moves_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, lambda execution: 0.0)
    # the machine is slow every other round; contiguous is 5 % slower in each
    machine.seconds = lambda execution: (
        (0.01 if max(machine.steps.values()) % 2 else 0.05) * (1.05 if execution.layout == "contiguous" else 1)
    )
    assert machine.autotune(Execution(layout="auto"))[0].layout == "channels_last"


def test_the_times_shown_are_those_that_decide() -> None:
    # faster in two rounds of three, by 0.85 and 0.8, though 2.55 is the median of its times, and 2 that of the first's
    default = Trial(Execution(layout="channels_last"), [0.001, 0.002, 0.003])
    other = Trial(Execution(layout="contiguous"), [0.005, 0.0016, 0.00255])
    compare([default, other])
    assert other.clearly_faster_than(default)
    assert (default.milliseconds, other.milliseconds) == pytest.approx((2, 0.85 * 2))
    other.verdict = "chosen"
    assert one_line([default, other]) == "trainer.execution: layout=contiguous, 1.70 ms a step instead of 2.00 ms"


def test_what_is_timed_again_later_keeps_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, lambda execution: 0.0)
    # compiled it takes 0.8 of the time, but the machine has become slower by then
    machine.seconds = lambda execution: (
        (0.05 if any(compiled for *_, compiled in machine.steps) else 0.01) * (0.8 if execution.compile else 1)
    )
    best, trials = machine.autotune(Execution(layout="auto", compile="auto"))
    assert best == Execution(compile=True)
    assert [trial.milliseconds for trial in trials] == pytest.approx([10, 10, 10, 8])


def test_nothing_is_timed_where_nothing_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, lambda execution: 1.0)
    wanted = Execution("bf16", "contiguous", compile=True)
    assert machine.autotune(wanted) == (wanted, [])
    assert machine.autotune(Execution(layout="auto"), layout=["contiguous"])[1] == []
    assert machine.steps == {}


def test_a_faster_precision_with_another_loss_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    for loss, expected in ((2.3 * 1.019, "bf16"), (2.3 * 1.021, "fp32"), (math.nan, "fp32")):
        machine = Machine(
            monkeypatch,
            lambda execution: 0.01 if execution.precision == "fp32" else 0.001,
            lambda execution, loss=loss: 2.3 if execution.precision == "fp32" else loss,  # type: ignore[misc]
        )
        best, trials = machine.autotune(Execution("auto"))
        assert best.precision == expected
        assert (trials[1].verdict == "another loss") is (expected == "fp32")


def test_only_the_fastest_precision_and_layout_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    factors = {"fp32": 0.01, "bf16": 0.004, "channels_last": 1.0, "contiguous": 2.0, False: 1.0, True: 0.7}
    machine = Machine(monkeypatch, lambda e: factors[e.precision] * factors[e.layout] * factors[e.compile])
    best, _ = machine.autotune(Execution("auto", "auto", "auto"))
    assert best == Execution("bf16", "channels_last", compile=True)
    assert [key for key in machine.steps if key[2]] == [("bf16", "channels_last", True)]


def test_a_given_compilation_waits_until_the_layout_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, lambda execution: 0.01)
    best, trials = machine.autotune(Execution(layout="auto", compile=True))
    assert best == Execution(compile=True)
    assert not any(trial.execution.compile for trial in trials)


def test_what_is_slow_is_left_after_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, lambda execution: LIMIT)
    best, trials = machine.autotune(Execution("auto", "auto"))  # nothing else is tried, either
    assert best == Execution()
    assert machine.steps == {("fp32", "channels_last", False): 1}
    assert "slow" in trials[0].verdict
    machine = Machine(monkeypatch, lambda execution: 0.01 if execution.precision == "fp32" else LIMIT)
    best, trials = machine.autotune(Execution("auto"))
    assert best.precision == "fp32"
    assert machine.steps["bf16", "channels_last", False] == 1
    assert trials[1].verdict == "slow"


def test_the_timing_ends_with_the_round_that_reaches_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, lambda execution: LIMIT / 5)
    machine.autotune(Execution(layout="auto"))
    assert set(machine.steps.values()) == {WARM_UP + 3}  # 3 rounds of 2 steps


def captured(execution: Execution) -> bool:
    return execution.cuda_graph is True


@pytest.mark.parametrize(("seconds", "expected"), [(0.001, True), (0.0095, False)])
def test_a_step_is_captured_where_that_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, seconds: float, expected: bool
) -> None:
    machine = Machine(monkeypatch, lambda execution: seconds if captured(execution) else 0.01)
    wanted = Execution(layout="auto", cuda_graph="auto")
    best, trials = machine.autotune(wanted)
    assert best == Execution(cuda_graph=expected)
    # layouts are compared as they are going to be computed
    assert [captured(trial.execution) for trial in trials] == [False, True, expected, expected]
    assert "  cuda_graph   ms/step" in table(trials)


def test_a_precision_that_cannot_be_captured_is_tried_without(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, lambda execution: 0.001 if captured(execution) else 0.01)
    wanted = Execution("auto", compile="auto", cuda_graph="auto")
    _, trials = machine.autotune(wanted, precision=["fp32", "fp16"])
    assert [(t.execution.precision, t.execution.compile, t.execution.cuda_graph) for t in trials] == [
        ("fp32", False, False),
        ("fp32", False, True),
        ("fp32", False, True),
        ("fp16", False, False),
        ("fp32", False, True),
        ("fp32", True, True),
    ]


@pytest.mark.parametrize(
    ("tried", "error", "verdict"),
    [
        ("compile", TrainingError("torch cannot"), "not compilable"),
        ("compile", torch.OutOfMemoryError("full"), "out of memory"),
        ("cuda_graph", TrainingError("it asks for a value"), "not capturable"),
    ],
)
def test_what_fails_is_left(monkeypatch: pytest.MonkeyPatch, tried: str, error: Exception, verdict: str) -> None:
    def fails(execution: Execution) -> float:
        if getattr(execution, tried):
            raise error
        return 0.01

    wanted = Execution(compile="auto") if tried == "compile" else Execution(cuda_graph="auto")
    best, trials = Machine(monkeypatch, fails).autotune(wanted)
    assert best == Execution()
    assert [trial.verdict for trial in trials] == ["chosen", verdict]


def test_each_begins_with_the_same_draws_and_the_generators_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, float, float]] = []

    def draw(execution: Execution) -> float:
        drawn.append((float(torch.rand(())), random.random(), float(np.random.rand())))
        return 0.01

    for autotuned in (False, True):
        torch.manual_seed(1), random.seed(1), np.random.seed(1)
        if autotuned:
            Machine(monkeypatch, draw).autotune(Execution(layout="auto"))
        draw(Execution())
    assert drawn[0] == drawn[1] == drawn[1 + WARM_UP] == drawn[-1]


def test_the_table_fits_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds, lines in ((0.0123456, 2 + 4 + 2), (12.3456, 2 + 1 + 1)):
        machine = Machine(monkeypatch, lambda execution, seconds=seconds: seconds)  # type: ignore[misc]
        text = table(machine.autotune(Execution("auto", "auto", "auto"))[1])
        assert max(map(len, text.splitlines())) <= 80
        assert len(text.splitlines()) == lines
        assert text.count("chosen") == 2
        assert f"{1000 * seconds:,.2f}" in text


def test_one_line_says_what_was_chosen_beside_the_defaults() -> None:
    default = Trial(Execution("fp32", "channels_last"), [0.002, 0.002], 2.3)
    other = Trial(Execution("bf16", "contiguous"), [0.001, 0.001], 2.3, "chosen")
    compare([default, other])
    assert one_line([default, other]) == (
        "trainer.execution: precision=bf16 layout=contiguous, 1.00 ms a step instead of 2.00 ms"
    )
    default.verdict, other.verdict = "chosen", ""
    assert one_line([default, other]) == "trainer.execution: the defaults, 2.00 ms a step (2 ways were timed)"
    assert one_line([default]) == "trainer.execution: the defaults, 2.00 ms a step (1 way was timed)"
    assert "no step could be timed" in one_line([Trial(Execution(), [], verdict="chosen (out of memory)")])
