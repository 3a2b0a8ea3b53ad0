"""`python evaluate.py run=RUN`: measures a split with a run's checkpoint."""

from pathlib import Path

from omegaconf import DictConfig

from cnnlab.assembly.check import check_config
from cnnlab.assembly.material import held_out_loader, load_network, read_split, read_training_data
from cnnlab.assembly.resuming import check_classes, check_data
from cnnlab.assembly.run_directory import RunDirectory
from cnnlab.assembly.saved import load_saved_config, resolved, trusted_names
from cnnlab.components import Trust
from cnnlab.data.normalization import Normalization
from cnnlab.engine.checkpoint import Checkpoints
from cnnlab.engine.evaluation import evaluate
from cnnlab.engine.execution import make_deterministic
from cnnlab.runtime.checks import one_of
from cnnlab.runtime.errors import ConfigError, no_such_key

KEYS = ("run", "split", "checkpoint", "device", "trust")


def run_evaluation(config: DictConfig) -> None:
    """Prints loss and accuracy and writes them beside the run's config. Raises `ConfigError`."""
    if config._get_node("run")._is_missing():  # type: ignore[union-attr]
        raise ConfigError("run: expected a run's directory, as in run=runs/digits/…, received none")
    request = resolved(config)
    for key in request:
        if key not in KEYS:
            raise ConfigError(f"{key}: {no_such_key(key, KEYS)}")
    path, split = Path(str(request["run"])), one_of("split", request["split"], ("val", "test"))
    directory = RunDirectory.open(path, "run")
    saved = resolved(load_saved_config(path / "config.yaml"))
    trust = Trust(False, trusted_names(request["trust"]), f"python evaluate.py run={path}")
    blueprint = check_config({**saved, "device": request["device"]}, trust)
    checkpoint = Checkpoints(path / "checkpoints").resolve(str(request["checkpoint"]))
    check_classes(checkpoint, blueprint.spec.class_names)
    if split == "val" and not blueprint.data.has_validation(blueprint.spec):
        raise ConfigError("split: the run has no validation split: expected test, received 'val'")
    if split == "test" and "test" not in blueprint.spec.counts:
        raise ConfigError("split: the run's data have no test split: expected split=val, received 'test'")
    blueprint.source.check()
    make_deterministic(blueprint.deterministic)
    if split == "val":
        data = read_training_data(blueprint)
        check_data(checkpoint, data.digest)
        pictures = data.val
    else:
        pictures = read_split(blueprint, "test")
        then = directory.read_json("environment.json").get("test_digest")
        if then is not None and then != pictures.digest():
            raise ConfigError(
                "data: the test pictures or labels are not those that the run measured: expected the same"
            )
    measured = checkpoint.meta["normalization"]
    normalization = Normalization(tuple(measured["mean_C"]), tuple(measured["sd_C"]))
    values = evaluate(
        load_network(blueprint, checkpoint),
        blueprint.loss.to(blueprint.device),
        held_out_loader(blueprint, pictures, normalization),
        blueprint.execution,
    )
    name = f"evaluation-{split}-{checkpoint.folder.name}.json"
    result = {"split": split, "checkpoint": checkpoint.folder.name, "pictures": len(pictures), **values}
    directory.write_json(name, result)
    print(
        f"{split}: accuracy {values['accuracy']:.4f}, loss {values['loss']:.4f} on {len(pictures):,} pictures "
        f"(step {checkpoint.step})\nwritten to {path / name}"
    )
