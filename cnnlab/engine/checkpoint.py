"""Checkpoints: whole or absent, and verified before they are used.

A checkpoint is a folder `step-00000430` with weights and the rest of the state in safetensors, and a manifest with the
size and SHA-256 of each. It is written beside its place, made durable and renamed into it, so a kill at any instant
leaves the old ones or the new one. safetensors notices no damaged bit: nothing is read before its hash agrees.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from cnnlab.engine.state_file import read_state, write_state
from cnnlab.runtime.errors import ConfigError, TrainingError, first_line, listing
from cnnlab.runtime.files import read_regular, replace_file, sha256_of, sync_folder

WEIGHTS = "model.safetensors"
EMA_WEIGHTS = "ema.safetensors"
STATE = "state.safetensors"
FORMAT = 2  # of the folder; 1 had a pickled state
MANIFEST = "manifest.json"
LARGEST_MANIFEST = 1 << 20
LARGEST_NAME = 100  # bytes of `best` and `last`
_NAME = re.compile(r"step-(\d{8,})")


class DamagedCheckpointError(Exception):
    """A checkpoint whose bytes are not those that were written."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. `weights` and `ema` are read at once; `state()` is read on request."""

    folder: Path
    step: int
    best_step: int | None
    meta: dict[str, Any]
    weights: dict[str, Tensor]
    ema: dict[str, Tensor] | None

    def state(self) -> dict[str, Any]:
        """Everything but the weights: optimizer, schedule, generators, counters."""
        try:
            return read_state(self.folder / STATE)
        except (OSError, ValueError) as error:
            raise ConfigError(f"checkpoint: {self.folder / STATE} was not read: {first_line(error)}") from error

    @property
    def inference_weights(self) -> dict[str, Tensor]:
        """What validation saw: the averaged weights where there are any."""
        return self.weights if self.ema is None else self.ema


