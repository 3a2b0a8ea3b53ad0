import json
import re
from pathlib import Path

import torch

from cnnlab.engine.profiling import PROFILED, SKIPPED, TRACE, fraction_busy, make_profiler


def watch(folder: Path, steps: int) -> list[str]:
    """The reports of so many steps of two matrix products and a sine."""
    messages: list[str] = []
    x = torch.randn(64, 64)
    with make_profiler(folder, messages.append) as profiler:
        for _ in range(steps):
            (x @ x @ x).sin()
            profiler.step()
    return messages


def test_the_slowest_operations_are_reported_once(tmp_path: Path) -> None:
    (message,) = watch(tmp_path, SKIPPED + 3 * PROFILED)
    rows = re.findall(r"^  (aten::\w+) +([\d,]+) µs +([\d.]+) % +(\d+) calls$", message, re.MULTILINE)
    calls = {name: int(count) for name, _, _, count in rows}
    assert calls["aten::mm"] == 2
    assert calls["aten::sin"] == 1
    times = [int(time.replace(",", "")) for _, time, _, _ in rows]
    assert times == sorted(times, reverse=True)
    assert str(tmp_path / TRACE) in message


def test_the_trace_holds_the_profiled_steps_alone(tmp_path: Path) -> None:
    watch(tmp_path, SKIPPED + PROFILED + 4)
    events = json.loads((tmp_path / TRACE).read_text())["traceEvents"]
    assert len([event for event in events if event.get("name") == "aten::sin"]) == PROFILED


def test_a_run_that_is_too_short_is_not_reported(tmp_path: Path) -> None:
    assert watch(tmp_path, SKIPPED - 1) == []
    assert not list(tmp_path.iterdir())


def test_time_in_which_several_kernels_run_counts_once() -> None:
    # 0…2 and 4…9 of 0…10 are busy, the last from 9.5
    spans = [(4.0, 8.0), (0.0, 2.0), (5.0, 6.0), (7.0, 9.0), (9.5, 10.0)]
    assert fraction_busy(spans) == (2 + 5 + 0.5) / 10
