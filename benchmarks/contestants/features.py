"""The epochs of a new head for a frozen ResNet-18 on drawn shapes, from a file of weights that nobody trained."""

import json
import sys
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from setting import report
from torchvision.models import resnet18

import cnnlab

EPOCHS = 3
SETTINGS = (
    "data=shapes",
    "data.size=64",
    "data.train_count=2200",
    "data.test_count=200",
    "data.validation.count=200",
    "data.drop_last=false",
    "model=resnet18",
    "model.blocks.network.pretrained=resnet18.pth",
    "model.freeze=[backbone]",
    f"trainer.epochs={EPOCHS}",
    "trainer.log_every=32",  # the steps of an epoch
    "trainer.execution.layout=channels_last",
    "run_dir=trained",
    "observers=quiet",
)


def seconds_of_epochs(run: Path) -> list[float]:
    """Of training, validation and checkpoints aside; the first one has the pass that computes the features."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    ends = [0.0, *(record["seconds"] for record in records if record["split"] == "train")]
    return [end - start for start, end in pairwise(ends)]


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), "resnet18.pth")
    run = cnnlab.train(cnnlab.compose(*SETTINGS, *sys.argv[1:]))
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    first, *later = seconds_of_epochs(run)
    report(
        first_epoch_seconds=first,
        later_epoch_seconds=median(later),
        accuracy=summary["test"]["accuracy"],
        parameters=summary["parameters"],
        steps=summary["step"],
    )
