"""A plan's splits, loaders and networks: what training and evaluation both need."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.config.run_plan import RunPlan
from cnnlab.data.augmentation import Augment
from cnnlab.data.cache_file import cache_folder
from cnnlab.data.file_source import FileSource
from cnnlab.data.loader import ImageLoader
from cnnlab.data.normalization import Normalization
from cnnlab.data.placement import Placement
from cnnlab.data.resident import ResidentLoader
from cnnlab.data.source import Images, Labels
from cnnlab.data.streaming import StreamingLoader
from cnnlab.engine.checkpoint import Checkpoint
from cnnlab.losses import ClassWeighted
from cnnlab.runtime.errors import ArgumentError, ConfigError
from cnnlab.runtime.ranks import rank, world_size
from cnnlab.runtime.terminal import printable

IMBALANCED = 5  # times as many images in the largest class as in the smallest


@dataclass(frozen=True)
class TrainingData:
    """The training images, those held out for validation, and what was measured of the former."""

    train: Images
    val: Images
    normalization: Normalization
    class_counts: list[int]  # of the training images
    digest: str  # of all images, labels and groups that train or validate, before any split is carved


def read_training_data(plan: RunPlan) -> TrainingData:
    """Reads the training and validation images and measures the former. Raises `ConfigError`.

    Validation is the source's own split where it has one, and is carved out of the training images elsewhere.
    """
    everything = read_split(plan, "train")
    settings, spec = plan.data, plan.spec
    known = plan.source.labels()
    group_N = known.group_N if known else None
    try:
        kept, carved = settings.carve(spec, Labels(everything.y_N, group_N))
    except ArgumentError as error:
        raise ConfigError(f"data.{error}") from error
    val = read_split(plan, "val") if "val" in spec.counts else everything.select(carved)
    digest = _digest(everything, val if "val" in spec.counts else None, group_N)
    train = everything.select(kept[: settings.limit])
    normalization = Normalization.fit(settings.normalize, train)
    class_counts = torch.bincount(train.y_N, minlength=plan.spec.classes).tolist()
    fit_loss(plan, class_counts)
    return TrainingData(train, val, normalization, class_counts, digest)


def _digest(train: Images, val: Images | None, group_N: Tensor | None) -> str:
    digest = train.digest()
    further = [val.digest()] if val else []
    if group_N is not None:
        further.append(hashlib.sha256(group_N.numpy().data).hexdigest())
    for other in further:
        digest = hashlib.sha256(f"{digest} {other}".encode()).hexdigest()
    return digest


def fit_loss(plan: RunPlan, class_counts: Sequence[int]) -> None:
    """Gives a class-weighted loss the training images of each class. Raises `ConfigError` where one has none."""
    if isinstance(plan.loss, ClassWeighted):
        try:
            plan.loss.fit(class_counts)
        except ArgumentError as error:
            raise ConfigError(f"loss.{error}") from error


def describe_balance(plan: RunPlan, counts_K: Sequence[int]) -> str | None:
    """One line where the largest class has many times the training images of the smallest, and nothing weighs them."""
    largest, smallest = max(counts_K), min(counts_K)
    weighted = isinstance(plan.loss, ClassWeighted) and plan.loss.weight is not None
    if largest < IMBALANCED * max(smallest, 1) or plan.data.sampling == "balanced" or weighted:
        return None
    most, least = (printable(plan.spec.class_names[counts_K.index(count)]) for count in (largest, smallest))
    weigh = (
        ", and loss.weight=balanced weighs their losses" if isinstance(plan.loss, ClassWeighted) and smallest else ""
    )
    return (
        f"classes: {largest:,} training images of {most} and {smallest:,} of {least}: data.sampling=balanced shows "
        f"all classes equally often{weigh}"
    )


def describe_splits(plan: RunPlan) -> str:
    """One line: how many images each split has and where they come from."""
    data, spec = plan.data, plan.spec
    counts, origins = {"train": data.train_count(spec)}, dict(spec.origins)
    carved = data.carved_count(spec)
    if carved:
        counts["val"] = carved
        origins["val"] = f"carved out of train, {data.validation_from}"
        if data.folds is not None:
            origins["val"] = f"fold {data.fold} of 0 to {data.folds - 1}, in place of data.validation"
    counts |= {split: count for split, count in spec.counts.items() if split != "train"}
    parts = [
        f"{split} {count:,}" + (f" ({origins[split]})" if split in origins else "") for split, count in counts.items()
    ]
    return f"images: {', '.join(parts)}" + ("" if "test" in counts else "; no test split")


def read_split(plan: RunPlan, split: str) -> Images:
    """All images of one of the source's own splits, checked against what it described. Raises `ConfigError`."""
    images = plan.source.read(split)
    spec = plan.spec
    if len(images) != spec.counts[split] or images.shape != spec.input_shape:
        raise ConfigError(
            f"data: expected {spec.counts[split]:,} images of {spec.input_shape} in the {split} split, found "
            f"{len(images):,} of {images.shape}"
        )
    largest, smallest = int(images.y_N.max()), int(images.y_N.min())
    if smallest < 0 or largest >= spec.classes:
        raise ConfigError(
            f"data: the {split} split has labels from {smallest} to {largest}: expected 0 to {spec.classes - 1} for "
            f"{spec.classes} classes"
        )
    return images


