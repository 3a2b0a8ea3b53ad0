"""Hydra looks for plugins here: the sweeper and the launcher of `python train.py -m`."""

from hydra.core.config_store import ConfigStore

from cnnlab.sweep.launcher import ProcessLauncher
from cnnlab.sweep.sweeper import GridOrSearch

for plugin in (GridOrSearch, ProcessLauncher):
    plugin.__module__ = __name__  # Hydra calls nothing that is from elsewhere

_store = ConfigStore.instance().store
_store(
    group="hydra/sweeper",
    name="cnnlab_sweeper",
    node={"_target_": f"{__name__}.{GridOrSearch.__name__}", "resume": None},  # a sweep's directory
    provider="cnnlab",
)
_store(
    group="hydra/launcher",
    name="cnnlab_processes",
    node={"_target_": f"{__name__}.{ProcessLauncher.__name__}", "n_jobs": None},  # null: one, or one for each GPU
    provider="cnnlab",
)
