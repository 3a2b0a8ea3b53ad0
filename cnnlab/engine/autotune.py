"""How a step is computed fastest on this machine: timed, where the config says `auto`.

Layouts and precisions round differently, so that a choice decides the bits of a run. What is usual therefore stays
unless something is clearly faster, and a run keeps what was chosen for it.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field, replace

import torch

from cnnlab.engine.execution import AUTO, Execution
from cnnlab.runtime.errors import TrainingError
from cnnlab.runtime.randomness import capture_generators, restore_generators

CLEARLY_FASTER = 0.9  # of the time of what it would take the place of
WARM_UP = 3  # steps: the first makes the optimizer's state, the second may compile, the third is compared
ROUNDS = 9
LIMIT = 2.0  # seconds of timing, warming up and compiling left out
# of the loss in fp32 at the last step of the warm-up: a product's factors have 8 significant bits in bf16, which is
# 0.4 % of each, at random; the mean over a batch of what they add up to keeps within a few times that
TOLERANCE = 0.02

TakeStep = Callable[[], float]  # takes one training step, waits for the device and returns the loss


@dataclass
class Trial:
    """One way to compute a step. `verdict` is empty where it was simply not the fastest."""

    execution: Execution
    times: list[float] = field(default_factory=list)  # seconds a step
    loss: float = math.nan
    verdict: str = ""

    @property
    def seconds(self) -> float:
        return statistics.median(self.times) if self.times else math.inf

    def clearly_faster_than(self, other: "Trial") -> bool:
        """Round by round, since what else the machine does slows down the steps of one round alike."""
        if self.verdict or not self.times:
            return False
        ratios = [mine / theirs for mine, theirs in zip(self.times, other.times, strict=True)]
        return statistics.median(ratios) < CLEARLY_FASTER


def choose(
    wanted: Execution,
    precisions: Sequence[str],
    layouts: Sequence[str],
    compiled: Sequence[str],
    prepare: Callable[[Execution], TakeStep],
    captured: Sequence[bool] = (False,),
) -> tuple[Execution, list[Trial]]:
    """The clearly fastest of what `wanted` leaves open, and what was tried.

    The first of each kind is the usual. `prepare` makes a step on weights of its own. The global generators are left
    as they were. Whether steps are `captured` in a CUDA graph is asked first: it decides whether launching or computing
    is what takes the time. Compilation takes long: only the fastest precision and layout are compiled.
    """
    first = {"precision": precisions[0], "layout": layouts[0], "compile": compiled[0], "cuda_graph": captured[0]}
    usual = wanted.resolve(first)
    trials: list[Trial] = []
    best = replace(usual, compile="none")
    if wanted.cuda_graph == AUTO and usual.allows_cuda_graph:
        best, trials = _fastest([replace(best, cuda_graph=one) for one in captured], prepare)
    options = [
        _with(best, precision=precision, layout=layout)
        for precision in (precisions if wanted.precision == AUTO else [usual.precision])
        for layout in (layouts if wanted.layout == AUTO else [usual.layout])
    ]
    best, more = _fastest(options, prepare)
    trials += more
    if wanted.compile != AUTO:
        return _with(best, compile=wanted.compile), trials
    graphs = [_with(best, compile=one) for one in compiled if (best.precision, one) != ("fp16", "step")]
    best, more = _fastest(graphs, prepare)
    return best, [*trials, *more]


def _with(execution: Execution, **values: str) -> Execution:
    """With these values, and not captured where they do not allow it."""
    plain = replace(execution, cuda_graph=False, **values)
    return replace(plain, cuda_graph=execution.cuda_graph and plain.allows_cuda_graph)


def _fastest(options: Sequence[Execution], prepare: Callable[[Execution], TakeStep]) -> tuple[Execution, list[Trial]]:
    """The first option, or a later one that is clearly faster and computes the same loss."""
    if len(options) == 1:
        return options[0], []
    generators = capture_generators()
    trials = [Trial(option) for option in options]
    try:
        _time(trials, prepare, lambda: restore_generators(generators))
    finally:
        restore_generators(generators)
    best = trials[0]
    for trial in trials[1:]:
        if trial.clearly_faster_than(best):
            best = trial
    best.verdict = "chosen" if not best.verdict else f"chosen ({best.verdict})"
    return best.execution, trials


def _time(trials: Sequence[Trial], prepare: Callable[[Execution], TakeStep], same_draws: Callable[[], None]) -> None:
    """Takes turns, so that whatever else the machine does disturbs all alike."""
    steps: dict[int, TakeStep] = {}
    for number, trial in enumerate(trials):
        same_draws()
        try:
            steps[number] = prepare(trial.execution)
            _warm_up(trial, steps[number], LIMIT / len(trials))
        except TrainingError:
            trial.verdict = "not capturable" if trial.execution.compile == "none" else "not compilable"
        except torch.OutOfMemoryError:
            trial.verdict = "out of memory"
        if not trial.verdict and not math.isclose(trial.loss, trials[0].loss, rel_tol=TOLERANCE):
            trial.verdict = "another loss"
        if trial.verdict:
            steps.pop(number, None)
            if number == 0:  # even the usual is slow: what runs for hours may do without the choice
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
        if seconds > most and (trial.execution.compile == "none" or number == WARM_UP - 1):
            trial.times, trial.verdict = [seconds], "slow"
            return


def _seconds(step: TakeStep) -> tuple[float, float]:
    started = time.perf_counter()
    loss = step()
    return time.perf_counter() - started, loss


def table(trials: Sequence[Trial]) -> str:
    """A line for each that was tried; fits into 80 columns. Where a step is slow, that is the usual one alone."""
    shown = [trial for trial in trials if trial.times or trial.verdict]
    on_cuda = any(trial.execution.cuda_graph for trial in shown)
    lines = [f"  {'precision':<11}{'layout':<15}{'compile':<9}{'cuda_graph' * on_cuda}{'ms/step':>10}{'loss':>10}"]
    for trial in shown:
        precision, layout, compiled, captured, _ = astuple(trial.execution)
        graph = f"{str(captured).lower():<10}" * on_cuda
        ms = f"{1000 * trial.seconds:,.2f}" if trial.times else "–"
        loss = "–" if math.isnan(trial.loss) else f"{trial.loss:.4f}"
        lines.append(f"  {precision:<11}{layout:<15}{compiled:<9}{graph}{ms:>10}{loss:>10}  {trial.verdict}".rstrip())
    return "\n".join(["trainer.execution, timed on this machine:", *lines])
