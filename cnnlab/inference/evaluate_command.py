"""`python evaluate.py run=RUN`: the full report of a checkpoint on a split, from one pass."""

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from cnnlab.components import Trust
from cnnlab.config.programs import command, given, trusting
from cnnlab.config.run_plan import RunPlan
from cnnlab.config.saved_config import trusted_names
from cnnlab.engine.evaluation import VIEWS, Collector, Outputs, evaluate
from cnnlab.engine.execution import allow_tf32, make_deterministic
from cnnlab.inference.compare_command import compare_runs
from cnnlab.inference.explain_command import Explanation, check_explain, explain
from cnnlab.inference.export_command import Export, export_run
from cnnlab.inference.layer_figures import Drawing, Study, Wanted, check_layers
from cnnlab.inference.predict_command import predict_images
from cnnlab.inference.predictor import Predictor
from cnnlab.inference.reporting import Predictions, print_report, write_confusion, write_predictions
from cnnlab.inference.saved_run import SavedRun
from cnnlab.losses import loss_of_each, probabilities
from cnnlab.metrics import confusion_matrix, report
from cnnlab.observers.tensorboard import write_images
from cnnlab.run.loaders import held_out_loader
from cnnlab.run.process_state import process_state_kept
from cnnlab.run.report import write_curves, write_report
from cnnlab.runtime.checks import integer, one_of
from cnnlab.runtime.distributed import PATIENCE, joined, start_training
from cnnlab.runtime.errors import ConfigError, listing, no_such_key
from cnnlab.runtime.ranks import is_first, world_size
from cnnlab.runtime.terminal import print_written, silenced, waiting
from cnnlab.visualization.confusion import confusion_figure, pixels

KEYS = (
    "run",
    "split",
    "layers",
    "index",
    "images",
    "export",
    "compare",
    "explain",
    "opset",
    "data",
    "checkpoint",
    "device",
    "tta",
    "top_k",
    "trust",
)
SPLITS = ("train", "val", "test")


def run_evaluation(request: Mapping[str, Any]) -> dict[str, Any]:
    """Measures, draws, predicts, exports or compares, as the request says. Raises `ConfigError`.

    Returns the report of a measured split, else an empty one.
    """
    with silenced(not is_first()), joined():
        return _run_evaluation(request)


def _run_evaluation(request: Mapping[str, Any]) -> dict[str, Any]:
    for key in request:
        if key not in KEYS:
            raise ConfigError(f"{key}: {no_such_key(key, KEYS)}")
    for key in KEYS:
        if key not in request:
            raise ConfigError(f"{key}: it is missing; expected all of {listing(KEYS)}")
    one_of("split", request["split"], SPLITS)
    one_of("tta", request["tta"], tuple(VIEWS))
    explained = check_explain(request)
    if request["compare"]:
        _check_one_process("compare")
        compare_runs(_alone(request))
        return {}
    return _evaluate_run(request, explained)


def _evaluate_run(request: Mapping[str, Any], explained: bool) -> dict[str, Any]:
    wanted = Wanted.of(request)
    export = Export.of(request)
    path = Path(str(request["run"]))
    trust = Trust(False, trusted_names(request["trust"]), trusting(f"{command('evaluate')} {given('run', path)}"))
    run = SavedRun.open(path, str(request["checkpoint"]), request["device"], trust, _moved(request["data"]))
    if not os.access(path, os.W_OK):
        raise ConfigError(f"run: expected a directory to write the evaluation to; {path.absolute()} is read-only")
    top_k = _top_k(request["top_k"], run.plan.spec.classes)
    if world_size() > 1:
        for key in ("export", "images", "layers", "explain"):
            if request[key]:
                _check_one_process(key)
        start_training(run.plan.device, PATIENCE.total_seconds())
    with process_state_kept():
        make_deterministic(run.plan.deterministic)
        allow_tf32(run.plan.execution.precision == "tf32")
        if export:
            export_run(run, export)
        elif request["images"] is not None:
            predict_images(run, Path(str(request["images"])), request["tta"])
        else:
            return _evaluate_split(run, request["split"], request["tta"], top_k, wanted, explained)
    return {}


def _check_one_process(key: str) -> None:
    if world_size() > 1:
        raise ConfigError(f"{key}: one process does that, and torchrun has started {world_size()}")


