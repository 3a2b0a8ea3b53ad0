"""The data path of `data=image_folder` on $CNNLAB_JPEGS alone: every batch, made and thrown away."""

import argparse
import time

from setting import report, wait

import cnnlab
from cnnlab.components import Trust
from cnnlab.config.check import check_config
from cnnlab.config.saved_config import resolved
from cnnlab.run.loaders import read_training_data, train_loader

SETTINGS = (
    "data=image_folder",
    "data.root=${oc.env:CNNLAB_JPEGS}",
    "data.size=32",
    "data.augment={shift: {type: shift, pixels: 4}, flip: horizontal_flip}",
    "data.validation.count=0",
    "trainer.monitor=null",
)


def epochs(overrides: list[str], count: int) -> list[float]:
    """Seconds of each epoch of a run; the first begins with the reading."""
    config = cnnlab.compose(*SETTINGS, *overrides)
    plan = check_config(resolved(config), Trust())
    seconds, start = [], time.perf_counter()
    data = read_training_data(plan)
    loader = train_loader(plan, data.train, data.normalization)
    for epoch in range(count):
        loader.set_epoch(epoch)
        images = sum(len(batch) for batch in loader)
        wait()
        assert images == plan.steps_per_epoch * plan.data.batch_size
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
    return seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args().overrides
    first, later = epochs(given, 2)
    report(first_epoch_seconds=first, later_epoch_seconds=later, next_run_seconds=epochs(given, 1)[0])
