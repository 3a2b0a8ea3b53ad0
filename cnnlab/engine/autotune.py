"""Which way to compute a step is the fastest on this machine: timed, where the config says `auto`.

Layouts and precisions round differently, so the choice decides the bits of a run. The default therefore stays unless
something is clearly faster, and a run keeps what was chosen for it.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from itertools import product
from typing import Any

import torch

from cnnlab.engine.execution import AUTO, Execution
from cnnlab.runtime.errors import TrainingError
from cnnlab.runtime.randomness import capture_generators, restore_generators

CLEARLY_FASTER = 0.9  # of the time of what it would replace
WARM_UP = 3  # steps: the first makes the optimizer's state and may compile, the second may capture, the third is timed
ROUNDS = 9
LIMIT = 2.0  # seconds of timing, warming up and compiling left out
# of the loss in fp32 at the last step of the warm-up: a product's factors have 8 significant bits in bf16, which is
# 0.4 % of each, at random; the mean over a batch of their sums stays within a few times that
TOLERANCE = 0.02
# what is chosen together; capturing comes first, since it decides whether launching or computing takes the time, and
# compilation, which takes long, is tried for the fastest precision and layout alone
STAGES = (("cuda_graph",), ("precision", "layout"), ("compile",))

TakeStep = Callable[[], float]  # takes one training step, waits for the device and returns the loss


@dataclass
class Trial:
    """One way to compute a step. `verdict` is empty where it was simply not the fastest.

    `milliseconds`, NaN where no step could be timed, are what decides, and what is shown.
    """

    execution: Execution
    times: list[float] = field(default_factory=list)  # seconds per step
    loss: float = math.nan
    verdict: str = ""
    milliseconds: float = math.nan

    def clearly_faster_than(self, other: "Trial") -> bool:
        return not self.verdict and self.milliseconds < CLEARLY_FASTER * other.milliseconds


def autotune(
    wanted: Execution, candidates: Mapping[str, Sequence[Any]], prepare: Callable[[Execution], TakeStep]
) -> tuple[Execution, list[Trial]]:
    """The clearly fastest of the `candidates` for what is `auto` in `wanted`, and what was tried.

    The first candidate of each field is the default. `prepare` makes a step on weights of its own. The global
    generators are left as they were.
    """
    defaults = {name: values[0] for name, values in candidates.items() if getattr(wanted, name) == AUTO}
    best = _with(wanted, {**defaults, "compile": False})
    trials: list[Trial] = []
    for stage in STAGES:
        names = [name for name in stage if name in defaults]
        choices = product(*(candidates[name] for name in names))
        options = [_with(best, dict(zip(names, values, strict=True))) for values in choices]
        before = [trial.milliseconds for trial in trials if trial.execution == best]
        best, tried = _fastest(list(dict.fromkeys(options)), prepare, *before[-1:])
        trials += tried
    return (best if wanted.compile == AUTO else replace(best, compile=wanted.compile)), trials


def _with(execution: Execution, values: Mapping[str, Any]) -> Execution:
    """With these values, and not captured in fp16."""
    fields = {**asdict(execution), **values}
    return Execution(**{**fields, "cuda_graph": fields["cuda_graph"] if fields["precision"] != "fp16" else False})


def _fastest(
    options: Sequence[Execution], prepare: Callable[[Execution], TakeStep], milliseconds: float = math.nan
) -> tuple[Execution, list[Trial]]:
    """The first option, or a later one that is clearly faster and computes the same loss.

    `milliseconds` are what a step with the first was found to take before.
    """
    if len(options) == 1:
        return options[0], []
    generators = capture_generators()
    trials = [Trial(option) for option in options]
    try:
        _time(trials, prepare, generators)
    finally:
        restore_generators(generators)
    compare(trials, milliseconds)
    best = reduce(lambda best, trial: trial if trial.clearly_faster_than(best) else best, trials)
    best.verdict = "chosen" if not best.verdict else f"chosen ({best.verdict})"
    return best.execution, trials


def compare(trials: Sequence[Trial], milliseconds: float = math.nan) -> None:
    """Gives each trial the time of its step: the first's, times the median of the rounds' ratios to the first.

    Other load on the machine slows down all steps of a round alike, so the ratios tell more than the times. The first's
    own time is what was found before, or the median of its times.
    """
    first = trials[0]
    if first.times and math.isnan(milliseconds):
        milliseconds = 1000 * statistics.median(first.times)
    for trial in trials:
        if trial.verdict == "slow":  # one step was enough to see it
            trial.milliseconds = 1000 * trial.times[0]
        elif trial.times:
            ratios = [mine / theirs for mine, theirs in zip(trial.times, first.times, strict=True)]
            trial.milliseconds = milliseconds * statistics.median(ratios)


def _time(trials: Sequence[Trial], prepare: Callable[[Execution], TakeStep], generators: dict[str, Any]) -> None:
    """Takes turns, so that other load on the machine disturbs all alike."""
    steps: dict[int, TakeStep] = {}
    for number, trial in enumerate(trials):
        restore_generators(generators)
        try:
            steps[number] = prepare(trial.execution)
            _warm_up(trial, steps[number], LIMIT / len(trials))
        except TrainingError:
            trial.verdict = "not compilable" if trial.execution.compile else "not capturable"
        except torch.OutOfMemoryError:
            trial.verdict = "out of memory"
        if not trial.verdict and not math.isclose(trial.loss, trials[0].loss, rel_tol=TOLERANCE):
            trial.verdict = "another loss"
        if trial.verdict:
            steps.pop(number, None)
            if number == 0:  # even the default is slow: a run of hours can do without the choice
                return
    started = time.perf_counter()
    for _ in range(ROUNDS):
        for number, step in steps.items():
            trials[number].times.append(_seconds(step)[0])
        if time.perf_counter() - started > LIMIT:
            return


def _warm_up(trial: Trial, step: TakeStep, most: float) -> None:
    """Takes the first steps; one that takes longer than `most` seconds, and compiles nothing, is the last."""
    for number in range(WARM_UP):
        seconds, trial.loss = _seconds(step)
        if seconds > most and (not trial.execution.compile or number == WARM_UP - 1):
            trial.times, trial.verdict = [seconds], "slow"
            return


def _seconds(step: TakeStep) -> tuple[float, float]:
    started = time.perf_counter()
    loss = step()
    return time.perf_counter() - started, loss


def milliseconds_of(step: TakeStep) -> float:
    """The median time of a step after the warm-up. The global generators are left as they were."""
    generators = capture_generators()
    try:
        trial = Trial(Execution())
        _warm_up(trial, step, LIMIT)
        while len(trial.times) < ROUNDS and sum(trial.times) < LIMIT:
            trial.times.append(_seconds(step)[0])
    finally:
        restore_generators(generators)
    return 1000 * statistics.median(trial.times)


def one_line(trials: Sequence[Trial]) -> str:
    """What was chosen, and what a step takes with it and with the defaults."""
    default, chosen = trials[0], [trial for trial in trials if trial.verdict.startswith("chosen")][-1]
    if not chosen.times:
        return "trainer.execution: no step could be timed, so the defaults stay"
    if chosen.execution == default.execution:
        tried = len([trial for trial in trials if trial.times])
        timed = "1 way was timed" if tried == 1 else f"{tried} ways were timed"
        return f"trainer.execution: the defaults, {chosen.milliseconds:,.2f} ms a step ({timed})"
    fields = zip(asdict(chosen.execution).items(), asdict(default.execution).values(), strict=True)
    changed = " ".join(f"{name}={str(value).lower()}" for (name, value), before in fields if value != before)
    instead = f" instead of {default.milliseconds:,.2f} ms" if default.times else ""
    return f"trainer.execution: {changed}, {chosen.milliseconds:,.2f} ms a step{instead}"


def table(trials: Sequence[Trial]) -> str:
    """A line for each trial; fits into 80 columns. Where a step is slow, that is the default alone."""
    shown = [trial for trial in trials if trial.times or trial.verdict]
    on_cuda = any(trial.execution.cuda_graph for trial in shown)
    lines = [f"  {'precision':<11}{'layout':<15}{'compile':<9}{'cuda_graph' * on_cuda}{'ms/step':>10}{'loss':>10}"]
    for trial in shown:
        precision, layout, compiled, captured = (str(value).lower() for value in asdict(trial.execution).values())
        graph = f"{captured:<10}" * on_cuda
        ms = f"{trial.milliseconds:,.2f}" if trial.times else "–"
        loss = "–" if math.isnan(trial.loss) else f"{trial.loss:.4f}"
        lines.append(f"  {precision:<11}{layout:<15}{compiled:<9}{graph}{ms:>10}{loss:>10}  {trial.verdict}".rstrip())
    return "\n".join(["trainer.execution, timed on this machine:", *lines])