class Checkpoints:
    """The `checkpoints` folder of a run. Keeps the newest two, the best, and what the settings ask for beside them.

    `keep_every` are steps: a checkpoint at a multiple of it stays. The `keep_best` with the highest scores stay, too.
    """

    def __init__(
        self,
        folder: Path,
        notify: Callable[[str], None] = lambda text: None,
        *,
        keep_every: int | None = None,
        keep_best: int = 1,
    ) -> None:
        self.folder = folder
        self.notify = notify
        self.keep_every = keep_every
        self.keep_best = keep_best
        self._scores: dict[int, list[float]] = {}

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, ascending; order is by step, never by a file's time."""
        if not self.folder.is_dir():
            return []
        matches = (_NAME.fullmatch(entry.name) for entry in self.folder.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def save(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        state: Mapping[str, Any],
        meta: Mapping[str, Any],
        *,
        ema: Mapping[str, Tensor] | None = None,
        best_step: int | None = None,
        score: Sequence[float] | None = None,
    ) -> None:
        """Writes one checkpoint durably; `best_step` is the best so far, maybe this one.

        `score` is what a validation found here, greater is better; of equal first values the later ones count.

        Raises `TrainingError` where the disk refuses; older checkpoints stay whole.
        """
        temporary = self.folder / f".writing-{step:08d}-{os.getpid()}"
        try:
            self.folder.mkdir(exist_ok=True)  # without its parents: a run that was deleted is not made again
            self._clear_leftovers()
            temporary.mkdir()
            tied = {WEIGHTS: _write_weights(temporary / WEIGHTS, weights)}
            if ema is not None:
                tied[EMA_WEIGHTS] = _write_weights(temporary / EMA_WEIGHTS, ema)
            write_state(temporary / STATE, state)
            body = {"format": FORMAT, "step": step, "best_step": best_step, "tied": tied, "meta": dict(meta)}
            _write_manifest(temporary, body | ({"score": list(score)} if score else {}))
            sync_folder(temporary)
            target = self.path(step)
            if target.exists():  # the run resumed from before this step and reached it again
                shutil.rmtree(target)
            temporary.rename(target)
            self._scores.pop(step, None)
            sync_folder(self.folder)
            self._name("last", target.name)
            self._name_best(best_step)
            self._prune()
        except (OSError, TypeError, safetensors.SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise TrainingError(
                f"the checkpoint of step {step} could not be written to {self.folder}: {error}; "
                f"the older checkpoints are untouched"
            ) from error

    def named(self, name: str) -> int | None:
        """The step that `best` or `last` names; None where it names none."""
        try:
            match = _NAME.fullmatch(read_regular(self.folder / name, LARGEST_NAME).decode().strip())
        except PermissionError as error:
            raise _unreadable(error) from error
        except (OSError, UnicodeDecodeError):
            return None
        return int(match[1]) if match else None

    def resolve(self, which: str) -> Checkpoint:
        """The verified checkpoint `best`, `last` or of a step. Raises `ConfigError` with what there is."""
        steps = self.steps()
        step = self.named(which) if which in ("best", "last") else int(which) if which.isdecimal() else None
        if step is None or step not in steps:
            raise ConfigError(
                f"checkpoint: expected best, last or one of the steps {listing(steps)} in {self.folder}, "
                f"received {which!r}"
            )
        try:
            return read_checkpoint(self.path(step))
        except DamagedCheckpointError as error:
            raise ConfigError(
                f"checkpoint: {error}; expected another of {listing(steps)}, received {which!r}"
            ) from error

    def newest_whole(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; damaged ones are set aside and reported.

        `best` names again what was best at that checkpoint, whatever a kill or later steps left there.
        """
        for step in reversed(self.steps()):
            try:
                checkpoint = read_checkpoint(self.path(step))
            except DamagedCheckpointError as error:
                aside = self._set_aside(self.path(step))
                self.notify(f"{error}: set aside as {aside.name}, resuming from an older one")
                continue
            self._name_best(checkpoint.best_step)
            return checkpoint
        return None

    def newest_meta(self) -> dict[str, Any]:
        """What the newest readable manifest records beside its files; empty where there is none."""
        for step in reversed(self.steps()):
            try:
                meta = _read_manifest(self.path(step)).get("meta")
            except DamagedCheckpointError:
                continue
            return meta if isinstance(meta, dict) else {}
        return {}

    def _set_aside(self, folder: Path) -> Path:
        number = 0
        while (aside := folder.with_name(f"damaged-{number}-{folder.name}")).exists():
            number += 1
        return folder.rename(aside)

    def _name(self, name: str, target: str) -> None:
        """`best` and `last` are files that hold a folder's name, replaced at once."""
        replace_file(self.folder / name, f"{target}\n".encode())

    def _name_best(self, step: int | None) -> None:
        if step is not None and self.path(step).is_dir():
            self._name("best", self.path(step).name)

    def _prune(self) -> None:
        """Keeps the newest two, and what was best at each of them: a resume may need either."""
        steps = self.steps()
        newest = steps[-2:]
        keep = {*newest, self.named("best"), *(self._best_at(step) for step in newest)}
        if self.keep_every:
            keep.update(step for step in steps if step % self.keep_every == 0)
        if self.keep_best > 1:
            keep.update(sorted((step for step in steps if self._score(step)), key=self._score)[-self.keep_best :])
        for step in steps:
            if step not in keep:
                # renamed first: a kill half-way leaves no checkpoint with half its files
                shutil.rmtree(self.path(step).rename(self.folder / f".removing-{step:08d}"))

    def _best_at(self, step: int) -> int | None:
        try:
            best_step = _read_manifest(self.path(step)).get("best_step")
        except DamagedCheckpointError:
            return None
        return best_step if isinstance(best_step, int) else None

    def _score(self, step: int) -> list[float]:
        """What a validation found at the step, read once; empty where it found nothing."""
        if step not in self._scores:
            score: Any = None
            with contextlib.suppress(DamagedCheckpointError):
                score = _read_manifest(self.path(step)).get("score")
            numbers = isinstance(score, list) and all(isinstance(value, int | float) for value in score)
            self._scores[step] = score if numbers else []
        return self._scores[step]

    def _clear_leftovers(self) -> None:
        """What a kill left of an earlier write or removal."""
        for pattern in (".writing-*", ".removing-*", ".best.tmp", ".last.tmp"):
            for entry in self.folder.glob(pattern):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def read_checkpoint(folder: Path) -> Checkpoint:
    """Verifies every file against the manifest and reads the weights.

    Raises `DamagedCheckpointError`, or `ConfigError` for what cannot be read, or not by this version.
    """
    try:
        return _read_checkpoint(folder)
    except OSError as error:
        raise _unreadable(error) from error


def _unreadable(error: OSError) -> ConfigError:
    return ConfigError(f"checkpoint: {error.filename or 'a file'} cannot be read: {error.strerror or error}")


def _read_checkpoint(folder: Path) -> Checkpoint:
    manifest = _read_manifest(folder)
    if manifest.get("format") == 1:
        raise ConfigError(
            f"checkpoint: {folder} was written by cnnlab 0.1, whose state this version does not read: expected a run "
            f"that was started with 0.2 or later"
        )
    try:
        _check_steps(folder, manifest)
        _verify_files(folder, manifest["files"])
        tied = manifest["tied"]
        has_ema = EMA_WEIGHTS in manifest["files"]
        return Checkpoint(
            folder,
            manifest["step"],
            manifest["best_step"],
            manifest["meta"],
            _read_weights(folder / WEIGHTS, tied[WEIGHTS]),
            _read_weights(folder / EMA_WEIGHTS, tied[EMA_WEIGHTS]) if has_ema else None,
        )
    except (KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise DamagedCheckpointError(f"{folder} is not a checkpoint of cnnlab: {first_line(error)}") from error


def _check_steps(folder: Path, manifest: Mapping[str, Any]) -> None:
    """A step's checkpoint under another name, or one whose best is still to come, was not written here."""
    step, best, match = manifest["step"], manifest["best_step"], _NAME.fullmatch(folder.name)
    legal = type(step) is int and (best is None or (type(best) is int and 0 <= best <= step))
    if not legal or not match or int(match[1]) != step or not isinstance(manifest["meta"], dict):
        raise DamagedCheckpointError(f"{folder} has the manifest of another checkpoint: its step is {step!r:.40}")


def _verify_files(folder: Path, files: Mapping[str, Any]) -> None:
    if not {WEIGHTS, STATE} <= set(files) <= {WEIGHTS, EMA_WEIGHTS, STATE}:
        raise DamagedCheckpointError(f"{folder} has other files than a checkpoint: {listing(sorted(files))}")
    for name, entry in files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise DamagedCheckpointError(f"{path} is not the file of {entry['bytes']} bytes that was written")
        if sha256_of(path) != entry["sha256"]:
            raise DamagedCheckpointError(f"{path} is damaged: its SHA-256 is not the manifest's")


def _untied(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, and {other name: name} for tensors that go by several; safetensors refuses those."""
    first: dict[tuple[object, ...], str] = {}
    storages: set[int] = set()
    unique: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, tensor in weights.items():
        identity = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        storage = tensor.untyped_storage().data_ptr()
        if tensor.numel() and identity in first:
            tied[name] = first[identity]
            continue
        first[identity] = name
        unique[name] = tensor.clone() if storage in storages else tensor  # another view of the same memory
        storages.add(storage)
    return unique, tied


def _write_weights(path: Path, weights: Mapping[str, Tensor]) -> dict[str, str]:
    unique, tied = _untied(weights)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in unique.items()}
    safetensors.torch.save_file(tensors, path)
    return tied


def _read_weights(path: Path, tied: Mapping[str, str]) -> dict[str, Tensor]:
    weights = safetensors.torch.load(path.read_bytes())  # not mapped: Windows removes no file that is
    return {**weights, **{name: weights[other] for name, other in tied.items()}}


def _write_manifest(folder: Path, body: Mapping[str, Any]) -> None:
    files = {}
    for path in sorted(folder.iterdir()):
        _sync_file(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    with (folder / MANIFEST).open("w", encoding="utf-8", newline="\n") as file:
        file.write(_sealed({**body, "files": files}))
        file.flush()
        os.fsync(file.fileno())


def _sealed(body: Mapping[str, Any]) -> str:
    """The manifest's text, its own hash in it: one flipped bit anywhere is noticed."""
    seal = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({"manifest": body, "sha256": seal}, sort_keys=True, indent=1) + "\n"


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        if path.is_symlink() or path.stat().st_size > LARGEST_MANIFEST:
            raise DamagedCheckpointError(f"{path} is no manifest")
        text = path.read_bytes().decode()
        body = json.loads(text)["manifest"]
        whole = _sealed(body) == text
    except PermissionError as error:
        raise _unreadable(error) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedCheckpointError(f"{path} is missing or damaged") from error
    if not whole:
        raise DamagedCheckpointError(f"{path} is damaged: its text is not what was written")
    if not isinstance(body, dict) or not isinstance(body.get("files"), dict):
        raise DamagedCheckpointError(f"{path} is no manifest of a checkpoint")
    return body


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:  # Windows makes nothing durable that is open for reading alone
        os.fsync(file.fileno())
