"""How much of the time the GPU computes while cnnlab trains `model=cnn`: `busy.py BATCH`."""

import argparse
import tempfile

import torch
from setting import report

import cnnlab
from cnnlab.engine.profiling import fraction_busy, kernels_of
from cnnlab.run import training

BEFORE, WATCHED = 60, 40  # steps; records are written among them as in any run
SETTINGS = (
    "data=mnist",
    "model=cnn",
    "schedule=constant",
    "trainer.epochs=null",
    f"trainer.max_steps={BEFORE + WATCHED + 5}",
    "trainer.validate_every_epochs=1000",
    "trainer.profile=true",
)


def watcher(*_: object) -> torch.profiler.profile:
    """Notes when kernels ran, and nothing of Python, which that would slow down."""
    return torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CUDA],
        schedule=torch.profiler.schedule(wait=BEFORE - 5, warmup=5, active=WATCHED, repeat=1),
        on_trace_ready=report_trace,
    )


def report_trace(profiler: torch.profiler.profile) -> None:
    spans = [span for _, span in kernels_of(profiler)]
    whole = max(end for _, end in spans) - min(start for start, _ in spans)
    figures.update(step_us=whole / WATCHED, busy=fraction_busy(spans))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("batch", type=int)
    batch = parser.parse_args().batch
    figures: dict[str, float] = {}
    training.make_profiler = watcher
    with tempfile.TemporaryDirectory() as folder:
        cnnlab.train(cnnlab.compose(*SETTINGS, f"data.batch_size={batch}", f"run_dir={folder}/run"))
    report(**figures)
