"""Augmentation: random changes to the images of a training batch, in the order of the config.

Every augmentation takes float images of 0…255, (N, C, H, W), and for each image `draws` uniform numbers that are a
pure function of (seed, index, turn), where `turn` counts how often the image came before: its epoch, unless classes
are balanced. So the result does not depend on the batch, the workers or the loader. Mixing blends images of a
batch, so it depends on the batch as well. Normalisation follows.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from cnnlab.data.auto_augment import RandAugment, TrivialAugmentWide
from cnnlab.data.color import Brightness, ColorJitter, Contrast, GaussianNoise, RandomGrayscale
from cnnlab.data.erasing import Cutout, RandomErasing
from cnnlab.data.geometry import (
    Affine,
    AlternatingFlip,
    HorizontalFlip,
    RandomAffine,
    RandomCrop,
    RandomResizedCrop,
    RandomRotation,
    Rotation,
    Shift,
    VerticalFlip,
)
from cnnlab.data.mixing import CutMix, Mixing, MixUp
from cnnlab.data.per_image import Augmentation
from cnnlab.runtime.randomness import derive, uniforms

TURN_BITS = 32  # of a counter of 64 bits, the upper ones count turns, the lower ones images


class Augment:
    """Applies named augmentations to each training batch, in their order.

    The numbers of an image depend on (seed, the augmentation's name, index, turn) alone; how a batch is mixed, on
    (seed, name, epoch, position in the epoch). So it has no state to save.
    """

    def __init__(self, steps: Mapping[str, Augmentation | Mixing], classes: int, seed: int) -> None:
        self.steps = steps
        self.classes = classes
        self.seed = seed

    @property
    def mixes(self) -> bool:
        """True if an image's result depends on its batch."""
        return any(isinstance(step, Mixing) for step in self.steps.values())

    def __call__(
        self, x_NCHW: Tensor, target_N: Tensor, index_N: Tensor, turn_N: Tensor, epoch: int, position: int
    ) -> tuple[Tensor, Tensor]:
        """The changed images, and targets (N,), or (N, K) where images were mixed; `x_NCHW` float of 0…255.

        `turn_N` counts how often each image came before, `position` is the batch's in the epoch.
        """
        target = target_N
        for name, step in self.steps.items():
            if isinstance(step, Mixing):
                generator = torch.Generator().manual_seed(derive(self.seed, "mix", name, epoch, position))
                target_NK = target if target.dim() == 2 else F.one_hot(target, self.classes).float()
                x_NCHW, target = step(x_NCHW, target_NK, generator)
            else:
                counter_N = index_N if step.same_each_turn else (turn_N << TURN_BITS) + index_N
                u_ND = uniforms(derive(self.seed, "augment", name), counter_N, step.draws)
                x_NCHW = step(x_NCHW, u_ND, turn_N)
        return x_NCHW, target


AUGMENTATIONS: dict[str, Callable[..., Augmentation | Mixing]] = {
    "random_horizontal_flip": HorizontalFlip,
    "horizontal_flip": HorizontalFlip,
    "random_vertical_flip": VerticalFlip,
    "alternating_flip": AlternatingFlip,
    "random_crop": RandomCrop,
    "shift": Shift,
    "random_affine": RandomAffine,
    "affine": Affine,
    "random_rotation": RandomRotation,
    "rotation": Rotation,
    "random_resized_crop": RandomResizedCrop,
    "random_erasing": RandomErasing,
    "cutout": Cutout,
    "color_jitter": ColorJitter,
    "brightness": Brightness,
    "contrast": Contrast,
    "random_grayscale": RandomGrayscale,
    "gaussian_noise": GaussianNoise,
    "rand_augment": RandAugment,
    "trivial_augment_wide": TrivialAugmentWide,
    "mixup": MixUp,
    "cutmix": CutMix,
}