def _alone(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The request of a comparison. Raises `ConfigError` for a key that means something else."""
    for key in ("run", "layers", "images", "export"):
        if request[key]:
            raise ConfigError(f"compare: expected it without {key}, received {key}={request[key]} beside it")
    return {**request, "data": _moved(request["data"])}


def _moved(data: Any) -> dict[str, str]:
    """The new path of the run's images, if one was given. Raises `ConfigError` for any other key of the data."""
    others = [name for name in data if name != "root"] if isinstance(data, Mapping) else []
    if others or not isinstance(data, Mapping):
        key = f"data.{others[0]}" if others else "data"
        raise ConfigError(
            f"{key}: an evaluation keeps the data of the run: expected data.root alone, received {data!r}"
        )
    return {name: root for name, root in data.items() if root is not None}


def _top_k(given: Any, classes: int) -> int:
    """How many guesses count: 5 by default, 2 for 5 classes or fewer."""
    if given is None:
        return 5 if classes > 5 else min(2, classes)
    return integer("top_k", given, 1, classes)


def _evaluate_split(run: SavedRun, split: str, tta: str, top_k: int, wanted: Wanted, explained: bool) -> dict[str, Any]:
    plan = run.plan
    predictor = Predictor.of(run)
    check_layers(predictor.network, [row.path for row in plan.network.rows], wanted)
    try:
        with waiting("reading the data"):
            images = run.read(split)
    except ConfigError:  # such as data that are not here: what the run itself holds can be shown all the same
        print_written(run.directory.path, _report(run))
        raise
    study = Study.of(run, predictor, wanted, images, split)
    collector, loss = Collector(), plan.loss.to(plan.device)
    with closing(held_out_loader(plan, images, run.normalization)) as loader, waiting("evaluating"):
        measured = evaluate(
            predictor.network, loss, loader, plan.execution, plan.meter(), views=VIEWS[tta], collector=collector
        )
    outputs = collector.read().ordered(images.index_N)
    if not is_first():
        return {}
    predictions = _predictions(plan, outputs)
    class_names = plan.spec.class_names
    confusion_KK = confusion_matrix(predictions.predicted, predictions.target_N, len(class_names))
    result = {
        "split": split,
        "checkpoint": run.checkpoint.folder.name,
        "images": len(images),
        "tta": tta,
        "loss": measured["loss"],
        "accuracy": measured["accuracy"],
        "metrics": {name: value for name, value in measured.items() if name not in ("loss", "accuracy")},
        **report(predictions.output_NK, predictions.probability_NK, predictions.target_N, class_names, top_k),
    }
    suffix = "" if tta == "none" else f"-{tta}"
    name = f"{split}-{run.checkpoint.folder.name}{suffix}"
    title = f"{split} split, accuracy {100 * measured['accuracy']:.2f} %"
    figure = confusion_figure(confusion_KK, class_names, title)
    with waiting("drawing"):
        drawings = [Drawing(f"confusion-{name}.png", f"confusion/{split}{suffix}", figure), *study.draw()]
    paths = _paths(run, split)
    written = [
        run.directory.write_json(f"evaluation-{name}.json", result),
        write_predictions(run.directory, f"predictions-{name}.csv", predictions, class_names, paths),
        write_confusion(run.directory, f"confusion-{name}.csv", confusion_KK, class_names),
        *_save(run, drawings),
    ]
    print_report(result, run.checkpoint.step)
    if explained:
        explanation = Explanation(run, predictor, images, split, predictions, paths, wanted.layers)
        written += _save(run, list(explain(explanation)))
    written += _report(run)
    print_written(run.directory.path, written)
    return result


def _report(run: SavedRun) -> list[Path]:
    """The curves and the page of the run, of what lies in its directory by now."""
    with waiting("writing the report"):
        drawn = write_curves(run.directory, run.plan)
        counts = run.checkpoint.meta["class_counts"]
        return [*([drawn] if drawn else []), write_report(run.directory, run.plan, counts)]


def _paths(run: SavedRun, split: str) -> list[str] | None:
    """The split's files, where its images are files; carved validation images count among those that train."""
    carved = split == "val" and "val" not in run.plan.spec.counts
    return run.plan.source.paths("train" if carved else split)


def _predictions(plan: RunPlan, outputs: Outputs) -> Predictions:
    loss = plan.loss.cpu()
    return Predictions(
        outputs.index_N,
        outputs.target_N,
        outputs.output_NK,
        probabilities(loss, outputs.output_NK),
        loss_of_each(loss, outputs.output_NK, outputs.target_N),
    )


def _save(run: SavedRun, drawings: Sequence[Drawing]) -> list[Path]:
    """Into the run's figures and its TensorBoard."""
    images = {drawing.tag: pixels(drawing.figure) for drawing in drawings}
    paths = [
        run.directory.write_figure(drawing.file, image_HWC)
        for drawing, image_HWC in zip(drawings, images.values(), strict=True)
    ]
    write_images(run.directory.path, images, run.checkpoint.step)
    return paths
