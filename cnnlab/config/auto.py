"""`auto` in `data` and `trainer`: numbers for these images, found before the network is checked and kept in the config.

A learning rate of auto is another matter: it takes steps, and is found when the run starts (`run/lr_finding.py`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cnnlab.config.sections import as_mapping
from cnnlab.data.file_source import FileSource
from cnnlab.data.settings import AUTO, DataSettings
from cnnlab.data.source import DataSpec, Source
from cnnlab.engine.settings import whole_steps
from cnnlab.runtime.errors import ArgumentError, Complaints

KEYS = ("data.size", "data.batch_size", "trainer.epochs", "trainer.ema", "trainer.monitor")
UNKNOWN = {"epochs": 1, "ema": None, "monitor": "accuracy/val"}  # while the data are not known: nothing is trained

STEPS_PER_EPOCH = 128  # that a batch aims at
SMALLEST_BATCH, LARGEST_BATCH = 16, 128
EPOCHS_OF_ONE, POWER = 300, -0.25  # epochs by images: 72 for 300, 46 for 1,800, 36 for 5,000, 20 for 50,000
FEWEST_EPOCHS, MOST_EPOCHS = 3, 100
AVERAGED = 0.05  # fraction of the steps that an average of the weights spans
LARGEST_DECAY = 0.999
MANY = 2000  # validation images from which their accuracy tells two checkpoints apart: its sd is about 1 %


@dataclass(frozen=True)
class Resolved:
    """What `auto` became: dotted key → value, and at most three lines that say why."""

    values: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def __or__(self, other: "Resolved") -> "Resolved":
        return Resolved(self.values | other.values, self.lines + other.lines)


def auto_keys(config: Mapping[str, Any]) -> list[str]:
    """The keys of the config that are auto and are resolved here."""
    found = []
    for key in KEYS:
        section, _, name = key.partition(".")
        values = config.get(section)
        if isinstance(values, Mapping) and values.get(name) == AUTO:
            found.append(key)
    return found


def resolve_data(
    section: Mapping[str, Any], source: Source | None, data: DataSettings | None, spec: DataSpec | None
) -> tuple[DataSettings | None, Resolved]:
    """The settings with a number in place of auto, and the size that the source found when it was described."""
    if source is None or data is None or spec is None:
        return data, Resolved()
    found = _size(source, spec)
    if section.get("batch_size") == AUTO:
        try:
            size = min(auto_batch_size(_images(data, spec)), data.train_count(spec))
        except ArgumentError:  # the splits are impossible, which is reported by the check of an epoch's steps
            return data, found
        data, found = replace(data, batch_size=size), found | Resolved({"data.batch_size": size})
    return data, found


def _size(source: Source, spec: DataSpec) -> Resolved:
    if not isinstance(source, FileSource) or not source.size_is_auto:
        return Resolved()
    height, width = spec.input_shape[1:]
    size = height if height == width else [height, width]
    shorter = sorted(min(sides) for sides in source.sizes_looked_at)
    between = f"from {shorter[0]} to {shorter[-1]}" if shorter[0] < shorter[-1] else f"{shorter[0]}"
    why = f"the shorter side of {len(shorter):,} images looked at has {between} pixels"
    return Resolved({"data.size": size}, [f"auto: data.size={size}; {why}"])


def resolve_trainer(
    given: Any, data: DataSettings | None, spec: DataSpec | None, complaints: Complaints
) -> tuple[Any, Resolved]:
    """The section `trainer` with values in place of each auto."""
    section = as_mapping(given, "trainer", complaints)
    wanted = [name for name in UNKNOWN if section.get(name) == AUTO]
    if not wanted:
        return given, Resolved()
    values = {**UNKNOWN} if data is None or spec is None else _for_images(section, data, spec)
    chosen = {name: values[name] for name in wanted}
    return {**section, **chosen}, Resolved({f"trainer.{name}": value for name, value in chosen.items()})


def _for_images(section: Mapping[str, Any], data: DataSettings, spec: DataSpec) -> dict[str, Any]:
    epochs = auto_epochs(_images(data, spec)) if section.get("epochs") == AUTO else section.get("epochs")
    limits = [section.get("max_steps")]
    if isinstance(epochs, int | float) and epochs > 0:
        limits.append(whole_steps(epochs, data.steps_per_epoch(spec)))
    steps = [limit for limit in limits if isinstance(limit, int) and limit > 0]
    averages = section.get("lookahead") is None
    return {
        "epochs": epochs,
        "ema": auto_decay(min(steps) if steps else None) if averages else None,
        "monitor": auto_monitor(_validation_images(data, spec), is_needed=_needs_monitor(section)),
    }


def _needs_monitor(section: Mapping[str, Any]) -> bool:
    return section.get("patience") is not None or section.get("keep_best") not in (None, 1)


def explained(resolved: Resolved, data: DataSettings, spec: DataSpec) -> Resolved:
    """With a line for what follows the training images, and one for what follows the validation images."""
    lines = [*resolved.lines]
    shown = [f"{key}={resolved.values[key]}" for key in KEYS[1:4] if key in resolved.values]
    if shown:
        lines.append(f"auto: {', '.join(shown)}; for {data.train_count(spec):,} training images")
    monitor = resolved.values.get("trainer.monitor", AUTO)
    if monitor != AUTO:
        count = _validation_images(data, spec)
        name = "null, the last weights count" if monitor is None else monitor
        lines.append(f"auto: trainer.monitor={name}; for {count:,} validation images")
    return replace(resolved, lines=lines)


def _images(data: DataSettings, spec: DataSpec) -> int:
    """The training images; with folds those of the smallest training set: a value is the same for every fold."""
    if data.folds is None or data.limit is not None or "val" in spec.counts:
        return data.train_count(spec)
    return spec.counts["train"] - math.ceil(spec.counts["train"] / data.folds)


def _validation_images(data: DataSettings, spec: DataSpec) -> int:
    return spec.counts.get("val", 0) or data.carved_count(spec)


def auto_batch_size(images: int) -> int:
    """The power of two nearest to 128 steps an epoch, 16 to 128, and no more than there are images."""
    nearest = 2 ** round(math.log2(max(1, images / STEPS_PER_EPOCH)))
    return min(max(nearest, SMALLEST_BATCH), LARGEST_BATCH, images)


def auto_epochs(images: int) -> int:
    """Fewer for more images, though each of them adds steps: from 100 to 3."""
    return min(max(round(EPOCHS_OF_ONE * images**POWER), FEWEST_EPOCHS), MOST_EPOCHS)


def auto_decay(steps: int | None) -> float:
    """The decay of an average over the last twentieth of the run."""
    if steps is None:
        return LARGEST_DECAY
    return float(f"{min(1 - 1 / max(2, AVERAGED * steps), LARGEST_DECAY):.3g}")


def auto_monitor(images: int, *, is_needed: bool = False) -> str | None:
    """None, so that the last weights count, where there are too few images to tell which checkpoint is the best.

    Their loss rises from early on, while accuracy does, too; their accuracy is a matter of luck; and the schedule and
    the average of the weights make the last ones good.
    """
    return "accuracy/val" if images >= MANY or (is_needed and images > 0) else None
