"""The stage between reading the data and the first step: every `auto` becomes a value, and the values are recorded.

Weights that are computed from the training images become starting weights.
"""

from dataclasses import replace
from typing import Any

from cnnlab.config.run_plan import RunPlan
from cnnlab.engine.autotune import Trial
from cnnlab.engine.checkpoint import Checkpoint
from cnnlab.run.features import may_store_features
from cnnlab.run.loaders import TrainingData
from cnnlab.run.train_state import resolve_execution
from cnnlab.run.whitening import whiten
from cnnlab.runtime.device import describe_environment
from cnnlab.runtime.ranks import world_size
from cnnlab.version import __version__


def resolve(plan: RunPlan, data: TrainingData, checkpoint: Checkpoint | None) -> tuple[RunPlan, list[Trial]]:
    """The plan with nothing left `auto`, and what was timed for that.

    A resumed run keeps the values that its checkpoint recorded, and its weights. Raises `ConfigError` for what this
    machine cannot do, or cannot compute from these images.
    """
    if checkpoint is None:
        plan = whiten(plan, data)
    recorded = checkpoint.meta["environment"] if checkpoint else {}
    plan = replace(plan, features=recorded.get("features", False) if checkpoint else may_store_features(plan))
    return resolve_execution(plan, data.normalization, recorded)


def describe_run(plan: RunPlan, data: TrainingData) -> dict[str, Any]:
    """What `environment.json` and every checkpoint record: versions, machine, data, and each resolved value."""
    return {
        "cnnlab": __version__,
        **describe_environment(plan.device),
        "precision": plan.execution.precision,
        "layout": plan.execution.layout,
        "compile": plan.execution.compile,
        "cuda_graph": plan.execution.cuda_graph,
        "deterministic": plan.deterministic,
        "ranks": world_size(),
        "features": plan.features,
        "resident": plan.placement.resident,
        "workers": plan.placement.workers,
        "seed": plan.seed,
        "data_digest": data.digest,
    }
