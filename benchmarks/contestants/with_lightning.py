"""The same networks in Lightning, the usual way: torchvision's MNIST, transforms, a DataLoader, a Trainer."""

import argparse
import time

import lightning
import torch
from setting import BATCH, DEVICE, MEAN, ROOT, SD, SGD, TRAIN_COUNT, build, report, wait
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import MNIST


class Classifier(lightning.LightningModule):
    def __init__(self, network: str) -> None:
        super().__init__()
        self.network = build(network)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        logits = self.network(x)
        loss = F.cross_entropy(logits, y)
        self.log("loss/train", loss, prog_bar=True)
        self.log("accuracy/train", (logits.argmax(1) == y).float().mean(), on_step=False, on_epoch=True)
        return loss

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        x, y = batch
        self.log("accuracy/test", (self.network(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), **SGD)


class Clock(lightning.Callback):
    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        wait()
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        wait()
        self.seconds = time.perf_counter() - self.start


def main(network: str, workers: int, seed: int) -> None:
    lightning.seed_everything(seed)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (SD,))])
    images = Subset(MNIST(ROOT, train=True, transform=transform), range(TRAIN_COUNT))
    test = MNIST(ROOT, train=False, transform=transform)
    clock, module = Clock(), Classifier(network)
    trainer = lightning.Trainer(max_epochs=1, accelerator=DEVICE.type, devices=1, callbacks=[clock])
    reading = {"num_workers": workers, "pin_memory": DEVICE.type == "cuda"}
    trainer.fit(module, DataLoader(images, BATCH, shuffle=True, drop_last=True, **reading))
    [measured] = trainer.test(module, DataLoader(test, 512, **reading))
    report(
        train_seconds=clock.seconds,
        steps=trainer.global_step,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        accuracy=measured["accuracy/test"],
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=("cnn", "normed_mlp"))
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
