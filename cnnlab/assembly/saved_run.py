"""A run that is there, opened for use: its config checked, its checkpoint verified, nothing written.

What it has to know of its data stands in the checkpoint: they need not be there.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from cnnlab.assembly.blueprint import Blueprint
from cnnlab.assembly.check import check_config
from cnnlab.assembly.material import fit_loss, load_network
from cnnlab.assembly.run_directory import RunDirectory
from cnnlab.assembly.saved import load_saved_config, resolved
from cnnlab.components import Trust
from cnnlab.data.normalization import Normalization
from cnnlab.data.source import DataSpec
from cnnlab.engine.checkpoint import Checkpoint, Checkpoints


@dataclass(frozen=True)
class SavedRun:
    """A run's config and one of its checkpoints."""

    directory: RunDirectory
    blueprint: Blueprint
    checkpoint: Checkpoint

    @classmethod
    def open(cls, path: Path, checkpoint: str, device: str, trust: Trust) -> "SavedRun":
        """`checkpoint` is `best`, `last` or a step. Raises `ConfigError`."""
        directory = RunDirectory.open(path, "run")
        saved = resolved(load_saved_config(path / "config.yaml"))
        found = Checkpoints(path / "checkpoints").resolve(checkpoint)
        meta = found.meta
        spec = DataSpec(tuple(meta["input_shape"]), meta["counts"], tuple(meta["class_names"]))
        blueprint = check_config({**saved, "device": device}, trust, spec)
        fit_loss(blueprint, meta["class_counts"])
        return cls(directory, blueprint, found)

    @property
    def normalization(self) -> Normalization:
        """What was measured of the run's training pictures."""
        measured = self.checkpoint.meta["normalization"]
        return Normalization(tuple(measured["mean_C"]), tuple(measured["sd_C"]))

    def network(self) -> nn.Module:
        """As validation saw it at the checkpoint, on the device."""
        return load_network(self.blueprint, self.checkpoint)
