"""Features of frozen first layers, computed once: while those do not change, later layers train on what is stored."""

import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.config.run_plan import RunPlan
from cnnlab.data.cache_file import CacheFile, Keep, cache_folder
from cnnlab.data.loader import ImageLoader
from cnnlab.data.mixing import Mixing
from cnnlab.data.placement import Placement
from cnnlab.data.source import Images
from cnnlab.engine.execution import AUTO
from cnnlab.engine.trainer import Served, StoppedError
from cnnlab.network.trunk import Cut, find_cut
from cnnlab.run.loaders import TrainingData, held_out_loader, once_loader, train_loader
from cnnlab.runtime.device import describe_environment, free_memory, size_text
from cnnlab.runtime.errors import ArgumentError, ConfigError, TrainingError
from cnnlab.runtime.eval_mode import in_evaluation_mode
from cnnlab.runtime.ranks import world_size
from cnnlab.runtime.terminal import print_wrapped, printable, waiting
from cnnlab.version import __version__

FORMAT = "cnnlab features 1"
LIBRARIES = ("torchvision", "timm")  # whose modules may be in a trunk
MACHINE = ("torch", "platform", "device", "cuda", "threads")  # of the environment, what decides how a sum is rounded


def may_store_features(plan: RunPlan) -> bool:
    """False where the config says so, or where a trunk would give an image other features each time."""
    mixes = any(isinstance(step, Mixing) for step in plan.augment.values())
    wanted = plan.settings.features is not False and bool(plan.network.freeze)
    return wanted and world_size() == 1 and not mixes and (not plan.augment or plan.settings.views is not None)


@dataclass
class _Phase:
    """Epochs with the same frozen layers: the cut, and what of each split is stored."""

    frozen: tuple[str, ...]
    cut: Cut | None
    weights: str = ""  # digest of the trunk's
    placement: Placement | None = None
    view: int | None = None
    served: Served | None = None


