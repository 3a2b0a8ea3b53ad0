"""The output of a run before its first step and after its last, and its `summary.json`."""

import io
import shlex
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from cnnlab.config.programs import command, given, program
from cnnlab.config.run_plan import RunPlan
from cnnlab.engine.trainer import Trainer
from cnnlab.network import render_table
from cnnlab.run.files import RunDirectory
from cnnlab.run.loaders import describe_splits
from cnnlab.runtime.terminal import WIDEST, print_command, print_table, print_wrapped, width


def print_plan(plan: RunPlan) -> None:
    """Prints the network and the data of a run."""
    print_table(render_table(plan.network.rows, plan.network.input_shape, width()))
    print_wrapped(describe_splits(plan))
    for note in [*plan.source.notes(), *plan.auto.lines]:
        print_wrapped(note)


def describe_restart(plan: RunPlan) -> str:
    """One line: the new cycle of the schedule, and what it leaves alone."""
    (start, _), end = plan.cycles[-1], plan.total_steps
    until = f" and ends at step {end}" if end is not None else ""
    return f"schedule: {plan.schedule.type} starts anew after step {start}{until}; momentum and best stay"


def table_text(plan: RunPlan) -> str:
    """The whole layer table, whatever the terminal's width."""
    text = io.StringIO()
    Console(file=text, width=WIDEST).print(render_table(plan.network.rows, plan.network.input_shape))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip("\n") + "\n"


def summarize(status: str, trainer: Trainer, plan: RunPlan) -> dict[str, Any]:
    """The content of `summary.json`, without the test split's."""
    progress, settings = trainer.progress, trainer.settings
    return {
        "status": status,
        "step": progress.step,
        "epoch": trainer.epoch,
        "best": {
            "monitor": settings.monitor,
            "lower_is_better": trainer.lower_is_better,
            "step": progress.best_step,
            "epoch": progress.best_epoch,
            **progress.best_values,
        },
        "last": progress.last_values,
        "monitor_test": settings.monitor_test,
        "tta": settings.tta,
        "skipped": progress.skipped,
        "train": {
            "seconds": progress.seconds,
            "images": progress.images,
            "images_per_second": progress.images / max(progress.seconds, 1e-9),
        },
        "parameters": sum(parameter.numel() for parameter in trainer.train_state.network.parameters()),
        "macs": sum(row.macs for row in plan.network.rows),
    }


def final_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """The best and the test metrics by tag, such as `accuracy/test`."""
    metrics = {tag: value for tag, value in summary["best"].items() if "/" in tag}
    return metrics | {f"{name}/test": value for name, value in summary.get("test", {}).items()}


def _best_and_last(summary: Mapping[str, Any]) -> str:
    """Two lines such as `best: step 546, accuracy/val 0.9874, loss/val 0.0411`; one where they are the same step."""
    best, last = summary["best"], summary["last"]
    shown = [tag for tag in last if tag.split("/")[0] in ("loss", "accuracy") or tag == best["monitor"]]
    figures = [", ".join(f"{tag} {values[tag]:.4f}" for tag in shown) for values in (best, last)]
    if best["step"] == summary["step"]:
        return f"best and last: step {best['step']}, {figures[0]}"
    return f"best: step {best['step']}, {figures[0]}\nlast: step {summary['step']}, {figures[1]}"


def print_summary(summary: Mapping[str, Any], directory: RunDirectory, plan: RunPlan) -> None:
    """Prints the outcome and the commands that may follow."""
    path, has_test = directory.path, "test" in plan.spec.counts
    best, test = summary["best"], summary.get("test")
    if test:
        figures = f"test accuracy {test['accuracy']:.4f}, loss {test['loss']:.4f}"
        views = "" if plan.settings.tta == "none" else f", test-time augmentation {plan.settings.tta}"
        chosen = f"(best checkpoint: step {best['step']}{views})"
        print_wrapped(f"\n{figures} {chosen}", chosen)
    elif not has_test:
        print_wrapped("\nthe data have no test split: no accuracy was measured on images that selection did not use")
    if summary["last"]:
        print_wrapped(_best_and_last(summary))
    compared = plan.published.compare(final_metrics(summary)) if plan.published else None
    if compared:
        print_wrapped(compared)
    print_wrapped(f"{summary['status']}: {path}", path)
    if summary["status"] == "interrupted":
        print_command("resume", command("train"), given("resume", path))
    print_command("curves", program("tensorboard"), f"--logdir {shlex.quote(str(path.parent))}")
    if best["step"] is not None and (has_test or plan.data.has_validation(plan.spec)):
        print_command("evaluate", command("evaluate"), given("run", path) + ("" if has_test else " split=val"))
