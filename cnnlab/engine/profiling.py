"""Where the time of a training step goes."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

SKIPPED = 15  # steps that still allocate, fill caches and find out whether they are faster traced
PROFILED = 5
MOST_OPERATIONS = 10
TRACE = "trace.json"
STEP = "ProfilerStep"  # begins the name of the mark around a step: its own time is that of no operation
LONGEST_NAME = 60  # kernels bear their C++ types in their names

Span = tuple[float, float]


def make_profiler(folder: Path, report: Callable[[str], None]) -> torch.profiler.profile:
    """Profiles a few steps, once; then writes `trace.json` and reports the ten operations that took most time.

    On CUDA these are kernels, and the fraction of the time that the GPU was busy is reported too. The trace opens at
    https://ui.perfetto.dev and at chrome://tracing. A step is marked by the profiler's `step()`.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it complains of GPUs where there are none
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)

    def ready(profiler: torch.profiler.profile) -> None:
        profiler.export_chrome_trace(str(folder / TRACE))
        kernels = kernels_of(profiler)
        slowest = _slowest_kernels(kernels) if kernels else _slowest_operations(profiler.key_averages())
        report(f"{slowest}\ntrace of {PROFILED} steps: {folder / TRACE}")

    return torch.profiler.profile(
        activities=activities,
        schedule=torch.profiler.schedule(wait=SKIPPED - 1, warmup=1, active=PROFILED, repeat=1),
        on_trace_ready=ready,
    )


def kernels_of(profiler: torch.profiler.profile) -> list[tuple[str, Span]]:
    """What ran on the GPU in the profiled steps: names, and from when to when in µs."""
    return [
        (event.name, (event.time_range.start, event.time_range.end))
        for event in profiler.events() or ()
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith(STEP)
    ]


def fraction_busy(spans: Iterable[Span]) -> float:
    """Of the time from the first start to the last end, the fraction in which at least one was running."""
    ordered = sorted(spans)
    busy, until = 0.0, ordered[0][0]
    for start, end in ordered:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy / (until - ordered[0][0])


def _slowest_kernels(kernels: Sequence[tuple[str, Span]]) -> str:
    spent: dict[str, float] = defaultdict(float)
    for name, (start, end) in kernels:
        spent[name] += end - start
    calls = Counter(name for name, _ in kernels)
    busy = fraction_busy(span for _, span in kernels)
    title = "the slowest kernels of a step:"
    return "\n".join([title, *_rows(spent, calls, sum(spent.values())), f"  GPU busy: {100 * busy:.1f} % of the time"])


def _slowest_operations(averages: Any) -> str:
    """Each with its own time, without what it calls."""
    spent = {event.key: event.self_cpu_time_total for event in averages}
    calls = {event.key: event.count for event in averages}
    total = sum(spent.values()) or 1.0
    between = sum(spent.pop(name) for name in list(spent) if name.startswith(STEP))
    title = "the slowest operations of a step, without what they call:"
    last = f"  Python between all operations: {100 * between / total:.1f} %"
    return "\n".join([title, *_rows(spent, calls, total), last])


def _rows(spent: Mapping[str, float], calls: Mapping[str, int], total: float) -> list[str]:
    """A line for each of the slowest: its time in one step, its fraction of `total`, and its calls."""
    names = sorted(spent, key=lambda name: -spent[name])[:MOST_OPERATIONS]
    most = [(_short(name), calls[name], spent[name]) for name in names]
    width = max((len(name) for name, _, _ in most), default=0)
    return [
        f"  {name:<{width}}  {microseconds / PROFILED:>10,.0f} µs  {100 * microseconds / total:>5.1f} %  "
        f"{count / PROFILED:>6,.0f} calls"
        for name, count, microseconds in most
    ]


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
