"""What both ways of augmenting have in common: the images in memory, the settings, and how an epoch is timed."""

import time
from collections.abc import Iterable
from typing import Any

import torch
from setting import DEVICE, report, wait
from torch import Tensor

BATCH = 512
COUNT = 10 * BATCH
EPOCHS = 3
MEAN, SD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)  # of CIFAR-10's training images, of 0…255
ARGUMENTS: dict[str, dict[str, Any]] = {
    "rand_augment": {"num_ops": 2, "magnitude": 9},
    "color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "random_affine": {
        "degrees": 15.0,
        "translate": (0.1, 0.1),
        "scale": (0.9, 1.1),
        "shear": 10.0,
        "interpolation": "bilinear",
    },
}


def images() -> Tensor:
    """(COUNT, 3, 32, 32) uint8: smooth noise."""
    noise = torch.rand(COUNT, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
    return torch.nn.functional.interpolate(noise, size=(32, 32), mode="bilinear").round().to(torch.uint8)


def report_epochs(batches: Iterable[Tensor]) -> None:
    """Images per second of all epochs but the first, in which workers start."""
    for epoch in range(EPOCHS):
        if epoch == 1:
            start = time.perf_counter()
        assert sum(len(x_NCHW.to(DEVICE, non_blocking=True)) for x_NCHW in batches) == COUNT
        wait()
    report(images_per_second=(EPOCHS - 1) * COUNT / (time.perf_counter() - start))
