"""The same with `torchvision.datasets.ImageFolder`, transforms and a DataLoader, on $CNNLAB_JPEGS/train."""

import argparse
import os
import time

from setting import BATCH, DEVICE, report, wait
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

TRANSFORM = transforms.Compose(
    [
        transforms.RandomCrop(32, padding=4, padding_mode="reflect"),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ]
)


def main(workers: int) -> None:
    seconds, start = [], time.perf_counter()
    images = ImageFolder(os.path.join(os.environ["CNNLAB_JPEGS"], "train"), TRANSFORM)
    loader = DataLoader(
        images,
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=DEVICE.type == "cuda",
    )
    for _ in range(2):
        assert sum(len(x.to(DEVICE, non_blocking=True)) for x, _ in loader) == len(images) // BATCH * BATCH
        wait()
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
    first, later = seconds
    report(first_epoch_seconds=first, later_epoch_seconds=later, next_run_seconds=first)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=0)
    main(**vars(parser.parse_args()))
