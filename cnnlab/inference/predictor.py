"""A trained network together with its preprocessing: what `cnnlab.load` returns."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from cnnlab.components import Trust
from cnnlab.config.saved_config import trusted_names
from cnnlab.data.image_files import ImageReader
from cnnlab.data.normalization import Normalization, normalized
from cnnlab.engine.execution import Execution
from cnnlab.inference.image_arrays import images_of_array, images_of_tensor
from cnnlab.inference.saved_run import SavedRun
from cnnlab.losses import probabilities

BATCH = 256  # images of `predict` in one forward pass


@dataclass(frozen=True)
class Prediction:
    """The predicted class of one image, its probability, and the `probabilities` of all classes by their names."""

    label: str
    probability: float
    probabilities: dict[str, float]


class Predictor(nn.Module):
    """A network in evaluation mode that normalises its input as in training.

    Takes images (N, C, H, W) of 0…255, uint8 or float, and returns the network's outputs (N, K); `predict` takes files,
    PIL images, arrays and tensors of any size. Moves with `.to(device)`.
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
        self.loss = loss  # decides how outputs become probabilities
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
            plan.source.reader(plan.spec.input_shape),
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
        """One `Prediction` for each image, in their order: the class with the largest output.

        `images` is a path, a PIL image, a uint8 array or tensor (layouts: `cnnlab.inference.image_arrays`), or several
        of them. An image of another size is resized as files are. Raises `ConfigError` for a file that is no image,
        `ValueError` for another dtype or layout, `TypeError` for what is no image.
        """
        found: list[Prediction] = []
        each = _each(images)
        while chunk := list(islice(each, BATCH)):
            output_NK = self(torch.stack([self._read(image) for image in chunk]))
            rows = zip(output_NK.argmax(1).tolist(), probabilities(self.loss, output_NK).tolist(), strict=True)
            found.extend(self._prediction(*row) for row in rows)
        return found

    def _read(self, image: Path | Image.Image | Tensor) -> Tensor:
        if isinstance(image, Path):
            return self.reader.read(image)
        if isinstance(image, Image.Image):
            return self.reader.convert(ImageOps.exif_transpose(image))
        if tuple(image.shape) == (self.reader.channels, *self.reader.size) and self.reader.resize_size is None:
            return image
        return self.reader.convert(Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()))

    def _prediction(self, predicted: int, probability_K: Sequence[float]) -> Prediction:
        named = dict(zip(self.class_names, probability_K, strict=True))
        return Prediction(self.class_names[predicted], probability_K[predicted], named)


def _each(images: Any) -> Iterator[Path | Image.Image | Tensor]:
    """The images one by one, tensors as (C, H, W)."""
    if isinstance(images, str | Path):
        yield Path(images)
    elif isinstance(images, Image.Image):
        yield images
    elif isinstance(images, np.ndarray):
        yield from images_of_array(images)
    elif isinstance(images, Tensor):
        yield from images_of_tensor(images)
    elif isinstance(images, Iterable) and not isinstance(images, bytes):
        for image in images:
            yield from _each(image)
    else:
        raise TypeError(f"expected paths, PIL images, uint8 arrays or tensors, received {type(images).__name__}")


def load(
    run: str | Path, *, checkpoint: str | int = "best", device: str = "cpu", trust: Sequence[str] = ()
) -> Predictor:
    """The network of a run at `checkpoint` (`best`, `last` or a step) as a module that is ready to use.

    `cnnlab.load("runs/digits/…").predict(["seven.png"])`. A class of your own that the run's config names is imported
    only if `trust` repeats it. Raises `ConfigError`.
    """
    trusted = Trust(False, trusted_names(trust), lambda names: f"cnnlab.load({str(run)!r}, trust={names})")
    return Predictor.of(SavedRun.open(Path(run), str(checkpoint), device, trusted, {}))
