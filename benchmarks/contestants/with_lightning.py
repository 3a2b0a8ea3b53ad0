"""The same networks in Lightning, the usual way: torchvision's MNIST, transforms, a DataLoader, a Trainer."""

import argparse
import time
from collections.abc import Callable

import lightning
import torch
from setting import BATCH, DEVICE, MEAN, ROOT, SD, SGD, TRAIN_COUNT, build, tell, wait
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchmetrics.classification import MulticlassAccuracy
from torchvision import transforms
from torchvision.datasets import MNIST

Accuracy = Callable[[Tensor, Tensor], Tensor]


def share_right(logits: Tensor, y: Tensor) -> Tensor:
    return (logits.argmax(1) == y).float().mean()


class Classifier(lightning.LightningModule):
    def __init__(self, network: str, torchmetrics: bool) -> None:
        super().__init__()
        self.network = build(network)
        self.train_accuracy, self.test_accuracy = (
            MulticlassAccuracy(10, average="micro") if torchmetrics else share_right for _ in range(2)
        )

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        logits = self.network(x)
        loss = F.cross_entropy(logits, y)
        self.log("loss/train", loss, prog_bar=True)
        self.told("accuracy/train", self.train_accuracy, logits, y)
        return loss

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        x, y = batch
        self.told("accuracy/test", self.test_accuracy, self.network(x), y)

    def told(self, name: str, accuracy: Accuracy, logits: Tensor, y: Tensor) -> None:
        """A number of each batch, or as Lightning's pages have it: a metric that gathers over the epoch."""
        value = accuracy(logits, y)
        gathers = isinstance(accuracy, MulticlassAccuracy)
        self.log(name, accuracy if gathers else value, on_step=False, on_epoch=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), **SGD)


class Clock(lightning.Callback):
    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        wait()
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        wait()
        self.seconds = time.perf_counter() - self.start


def main(network: str, workers: int, torchmetrics: bool, seed: int) -> None:
    lightning.seed_everything(seed)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (SD,))])
    pictures = Subset(MNIST(ROOT, train=True, transform=transform), range(TRAIN_COUNT))
    test = MNIST(ROOT, train=False, transform=transform)
    clock, module = Clock(), Classifier(network, torchmetrics)
    trainer = lightning.Trainer(max_epochs=1, accelerator=DEVICE.type, devices=1, callbacks=[clock])
    reading = {"num_workers": workers, "pin_memory": DEVICE.type == "cuda"}
    trainer.fit(module, DataLoader(pictures, BATCH, shuffle=True, drop_last=True, **reading))
    [measured] = trainer.test(module, DataLoader(test, 512, **reading))
    tell(
        train_seconds=clock.seconds,
        steps=trainer.global_step,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        accuracy=measured["accuracy/test"],
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=("cnn", "normed_mlp"))
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--torchmetrics", action="store_true", help="for the accuracy; by hand otherwise")
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
