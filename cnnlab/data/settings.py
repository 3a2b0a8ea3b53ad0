"""The keys under `data` that are not the source's own."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import Tensor

from cnnlab.data.loader import SAMPLINGS
from cnnlab.data.normalization import check_method
from cnnlab.data.source import DataSpec, Labels
from cnnlab.data.splits import carve, carve_groups, check_validation, fold_size, folds_of, validation_count
from cnnlab.runtime.checks import integer, number, one_of
from cnnlab.runtime.device import cpu_count
from cnnlab.runtime.errors import ArgumentError, did_you_mean

AUTO = "auto"
PRETRAINED = "pretrained"
FORKS = hasattr(os, "fork") and sys.platform != "darwin"  # where Apple's libraries do not survive a fork
LARGEST_BATCH = 2**31 - 1  # images; torch splits by int64 and some of its kernels count in int32


@dataclass(frozen=True)
class DataSettings:
    """How a source's images become batches. Raises `ArgumentError`.

    `batch_size` is what one optimizer step consumes, over all ranks. `limit` keeps the first images of the training
    split, after validation was carved. `validation.count` is a number of training images or a fraction of them in
    (0, 1); of a source that has a validation split of its own none is carved. With `folds`, `fold` validates in its
    place: each training image is in one fold. `sampling` is `shuffle`, or `balanced` for every class as often as any
    other. `preprocess` is replaced by the values of other keys before a run starts. `augment` maps names to the specs
    of augmentations. The images are on the device where they need no more than `memory_fraction` of its free memory;
    else `workers` read them ahead; `auto` means as many as the run has threads, up to four.
    """

    batch_size: int
    eval_batch_size: int
    drop_last: bool
    limit: int | None
    split_seed: int
    validation: Mapping[str, Any]
    normalize: str | Mapping[str, Any]
    sampling: str = "shuffle"  # or balanced: each class as often as any other, however many images it has
    augment: Mapping[str, Any] = field(default_factory=dict)
    memory_fraction: float = 0.5  # of the device's free memory that the images may take; beyond it they are streamed
    preprocess: str | None = None  # pretrained: resized, cropped and normalised as the network's weights expect it
    workers: int | str = AUTO  # processes that stream images; auto: as many as threads, up to four
    folds: int | None = None  # cross-validation: so many parts of the training images, in place of `validation`
    inspect: str | None = None  # a folder to make: counts, damaged files, duplicates and images, before training starts
    fold: int | None = None  # the part that validates, from 0: an axis of a grid, such as data.fold=0,1,2,3,4

    def __post_init__(self) -> None:
        integer("batch_size", self.batch_size, 1, LARGEST_BATCH)
        integer("eval_batch_size", self.eval_batch_size, 1, LARGEST_BATCH)
        integer("split_seed", self.split_seed, 0)
        if self.limit is not None:
            integer("limit", self.limit, 1)
        check_method(self.normalize)
        if self.preprocess not in (None, PRETRAINED):
            raise ArgumentError("preprocess", f"expected {PRETRAINED} or null, received {self.preprocess!r}")
        one_of("sampling", self.sampling, SAMPLINGS)
        number("memory_fraction", self.memory_fraction, 0, 1, open_minimum=True)
        self._check_workers()
        self._check_folds()
        for name in self.validation:
            if name not in ("count", "from"):
                raise ArgumentError(
                    f"validation.{name}",
                    f"there is no such key;{did_you_mean(name, ('count', 'from'))} expected count and from",
                )
        try:
            check_validation(self.validation.get("count", 0), self.validation_from)
        except ArgumentError as error:
            raise ArgumentError(f"validation.{error.argument}", error.message) from error

    def _check_workers(self) -> None:
        cores = cpu_count()
        if self.workers == AUTO:
            return
        if self.workers and not FORKS:
            raise ArgumentError(
                "workers",
                f"on this system, processes cannot share the images' memory: expected {AUTO} or 0, received "
                f"{self.workers!r}",
            )
        if isinstance(self.workers, bool) or not isinstance(self.workers, int) or not 0 <= self.workers <= cores:
            raise ArgumentError(
                "workers",
                f"expected {AUTO} or a whole number from 0 to {cores}, the processor cores here, received "
                f"{self.workers!r}",
            )

    def _check_folds(self) -> None:
        if self.folds is None:
            if self.fold is not None:
                raise ArgumentError("folds", f"expected a number of folds beside data.fold={self.fold}, received none")
            return
        integer("folds", self.folds, 2)
        integer("fold", self.fold, 0, self.folds - 1)

    def has_validation(self, spec: DataSpec) -> bool:
        return "val" in spec.counts or self.folds is not None or bool(self.validation.get("count"))

    def carved_count(self, spec: DataSpec) -> int:
        """How many training images are held out for validation. Raises `ArgumentError` where none would be left."""
        return self._wanted_count(spec) if spec.held_out is None else spec.held_out

    def with_held_out(self, spec: DataSpec, labels: Labels) -> DataSpec:
        """The spec with the number of images that `carve` holds out, which groups decide. Raises `ArgumentError`."""
        return replace(spec, held_out=len(self.carve(spec, labels)[1]))

    def carve(self, spec: DataSpec, labels: Labels) -> tuple[Tensor, Tensor]:
        """(kept, carved) positions of the training images, each in ascending order. Raises `ArgumentError`."""
        count, y_N, group_N = self._wanted_count(spec), labels.y_N, labels.group_N
        if count and self.folds is not None and self.fold is not None:
            self._check_folds_against(spec, labels)
            fold_N = folds_of(y_N, self.folds, self.split_seed, group_N)
            return fold_N.ne(self.fold).nonzero().flatten(), fold_N.eq(self.fold).nonzero().flatten()
        if not count or group_N is None:
            return carve(y_N, count, self.validation_from, self.split_seed)
        self._check_carving_groups(group_N)
        return carve_groups(y_N, group_N, count, self.split_seed)

    def _check_folds_against(self, spec: DataSpec, labels: Labels) -> None:
        sizes = labels.y_N.bincount(minlength=spec.classes)
        rarest = int(sizes.where(sizes > 0, len(labels.y_N)).argmin())
        available, of = int(sizes[rarest]), f"images of class {spec.class_names[rarest]!r}"
        if labels.group_N is not None and len(labels.group_N.unique()) < available:
            available, of = len(labels.group_N.unique()), "groups of the training images"
        if self.folds is not None and self.folds > available:
            raise ArgumentError("folds", f"expected at most {available}, the {of}, received {self.folds}")

    def _check_carving_groups(self, group_N: Tensor) -> None:
        if self.validation_from == "end":
            raise ArgumentError("validation.from", "expected random, since the images are in groups, received end")
        if len(group_N.unique()) < 2:
            raise ArgumentError(
                "validation.count", "expected 0: the training images are all of one group, which stays together"
            )

    def _wanted_count(self, spec: DataSpec) -> int:
        """What the settings ask for; groups only come near it."""
        if "val" in spec.counts:
            if self.folds is not None:
                raise ArgumentError(
                    "folds", f"the data have a validation split of their own: expected none, received {self.folds}"
                )
            return 0
        if self.folds is not None and self.fold is not None:
            if self.folds > spec.counts["train"]:
                raise ArgumentError(
                    "folds", f"expected at most the {spec.counts['train']} training images, received {self.folds}"
                )
            return fold_size(spec.counts["train"], self.folds, self.fold)
        try:
            return validation_count(self.validation.get("count", 0), spec.counts["train"])
        except ArgumentError as error:
            raise ArgumentError(f"validation.{error.argument}", error.message) from error

    @property
    def validation_from(self) -> str:
        return str(self.validation.get("from", "random"))

    def train_count(self, spec: DataSpec) -> int:
        """How many images train. Raises `ArgumentError` where that leaves no whole batch."""
        carved = self.carved_count(spec)
        available = spec.counts["train"] - carved
        if self.limit is not None and self.limit > available:
            raise ArgumentError(
                "limit",
                f"expected at most {available} ({spec.counts['train']} training images − "
                f"{carved} for validation), received {self.limit}",
            )
        count = available if self.limit is None else self.limit
        if self.drop_last and self.batch_size > count:
            raise ArgumentError(
                "batch_size",
                f"expected at most the {count} training images, received {self.batch_size}; "
                f"with drop_last=true an epoch would have no step",
            )
        return count

    def steps_per_epoch(self, spec: DataSpec) -> int:
        """Raises `ArgumentError` where there is none, or there are more workers than steps."""
        whole, rest = divmod(self.train_count(spec), self.batch_size)
        steps = whole + (rest > 0 and not self.drop_last)
        if isinstance(self.workers, int) and self.workers > steps:
            raise ArgumentError("workers", f"expected at most the {steps} batches of an epoch, received {self.workers}")
        return steps


SETTINGS = tuple(setting.name for setting in fields(DataSettings))
