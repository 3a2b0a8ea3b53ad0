"""`python evaluate.py run=RUN images=FOLDER`: what a run's network says of pictures without labels."""

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from cnnlab.data.image_files import list_pictures
from cnnlab.data.resident import ResidentLoader
from cnnlab.data.source import Pictures
from cnnlab.engine.evaluation import VIEWS, collect
from cnnlab.inference.reporting import print_predictions, write_image_predictions
from cnnlab.inference.saved_run import SavedRun
from cnnlab.losses import probabilities
from cnnlab.runtime.errors import ConfigError

CHUNK = 2048  # pictures in memory at once


def predict_images(run: SavedRun, place: Path, tta: str) -> None:
    """Writes a line for each picture beside the run's config. Raises `ConfigError` before anything is written."""
    folder, names = _found(place)
    probability_NK = _probabilities(run, [folder / name for name in names], tta)
    class_names = run.blueprint.spec.class_names
    suffix = "" if tta == "none" else f"-{tta}"
    file = f"predictions-images-{place.resolve().name}-{run.checkpoint.folder.name}{suffix}.csv"
    written = write_image_predictions(run.directory, file, names, probability_NK, class_names)
    counts = Counter(class_names[prediction] for prediction in probability_NK.argmax(1).tolist())
    print(f"{len(names):,} {'picture' if len(names) == 1 else 'pictures'} of {place} (step {run.checkpoint.step})")
    print_predictions(counts, names, probability_NK, class_names)
    print(f"written to {written}")


def _found(place: Path) -> tuple[Path, list[str]]:
    """The folder, and the pictures in it by their paths within."""
    if place.is_file():
        return place.parent, [place.name]
    if not place.is_dir():
        raise ConfigError(f"images: expected a folder of pictures or a picture; {place.absolute()} does not exist")
    try:
        found = list_pictures(place, place)
    except ConfigError as error:
        raise ConfigError(f"images: {error}") from error
    if not found.pictures:
        others = f", but {_files(found.others)}" if found.others else ""
        raise ConfigError(f"images: expected pictures in {place.absolute()}; there is none{others}")
    if found.others:
        print(f"not read: {_files(found.others)} without an extension of a picture, such as {found.others[0]}")
    return place, found.pictures


def _files(names: list[str]) -> str:
    return "1 file" if len(names) == 1 else f"{len(names):,} files"


def _probabilities(run: SavedRun, paths: list[Path], tta: str) -> Tensor:
    """(N, K), from pictures that were read and normalised as the run's own."""
    blueprint = run.blueprint
    reader, network, loss = blueprint.source.reader(), run.network(), blueprint.loss.cpu()
    parts = []
    for start in range(0, len(paths), CHUNK):
        try:
            x_NCHW = reader.read_all(paths[start : start + CHUNK])
        except ConfigError as error:
            raise ConfigError(f"images: {error}") from error
        pictures = Pictures.of(x_NCHW, torch.zeros(len(x_NCHW), dtype=torch.int64))
        loader = ResidentLoader(
            pictures, run.normalization, blueprint.data.eval_batch_size, device=blueprint.device, shuffle=False
        )
        parts.append(probabilities(loss, collect(network, loader, blueprint.execution, VIEWS[tta]).output_NK))
    return torch.cat(parts)
