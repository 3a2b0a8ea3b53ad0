"""Where the time of a training step goes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SKIPPED = 5  # steps that still allocate, choose kernels and fill caches
PROFILED = 5
MOST_OPERATIONS = 10
TRACE = "trace.json"
STEP = "ProfilerStep*"  # the mark around a step: its own time is that of no operation


def make_profiler(folder: Path, tell: Callable[[str], None]) -> torch.profiler.profile:
    """Watches a few steps, once; then writes `trace.json` and tells the ten operations that took most time.

    The trace opens at https://ui.perfetto.dev and at chrome://tracing. A step is marked by the profiler's `step()`.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it complains of GPUs where there are none
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)

    def ready(profiler: torch.profiler.profile) -> None:
        profiler.export_chrome_trace(str(folder / TRACE))
        tell(f"{_costliest(profiler.key_averages())}\ntrace of {PROFILED} steps: {folder / TRACE}")

    return torch.profiler.profile(
        activities=activities,
        schedule=torch.profiler.schedule(wait=SKIPPED - 1, warmup=1, active=PROFILED, repeat=1),
        on_trace_ready=ready,
    )


def _costliest(averages: Any) -> str:
    """A line for each operation: its own time, without what it calls, for one step, and its share of all."""
    on_cuda = any(event.self_device_time_total > 0 for event in averages)
    own = {event.key: event.self_device_time_total if on_cuda else event.self_cpu_time_total for event in averages}
    calls = {event.key: event.count for event in averages}
    total = sum(own.values()) or 1.0
    between = own.pop(STEP, 0.0)
    names = sorted(own, key=lambda name: -own[name])[:MOST_OPERATIONS]
    width = max(map(len, names), default=0)
    lines = [
        f"  {name:<{width}}  {own[name] / PROFILED:>10,.0f} µs  {100 * own[name] / total:>5.1f} %  "
        f"{calls[name] / PROFILED:>6,.0f} calls"
        for name in names
    ]
    title = "the costliest operations of a step, without what they call:"
    return "\n".join([title, *lines, f"  Python between all operations: {100 * between / total:.1f} %"])
