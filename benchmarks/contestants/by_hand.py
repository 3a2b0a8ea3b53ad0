"""The loop that one writes by hand, over float images in memory; `by_hand.py cnn --layout channels_last`."""

import argparse
import time
from dataclasses import dataclass

import torch
from setting import BATCH, DEVICE, MEAN, SD, SGD, SGD_OF_A_FIRST_LESSON, TRAIN_COUNT, build, mnist, report, wait
from torch import Tensor, nn
from torch.nn import functional as F

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass
class Options:
    network: str
    layout: str
    batch: int
    width: int
    depth: int
    images: int
    epochs: int
    steps: int | None
    seed: int


def main(options: Options) -> None:
    torch.manual_seed(options.seed)
    quadratic = options.network == "sigmoid"
    layout = LAYOUTS[options.layout]
    x, y = tensors("train")
    network = build(options.network, options.width, options.depth).to(DEVICE, memory_format=layout)
    optimizer = torch.optim.SGD(network.parameters(), **(SGD_OF_A_FIRST_LESSON if quadratic else SGD))
    target = F.one_hot(y, 10).float() if quadratic else y
    loss = F.mse_loss if quadratic else F.cross_entropy
    steps = options.steps or options.images // options.batch

    wait()
    start = time.perf_counter()
    for _ in range(options.epochs):
        permutation = torch.randperm(options.images, device=DEVICE)
        for i in range(0, steps * options.batch, options.batch):
            rows = permutation[i : i + options.batch]
            optimizer.zero_grad()
            loss(network(x[rows].contiguous(memory_format=layout)), target[rows]).backward()
            optimizer.step()
    wait()
    seconds = time.perf_counter() - start
    steps *= options.epochs

    report(
        train_seconds=seconds,
        images_per_second=steps * options.batch / seconds,
        steps=steps,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        accuracy=accuracy(network, *tensors("t10k")),
    )


def tensors(split: str) -> tuple[Tensor, Tensor]:
    images, labels = mnist(split)
    x_NCHW = (torch.from_numpy(images).unsqueeze(1).float() / 255 - MEAN) / SD
    return x_NCHW.to(DEVICE), torch.from_numpy(labels).to(DEVICE)


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    network.eval()
    correct = [network(x_NCHW).argmax(1) == y_N for x_NCHW, y_N in zip(x.split(512), y.split(512), strict=True)]
    return torch.cat(correct).float().mean().item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=("cnn", "normed_mlp", "sigmoid"))
    parser.add_argument("--layout", choices=LAYOUTS, default="contiguous")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--images", type=int, default=TRAIN_COUNT, help="the first so many of the training images")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--steps", type=int, help="of each epoch")
    parser.add_argument("--seed", type=int, default=0)
    main(Options(**vars(parser.parse_args())))
