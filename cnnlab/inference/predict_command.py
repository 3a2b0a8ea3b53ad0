"""`python evaluate.py run=RUN images=FOLDER`: a run's predictions for images without labels."""

import os
from pathlib import Path

import torch
from torch import Tensor

from cnnlab.data.image_files import list_images
from cnnlab.data.resident import ResidentLoader
from cnnlab.data.source import Images
from cnnlab.engine.evaluation import VIEWS, collect
from cnnlab.inference.reporting import ImagePredictions, print_predictions, write_image_predictions
from cnnlab.inference.saved_run import SavedRun
from cnnlab.losses import probabilities
from cnnlab.runtime.errors import ConfigError
from cnnlab.runtime.terminal import print_wrapped, print_written, printable, waiting

CHUNK = 2048  # images in memory at once


def predict_images(run: SavedRun, place: Path, tta: str) -> None:
    """Writes a line for each image beside the run's config. Raises `ConfigError` before anything is written."""
    folder, names = _found(place)
    with waiting("predicting"):
        output_NK = _outputs(run, [folder / name for name in names], tta)
    class_names = run.plan.spec.class_names
    predictions = ImagePredictions(names, output_NK.argmax(1), probabilities(run.plan.loss.cpu(), output_NK))
    suffix = "" if tta == "none" else f"-{tta}"
    file = f"predictions-images-{place.resolve().name}-{run.checkpoint.folder.name}{suffix}.csv"
    written = write_image_predictions(run.directory, file, predictions, class_names)
    counted = f"{len(names):,} {'image' if len(names) == 1 else 'images'}"
    print_wrapped(f"{counted} of {printable(place)} (step {run.checkpoint.step})", printable(place))
    print_predictions(predictions, class_names)
    print_written(run.directory.path, [written])


def _found(place: Path) -> tuple[Path, list[str]]:
    """The folder, and the images in it by their paths within."""
    if os.path.isfile(place):  # False for a name that is too long, where Path.is_file raises
        return place.parent, [place.name]
    if not os.path.isdir(place):
        problem = "is neither" if os.path.exists(place) else "does not exist"
        raise ConfigError(f"images: expected a folder of images or an image; {printable(place.absolute())} {problem}")
    try:
        found = list_images(place, place)
    except ConfigError as error:
        raise ConfigError(f"images: {error}") from error
    if not found.images:
        others = f", but {_files(found.others)}" if found.others else ""
        raise ConfigError(f"images: expected images in {printable(place.absolute())}; there is none{others}")
    if found.others:
        first = printable(Path(found.others[0]))
        print_wrapped(f"not read: {_files(found.others)} without an extension of an image, such as {first}", first)
    return place, found.images


def _files(names: list[str]) -> str:
    return "1 file" if len(names) == 1 else f"{len(names):,} files"


def _outputs(run: SavedRun, paths: list[Path], tta: str) -> Tensor:
    """(N, K), from images that are read and normalised as the run's own."""
    plan = run.plan
    reader, network = plan.source.reader(plan.spec.input_shape), run.network()
    parts = []
    for start in range(0, len(paths), CHUNK):
        try:
            x_NCHW = reader.read_all(paths[start : start + CHUNK])
        except ConfigError as error:
            raise ConfigError(f"images: {error}") from error
        images = Images.of(x_NCHW, torch.zeros(len(x_NCHW), dtype=torch.int64))
        loader = ResidentLoader(images, run.normalization, plan.data.eval_batch_size, device=plan.device, shuffle=False)
        parts.append(collect(network, loader, plan.execution, VIEWS[tta]).output_NK)
    return torch.cat(parts)
