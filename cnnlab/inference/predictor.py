"""A trained network with everything that its images need before it: what `cnnlab.load` returns."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cnnlab.components import Trust
from cnnlab.config.saved_config import trusted_names
from cnnlab.data.image_files import ImageReader
from cnnlab.data.normalization import Normalization, normalized
from cnnlab.engine.execution import Execution
from cnnlab.inference.saved_run import SavedRun
from cnnlab.losses import probabilities

BATCH = 256  # images that `predict` shows the network at once


@dataclass(frozen=True)
class Prediction:
    """What a network says of one image: the most probable class, and `probabilities` of all by their names."""

    label: str
    probability: float
    probabilities: dict[str, float]


class Predictor(nn.Module):
    """A network in evaluation mode behind its own preprocessing.

    Called with images (N, C, H, W) of 0…255, uint8 or float, it normalises them as in training and returns the
    network's outputs (N, K); `predict` takes files, PIL images and tensors of any size. Moves with `.to(device)`.
    """

    shift_C11: Tensor
    scale_C11: Tensor

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        normalization: Normalization,
        reader: ImageReader,
        class_names: Sequence[str],
        execution: Execution,
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.loss = loss  # says how outputs become probabilities
        self.reader = reader
        self.class_names = tuple(class_names)
        self.execution = execution
        shift_C11, scale_C11 = normalization.tensors(torch.device("cpu"))
        self.register_buffer("shift_C11", shift_C11)
        self.register_buffer("scale_C11", scale_C11)
        self.eval()

    @classmethod
    def of(cls, run: SavedRun) -> "Predictor":
        """The network of a run that was opened, on the run's device."""
        plan = run.plan
        predictor = cls(
            run.network(),
            plan.loss,
            run.normalization,
            plan.source.reader(),
            plan.spec.class_names,
            plan.execution,
        )
        return predictor.to(plan.device)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        expected = (self.reader.channels, *self.reader.size)
        if x_NCHW.dim() != 4 or tuple(x_NCHW.shape[1:]) != expected:
            raise ValueError(
                f"expected images (N, {', '.join(map(str, expected))}) of 0…255, received {tuple(x_NCHW.shape)}; "
                f"predict() takes other sizes"
            )
        device = self.shift_C11.device
        x_NCHW = normalized(x_NCHW.to(device).float(), self.shift_C11, self.scale_C11)
        with self.execution.autocast(device):
            output_NK: Tensor = self.network(self.execution.arrange(x_NCHW))
        return output_NK.float()

    @torch.no_grad()
    def predict(self, images: Any) -> list[Prediction]:
        """One `Prediction` for each image, in their order.

        `images` is a path, a PIL image, a uint8 tensor (C, H, W) or a uint8 array (H, W, C), or several of them.
        What has another size is brought to the network's as files are. Raises `ConfigError` for a file that is no
        image, `ValueError` for one that is not uint8.
        """
        rows = list(_each(images))
        found = []
        for start in range(0, len(rows), BATCH):
            x_NCHW = torch.stack([self._read(image) for image in rows[start : start + BATCH]])
            found.extend(probabilities(self.loss, self(x_NCHW)).tolist())
        return [self._prediction(probability_K) for probability_K in found]

    def _read(self, image: Any) -> Tensor:
        if isinstance(image, str | Path):
            return self.reader.read(Path(image))
        if isinstance(image, Tensor):
            _check_uint8(image.dtype, torch.uint8)
            if tuple(image.shape) == (self.reader.channels, *self.reader.size):
                return image
            image = image.permute(1, 2, 0).squeeze(2).cpu().numpy()
        if isinstance(image, np.ndarray):
            _check_uint8(image.dtype, np.dtype(np.uint8))
            image = Image.fromarray(image)
        return self.reader.convert(image)

    def _prediction(self, probability_K: Sequence[float]) -> Prediction:
        named = dict(zip(self.class_names, probability_K, strict=True))
        label = max(named, key=named.__getitem__)
        return Prediction(label, named[label], named)


def _each(images: Any) -> Iterable[Any]:
    array = isinstance(images, Tensor | np.ndarray) and images.ndim < 4
    return [images] if array or isinstance(images, str | Path | Image.Image) else images


def _check_uint8(received: object, expected: object) -> None:
    if received != expected:
        raise ValueError(f"expected images of uint8, 0…255, received {received}")


def load(
    run: str | Path, *, checkpoint: str | int = "best", device: str = "cpu", trust: Sequence[str] = ()
) -> Predictor:
    """The network of a run at `checkpoint` (`best`, `last` or a step) as a module that is ready to use.

    `cnnlab.load("runs/digits/…").predict(["seven.png"])`. A class of your own that the run's config names is imported
    only if `trust` repeats it. Raises `ConfigError`.
    """
    trusted = Trust(False, trusted_names(trust), lambda names: f"cnnlab.load({str(run)!r}, trust={names})")
    return Predictor.of(SavedRun.open(Path(run), str(checkpoint), device, trusted, {}))
