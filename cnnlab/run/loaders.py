"""A blueprint's splits, loaders and networks: what training and evaluation both need."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cnnlab.config.run_plan import Blueprint
from cnnlab.data.augmentation import Augment
from cnnlab.data.cache import cache_folder
from cnnlab.data.image_files import printable
from cnnlab.data.loader import PictureLoader
from cnnlab.data.normalization import Normalization
from cnnlab.data.resident import ResidentLoader
from cnnlab.data.source import Pictures
from cnnlab.data.splits import carve
from cnnlab.data.streaming import StreamingLoader
from cnnlab.engine.checkpoint import Checkpoint
from cnnlab.losses import ClassWeighted
from cnnlab.runtime.errors import ArgumentError, ConfigError


@dataclass(frozen=True)
class TrainingData:
    """The training pictures, those held out for validation, and what was measured of the former."""

    train: Pictures
    val: Pictures
    normalization: Normalization
    class_counts: list[int]  # of the training pictures
    digest: str  # of all pictures and labels that train or validate, before any split is carved


def read_training_data(blueprint: Blueprint) -> TrainingData:
    """Reads the training and validation pictures and measures the former. Raises `ConfigError`.

    Validation is the source's own split where it has one, and is carved out of the training pictures elsewhere.
    """
    everything = read_split(blueprint, "train")
    settings, spec = blueprint.data, blueprint.spec
    count = settings.carved_count(spec)
    kept, carved = carve(everything.y_N, count, settings.validation_from, settings.split_seed)
    digest = everything.digest()
    if "val" in spec.counts:
        val = read_split(blueprint, "val")
        digest = hashlib.sha256(f"{digest} {val.digest()}".encode()).hexdigest()
    else:
        val = everything.select(carved)
    train = everything.select(kept[: settings.limit])
    normalization = Normalization.fit(settings.normalize, train)
    class_counts = torch.bincount(train.y_N, minlength=blueprint.spec.classes).tolist()
    fit_loss(blueprint, class_counts)
    return TrainingData(train, val, normalization, class_counts, digest)


def fit_loss(blueprint: Blueprint, class_counts: Sequence[int]) -> None:
    """Gives a class-weighted loss the training pictures of each class. Raises `ConfigError` where one has none."""
    if isinstance(blueprint.loss, ClassWeighted):
        try:
            blueprint.loss.fit(class_counts)
        except ArgumentError as error:
            raise ConfigError(f"loss.{error}") from error


def describe_splits(blueprint: Blueprint) -> str:
    """One line: how many pictures each split has and where they come from."""
    data, spec = blueprint.data, blueprint.spec
    counts, origins = {"train": data.train_count(spec)}, dict(spec.origins)
    carved = data.carved_count(spec)
    if carved:
        counts["val"] = carved
        origins["val"] = f"carved out of train, {data.validation_from}"
    counts |= {split: count for split, count in spec.counts.items() if split != "train"}
    parts = [
        f"{split} {count:,}" + (f" ({origins[split]})" if split in origins else "") for split, count in counts.items()
    ]
    return f"pictures: {', '.join(parts)}" + ("" if "test" in counts else "; no test split")


def read_split(blueprint: Blueprint, split: str) -> Pictures:
    """All pictures of one of the source's own splits, checked against what it described. Raises `ConfigError`."""
    pictures = blueprint.source.read(split)
    spec = blueprint.spec
    if len(pictures) != spec.counts[split] or pictures.shape != spec.input_shape:
        raise ConfigError(
            f"data: expected {spec.counts[split]:,} pictures of {spec.input_shape} in the {split} split, found "
            f"{len(pictures):,} of {pictures.shape}"
        )
    largest, smallest = int(pictures.y_N.max()), int(pictures.y_N.min())
    if smallest < 0 or largest >= spec.classes:
        raise ConfigError(
            f"data: the {split} split has labels from {smallest} to {largest}: expected 0 to {spec.classes - 1} for "
            f"{spec.classes} classes"
        )
    return pictures


def describe_placement(blueprint: Blueprint) -> str:
    """One line: whether the pictures lie on the device, or where they are read from."""
    in_files = blueprint.source.paths("train") is not None
    return blueprint.placement.describe(printable(cache_folder()) if in_files else "memory")


def train_loader(blueprint: Blueprint, pictures: Pictures, normalization: Normalization) -> PictureLoader:
    augment = Augment(blueprint.augment, blueprint.spec.classes, blueprint.seed) if blueprint.augment else None
    return _loader(
        blueprint,
        pictures,
        normalization,
        blueprint.data.batch_size,
        shuffle=True,
        balanced=blueprint.data.sampling == "balanced",
        drop_last=blueprint.data.drop_last,
        augment=augment,
        seed=blueprint.seed,
    )


def held_out_loader(blueprint: Blueprint, pictures: Pictures, normalization: Normalization) -> PictureLoader:
    return _loader(blueprint, pictures, normalization, blueprint.data.eval_batch_size, shuffle=False)


def _loader(
    blueprint: Blueprint, pictures: Pictures, normalization: Normalization, batch_size: int, **options: Any
) -> PictureLoader:
    placement, device = blueprint.placement, blueprint.device
    if placement.resident:
        return ResidentLoader(pictures, normalization, batch_size, device=device, **options)
    return StreamingLoader(pictures, normalization, batch_size, device=device, workers=placement.workers, **options)


def load_network(blueprint: Blueprint, checkpoint: Checkpoint) -> nn.Module:
    """The network as validation saw it at the checkpoint. Raises `ConfigError` for another network's weights."""
    with torch.random.fork_rng():
        network = blueprint.network.build()
    load_weights(network, checkpoint)
    return blueprint.execution.place(network, blueprint.device)


def load_weights(network: nn.Module, checkpoint: Checkpoint, *, trained: bool = False) -> None:
    """Puts a checkpoint's weights (the averaged ones, unless `trained`) in. Raises `ConfigError`, at most 5 keys."""
    saved = checkpoint.weights if trained else checkpoint.inference_weights
    own = network.state_dict()
    differences = [f"{key} is not in the network" for key in saved if key not in own]
    differences += [f"{key} is not in the checkpoint" for key in own if key not in saved]
    differences += [
        f"{key} is {list(saved[key].shape)} in the checkpoint and {list(own[key].shape)} in the network"
        for key in own
        if key in saved and own[key].shape != saved[key].shape
    ]
    if differences:
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise ConfigError(f"checkpoint: {checkpoint.folder} holds another network: {'; '.join(differences[:5])}{more}")
    own.update(saved)  # with the versions of torchvision's modules, which some of them ask for
    network.load_state_dict(own)
