"""The same with torchvision's transforms, image by image in the workers of a DataLoader."""

import argparse

import torch
from augment_setting import ARGUMENTS, BATCH, MEAN, SD, images, report_epochs
from setting import DEVICE
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

TRANSFORMS = {"rand_augment": v2.RandAugment, "color_jitter": v2.ColorJitter, "random_affine": v2.RandomAffine}


class Augmented(Dataset[Tensor]):
    """`form` is pil, as torchvision's data sets give images, or tensor (uint8)."""

    def __init__(self, name: str, form: str) -> None:
        x_NCHW = images()
        self.stored = [v2.functional.to_pil_image(x_CHW) for x_CHW in x_NCHW] if form == "pil" else x_NCHW
        self.transform = v2.Compose(
            [
                TRANSFORMS[name](**ARGUMENTS[name]),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([value / 255 for value in MEAN], [value / 255 for value in SD]),
            ]
        )

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.stored[index])


def main(name: str, form: str, workers: int) -> None:
    loader = DataLoader(
        Augmented(name, form),
        BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=DEVICE.type == "cuda",
    )
    report_epochs(loader)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=ARGUMENTS)
    parser.add_argument("form", choices=("pil", "tensor"))
    parser.add_argument("--workers", type=int, default=2)
    main(**vars(parser.parse_args()))
