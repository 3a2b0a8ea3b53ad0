"""A training epoch's images, augmented as batches: made and thrown away."""

import argparse
from collections.abc import Iterator

import torch
from augment_setting import ARGUMENTS, BATCH, COUNT, MEAN, SD, images, report_epochs
from setting import DEVICE
from torch import Tensor

from cnnlab.data.augmentation import AUGMENTATIONS, Augment
from cnnlab.data.normalization import Normalization
from cnnlab.data.resident import ResidentLoader
from cnnlab.data.source import Images


class Batches:
    """Another epoch whenever it is iterated over."""

    def __init__(self, name: str) -> None:
        augment = Augment({"augment": AUGMENTATIONS[name](**ARGUMENTS[name])}, 10, seed=0)
        rows = torch.arange(COUNT)
        stored, normalization = Images(images(), rows % 10, rows), Normalization(MEAN, SD)
        self.loader = ResidentLoader(stored, normalization, BATCH, device=DEVICE, shuffle=True, augment=augment)

    def __iter__(self) -> Iterator[Tensor]:
        self.loader.set_epoch(self.loader.epoch + 1)
        return (batch.x_NCHW for batch in self.loader)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=ARGUMENTS)
    report_epochs(Batches(parser.parse_args().name))