def describe_placement(plan: RunPlan) -> str:
    """One line: whether the images are on the device, or where they are read from."""
    in_files = isinstance(plan.source, FileSource)
    return plan.placement.describe(printable(cache_folder()) if in_files else "memory")


def train_loader(
    plan: RunPlan, images: Images, normalization: Normalization | None, placement: Placement | None = None
) -> ImageLoader:
    """In a new order every epoch, augmented; without a normalization, `images` are features that come as they are."""
    return _loader(
        plan,
        images,
        normalization,
        plan.data.batch_size,
        placement,
        shuffle=True,
        balanced=plan.data.sampling == "balanced",
        drop_last=plan.data.drop_last,
        augment=_augment(plan) if normalization else None,
        seed=plan.seed,
    )


def held_out_loader(
    plan: RunPlan, images: Images, normalization: Normalization | None, placement: Placement | None = None
) -> ImageLoader:
    return _loader(plan, images, normalization, plan.data.eval_batch_size, placement, shuffle=False)


def once_loader(plan: RunPlan, images: Images, normalization: Normalization, *, augmented: bool) -> ImageLoader:
    """In their own order, as they are or as training augments them in the loader's epoch; all of them in each."""
    augment = _augment(plan) if augmented else None
    return _loader(plan, images, normalization, plan.data.batch_size, None, shuffle=False, augment=augment)


def _augment(plan: RunPlan) -> Augment | None:
    return Augment(plan.augment, plan.spec.classes, plan.seed) if plan.augment else None


def _loader(
    plan: RunPlan,
    images: Images,
    normalization: Normalization | None,
    batch_size: int,
    placement: Placement | None,
    **options: Any,
) -> ImageLoader:
    placement, device = placement or plan.placement, plan.device
    options |= {"rank": rank(), "world_size": world_size()}
    if placement.resident:
        return ResidentLoader(images, normalization, batch_size, device=device, **options)
    options |= {"workers": placement.workers, "fits": placement.fits}
    return StreamingLoader(images, normalization, batch_size, device=device, **options)


def load_network(plan: RunPlan, checkpoint: Checkpoint) -> nn.Module:
    """The network as validation saw it at the checkpoint. Raises `ConfigError` for another network's weights."""
    with torch.random.fork_rng():
        network = plan.network.build()
    load_weights(network, checkpoint.inference_weights, checkpoint.folder)
    return plan.execution.place(network, plan.device)


def load_loss(loss: nn.Module, checkpoint: Checkpoint) -> None:
    """Gives a loss with state, such as running means in buffers, that of the checkpoint. Raises `ConfigError`."""
    if not loss.state_dict():
        return
    try:
        loss.load_state_dict(checkpoint.state()["train_state"]["loss"])
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ConfigError(f"checkpoint: {checkpoint.folder} holds the state of another loss") from error


def load_weights(network: nn.Module, saved: Mapping[str, Tensor], origin: Path) -> None:
    """Loads saved weights into the network. Raises `ConfigError` that names at most 5 keys which differ."""
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
        raise ConfigError(f"checkpoint: {origin} holds another network: {'; '.join(differences[:5])}{more}")
    own.update(saved)  # with the versions of torchvision's modules, which some of them require
    network.load_state_dict(own)
