"""An existing run, opened for use: its config checked, its checkpoint verified, nothing written.

The checkpoint records what the network needs to know of its data, which need not be present.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from cnnlab.components import Trust
from cnnlab.config.check import check_config
from cnnlab.config.run_plan import RunPlan
from cnnlab.config.saved_config import load_saved_config, resolved
from cnnlab.data.normalization import Normalization
from cnnlab.data.settings import AUTO
from cnnlab.data.source import DataSpec, Images
from cnnlab.engine.checkpoint import Checkpoint
from cnnlab.engine.execution import Execution
from cnnlab.engine.state_check import check_like, check_number
from cnnlab.run.files import ENVIRONMENT, RunDirectory
from cnnlab.run.loaders import fit_loss, load_loss, load_network, read_split, read_training_data
from cnnlab.run.resuming import check_classes, check_data
from cnnlab.runtime.errors import ArgumentError, ConfigError, first_line

SMALLEST_SD = 1e-6  # of values in 0…255


@dataclass(frozen=True)
class SavedRun:
    """A run's config and one of its checkpoints."""

    directory: RunDirectory
    plan: RunPlan
    checkpoint: Checkpoint

    @classmethod
    def open(cls, path: Path, checkpoint: str, device: str, trust: Trust, data: Mapping[str, Any]) -> "SavedRun":
        """`checkpoint` is `best`, `last` or a step; `data` replaces keys of the run's data. Raises `ConfigError`."""
        directory = RunDirectory.open(path, "run")
        saved = resolved(load_saved_config(path / "config.yaml"))
        if isinstance(saved.get("data"), Mapping):
            saved["data"] = {**saved["data"], "workers": AUTO, **data}  # theirs were for the machine that trained
        found = directory.checkpoints().resolve(checkpoint)
        spec, class_counts = _known_data(found)
        plan = check_config({**saved, "device": device}, trust, spec)
        fit_loss(plan, class_counts)
        load_loss(plan.loss, found)
        return cls(directory, replace(plan, execution=_execution(plan, found)), found)

    @property
    def normalization(self) -> Normalization:
        """What was measured of the run's training images."""
        place, channels = f"checkpoint: {self.checkpoint.folder}: normalization", self.plan.spec.input_shape[0]
        measured: Any = self.checkpoint.meta.get("normalization")
        check_like(place, {"mean_C": [0.0] * channels, "sd_C": [1.0] * channels}, measured)
        for sd in measured["sd_C"]:
            check_number(f"{place}.sd_C", sd, SMALLEST_SD)
        return Normalization(tuple(measured["mean_C"]), tuple(measured["sd_C"]))

    def network(self) -> nn.Module:
        """As validation saw it at the checkpoint, on the device."""
        return load_network(self.plan, self.checkpoint)

    def read(self, split: str) -> Images:
        """The split's images. Raises `ConfigError` where they are not those of the run."""
        plan = self.plan
        if split == "val" and not plan.data.has_validation(plan.spec):
            raise ConfigError("split: the run has no validation split: expected train or test, received 'val'")
        if split == "test" and "test" not in plan.spec.counts:
            raise ConfigError("split: the run's data have no test split: expected train or val, received 'test'")
        check_classes(self.checkpoint, plan.source.describe().class_names)
        plan.source.check()
        if split != "test":
            data = read_training_data(plan)
            check_data(self.checkpoint, data.digest)
            return data.train if split == "train" else data.val
        images = read_split(plan, "test")
        then = self.directory.read_json(ENVIRONMENT).get("test_digest")
        if then is not None and then != images.digest():
            raise ConfigError("data: the test images or labels are not those that the run measured: expected the same")
        return images


def _execution(plan: RunPlan, checkpoint: Checkpoint) -> Execution:
    """How the run's steps were computed. Raises `ConfigError` for a checkpoint with unknown values."""
    try:
        return plan.execution.resolve(checkpoint.meta["environment"])
    except (KeyError, TypeError, ArgumentError) as error:
        raise ConfigError(
            f"checkpoint: {checkpoint.folder} does not record how its steps were computed ({first_line(error)}): "
            f"expected one that this version of cnnlab wrote"
        ) from error


def _known_data(checkpoint: Checkpoint) -> tuple[DataSpec, list[int]]:
    """The run's data as its checkpoint records them. Raises `ConfigError` for a missing or impossible one."""
    meta = checkpoint.meta
    try:
        channels, height, width = map(int, meta["input_shape"])
        counts = {str(split): int(count) for split, count in meta["counts"].items()}
        class_names = tuple(map(str, meta["class_names"]))
        held_out = None if meta.get("held_out") is None else int(meta["held_out"])
        spec = DataSpec((channels, height, width), counts, class_names, held_out=held_out)
        return spec, list(map(int, meta["class_counts"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"checkpoint: {checkpoint.folder} does not record what its images and classes were ({first_line(error)}): "
            f"expected one that this version of cnnlab wrote"
        ) from error