class FeatureCache:
    """Serves stored features for the epochs in which the network begins with frozen layers; None for all others.

    `network` is the run's, `values` its config. `notify` gets one line for each group of epochs with the same frozen
    layers: what is stored, or why not. `stop` is asked between two batches of a pass.
    """

    def __init__(
        self,
        plan: RunPlan,
        values: Mapping[str, Any],
        data: TrainingData,
        held_out: Mapping[str, Images],
        network: nn.Module,
        notify: Callable[[str], None],
        stop: Callable[[], bool],
    ) -> None:
        self.plan = plan
        self.values = values
        self.data = data
        self.held_out = held_out
        self.network = network
        self.notify = notify
        self.stop = stop
        self.views = plan.settings.views if plan.augment else None
        self.phase = _Phase((), None)
        self.hinted = False

    def __call__(self, epoch: int) -> Served | None:
        """What serves that epoch, counted from 0. Raises `StoppedError`."""
        if not self.plan.features:
            self._hint()
            return None
        frozen = tuple(pattern for pattern, one in self.plan.network.freeze.items() if one.holds(epoch))
        if frozen != self.phase.frozen:
            self.phase = self._begin(frozen)
        phase = self.phase
        view = None if self.views is None else epoch % self.views
        if phase.cut and (phase.served is None or view != phase.view):
            phase.served, phase.view = self._serve(phase.cut, view), view
        return phase.served

    def test_loader(self, images: Images, network: nn.Module) -> tuple[ImageLoader, nn.Module] | None:
        """Features of further images, and what of the network runs on them, where it has the trunk that was served."""
        cut = self.phase.cut
        if cut is None or _digest_of_weights(network, cut) != self.phase.weights:
            return None
        stored = self._stored(images, cut)
        return None if stored is None else (self._loader(stored), cut.head(network))

    def _begin(self, frozen: tuple[str, ...]) -> _Phase:
        """Where the network is cut, and a line about it. No line where nothing is frozen."""
        if not frozen:
            return _Phase(frozen, None)
        try:
            cut = self._find_cut()
            placement = self._place(cut)
        except ArgumentError as error:
            self.notify(f"features: not stored, {error.message}")
            return _Phase(frozen, None)
        phase = _Phase(frozen, cut, _digest_of_weights(self.network, cut), placement)
        count = f"{len(self.data.train):,} training images"
        images = count if self.views is None else f"{self.views} views of {count}"
        more = "".join(f" and {len(one):,} of {split}" for split, one in self.held_out.items())
        self.notify(
            f"features: nothing changes before {cut.path}, so {images}{more} go there once "
            f"({prod(cut.shape):,} numbers each, {size_text(placement.needed)}), kept in {printable(cache_folder())}"
        )
        return phase

    def _hint(self) -> None:
        """Once, where most of the network is frozen, and nothing but augmentation or several ranks are in the way."""
        plan = self.plan
        parameters = [*self.network.parameters()]
        frozen = sum(one.numel() for one in parameters if not one.requires_grad)
        mostly = 2 * frozen > sum(one.numel() for one in parameters)
        if not mostly or plan.settings.features is False or self.hinted:
            return
        self.hinted = True
        mixing = any(isinstance(step, Mixing) for step in plan.augment.values())
        if world_size() > 1:
            self.notify("features: not stored, since several ranks train: each computes those of its images")
        elif plan.augment and plan.settings.features == AUTO:
            mend = "" if mixing else "; trainer.features=K stores those of K views of each image"
            self.notify(f"features: not stored, since images are augmented anew in each epoch{mend}")

    def _find_cut(self) -> Cut:
        """Raises `ArgumentError` with the reason where there is none."""
        plan = self.plan
        few = self.data.train.select(torch.arange(2) % len(self.data.train))
        loader = once_loader(plan, few, self.data.normalization, augmented=False)
        x_NCHW = torch.cat([batch.x_NCHW for batch in loader])
        loader.close()
        with plan.execution.autocast(plan.device):
            return find_cut(self.network, plan.execution.arrange(x_NCHW))

    def _place(self, cut: Cut) -> Placement:
        """In memory, or in the cache's files. Raises `ArgumentError` where images are smaller and they do not fit."""
        data = self.plan.data
        rows = len(self.data.train) + sum(map(len, self.held_out.values()))
        needed = rows * prod(cut.shape) * torch.float32.itemsize
        placement = replace(self.plan.placement, needed=needed, free=free_memory(self.plan.device))
        if not placement.resident and needed > self.plan.placement.needed:
            raise ArgumentError(
                "features",
                f"those before {cut.path} take {size_text(needed)}, more than the images and than data.memory_fraction="
                f"{data.memory_fraction:g} of the {size_text(placement.free)} free on {self.plan.device.type}",
            )
        return placement

    def _serve(self, cut: Cut, view: int | None) -> Served | None:
        train = self._stored(self.data.train, cut, view)
        held_out = {split: self._stored(images, cut) for split, images in self.held_out.items()}
        if train is None or None in held_out.values():
            self.phase.cut = None
            return None
        return Served(
            train_loader(self.plan, train, None, self.phase.placement),
            {split: self._loader(images) for split, images in held_out.items() if images is not None},
            cut.head,
        )

    def _loader(self, features: Images) -> ImageLoader:
        return held_out_loader(self.plan, features, None, self.phase.placement)

    def _stored(self, images: Images, cut: Cut, view: int | None = None) -> Images | None:
        """The features of a split, from the cache or computed into it; None, with a line, where it cannot be used.

        Those that are kept in memory are all compared with their digests here.
        """
        shape = (len(images), *cut.shape)
        key = self._key(images, cut, view)
        file = CacheFile(
            cache_folder() / f"{key}.features", shape, FORMAT, torch.float32, "features", "trainer.features=false"
        )

        def fill(missing: Sequence[int], keep: Keep) -> None:
            if missing:
                self._compute(images, cut, view, missing[0], keep)

        def read() -> Images:
            temporary = file.path.with_suffix(".features-part")
            return file.read_or_make(images.y_N, f".{key}.lock", lambda: file.make(images.y_N, temporary, fill))

        try:
            found = read()
            if not (self.phase.placement and self.phase.placement.resident):
                return replace(found, index_N=images.index_N)
            try:
                x = found.x_NCHW
            except TrainingError:  # which has removed the file
                print_wrapped(f"{printable(file.path)} is damaged: it is written again")
                x = read().x_NCHW
        except ConfigError as error:
            self.notify(f"features: not stored. {error}")
            return None
        return Images(x, images.y_N, images.index_N)

    def _compute(self, images: Images, cut: Cut, view: int | None, first: int, keep: Keep) -> None:
        """One pass from the batch on that holds the row `first`. Raises `StoppedError`."""
        plan = self.plan
        loader = once_loader(plan, images, self.data.normalization, augmented=view is not None)
        position = first // loader.batch_size
        loader.load_state_dict({"epoch": view or 0, "position": position})
        row = position * loader.batch_size
        with waiting("computing features"), torch.no_grad(), in_evaluation_mode(self.network):
            for batch in loader:
                if self.stop():
                    loader.close()
                    raise StoppedError
                with plan.execution.autocast(plan.device):
                    features = cut.features(self.network, plan.execution.arrange(batch.x_NCHW))
                for one in features.float().cpu():
                    keep(row, one)
                    row += 1
        loader.close()

    def _key(self, images: Images, cut: Cut, view: int | None) -> str:
        """32 hexadecimal digits for all that the bits of features depend on."""
        plan, data, model = self.plan, self.values["data"], self.values["model"]
        environment = describe_environment(plan.device)
        augmented = None
        if view is not None:
            index = hashlib.sha256(images.index_N.numpy().data).hexdigest()
            augmented = [view, plan.seed, data["augment"], index]
        parts = [
            [FORMAT, __version__, *(_version(name) for name in LIBRARIES if name in sys.modules)],
            [environment[name] for name in MACHINE],
            [plan.deterministic, plan.execution.precision, plan.execution.layout, plan.data.batch_size],
            [cut.path, cut.shape],
            {name: spec for name, spec in model["blocks"].items() if not cut.keeps(name)},
            self.phase.weights,
            images.digest(),
            [self.data.normalization.mean_C, self.data.normalization.sd_C],
            augmented,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _version(library: str) -> str:
    return importlib.metadata.version(library)


def _digest_of_weights(network: nn.Module, cut: Cut) -> str:
    """SHA-256 over the parameters and buffers of the trunk."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if not cut.keeps(name):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
            digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
