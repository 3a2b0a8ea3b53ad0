"""Hydra looks for plugins here: the sweeper and the launcher of `python train.py -m`."""

from hydra.core.config_store import ConfigStore

from cnnlab.sweep.grid import GridSweeper, ProcessLauncher

for plugin in (GridSweeper, ProcessLauncher):
    plugin.__module__ = __name__  # Hydra calls nothing that is from elsewhere

_store = ConfigStore.instance().store
_store(
    group="hydra/sweeper",
    name="cnnlab_grid",
    node={"_target_": f"{__name__}.{GridSweeper.__name__}"},
    provider="cnnlab",
)
_store(
    group="hydra/launcher",
    name="cnnlab_processes",
    node={"_target_": f"{__name__}.{ProcessLauncher.__name__}", "n_jobs": None},  # null: one, or one for each GPU
    provider="cnnlab",
)
