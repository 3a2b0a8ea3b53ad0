"""A network's weights before its first step: pretrained, from another run, or from a file.

They are read before a run's directory is made and loaded before its first step. A resumed run and an evaluation take
their weights from a checkpoint instead.
"""

import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from cnnlab.blocks.timm_networks import timm_config, timm_network, timm_weights
from cnnlab.blocks.torchvision_networks import FILES, pretrained_weights, torchvision_network
from cnnlab.config.init_from import InitFrom
from cnnlab.data.normalization import IMAGENET_MEAN, IMAGENET_SD, given_statistics, of_channels
from cnnlab.engine.checkpoint import EMA_WEIGHTS, WEIGHTS
from cnnlab.network import NetworkPlan
from cnnlab.run.files import CHECKPOINTS, RunDirectory
from cnnlab.runtime.errors import ArgumentError, ConfigError, did_you_mean, first_line, listing
from cnnlab.runtime.files import sha256_of
from cnnlab.runtime.terminal import print_wrapped

KEY = "model.init_from"
LONGEST = 10  # names in a line of the report
COUNTER = "num_batches_tracked"  # older files have none, and torch does without
IMAGENET_CLASSES = 1000
Normalize = str | Mapping[str, Any]  # the value of data.normalize
AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")  # heads that networks here are built without
# `norm.1` of densenets' files is `norm1` in torchvision's module (its `densenet.py`)
_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


def read_starting_weights(plan: NetworkPlan, init_from: InitFrom | None, normalize: Normalize) -> dict[str, Tensor]:
    """The tensors that replace freshly initialised ones, by name; prints where they come from.

    Raises `ConfigError` for weights that are missing, have another hash, or do not fit.
    """
    with torch.device("meta"):
        wanted = plan.build().state_dict()
    weights: dict[str, Tensor] = {}
    for path, layer in plan.named_layers():
        key, factory, arguments = layer.component.key, layer.component.factory, layer.component.arguments
        below = {name.removeprefix(f"{path}."): wanted[name] for name in wanted if name.startswith(f"{path}.")}
        found: dict[str, Tensor] = {}
        if factory is torchvision_network and (arguments.get("weights") or arguments.get("pretrained")):
            found = _from_torchvision(key, arguments, below, normalize)
        elif factory is timm_network and arguments.get("pretrained"):
            found = _from_timm(f"{key}.pretrained", {**arguments, **layer.inferred}, below, normalize)
        weights |= {f"{path}.{name}": tensor for name, tensor in found.items()}
    return weights | (_from_elsewhere(init_from, wanted) if init_from else {})


def apply_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies starting weights over the fresh ones of the same names."""
    if weights:
        state = network.state_dict()  # whole, and with the versions of its modules
        state.update(weights)
        network.load_state_dict(state)


def _from_elsewhere(init_from: InitFrom, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a run or a file that fit the network, by the network's own names."""
    saved, origin = _read(init_from)
    mapping = {prefix if prefix != "*" else "": target for prefix, target in init_from.map.items()}
    renames = {prefix: target for prefix, target in mapping.items() if target is not None}
    left_out = [prefix for prefix, target in mapping.items() if target is None]
    left_out_here = [_renamed(prefix, renames) for prefix in left_out]
    _check_map(renames, left_out, saved, [name for name in wanted if _below(name, left_out_here)])
    name_there: dict[str, str] = {}
    for name in saved:
        here = _renamed(name, renames)
        if _below(name, left_out):
            continue
        if here in name_there:
            raise ConfigError(f"{KEY}.map: {name_there[here]} and {name} would both be {here}: expected one of them")
        name_there[here] = name
    offered = {here: saved[name] for here, name in name_there.items()}
    expected = {name: tensor for name, tensor in wanted.items() if not _below(name, left_out_here)}
    if init_from.strict:
        _check_strict(init_from.path, offered, expected)
    fitting = {
        name: offered[name]
        for name, tensor in expected.items()
        if name in offered and offered[name].shape == tensor.shape
    }
    if not fitting:
        raise ConfigError(f"{KEY}: nothing in {init_from.path} fits: there is {_names(saved)}; here {_names(wanted)}")
    _check_finite(KEY, origin, fitting)
    used = {name_there[here] for here in fitting}
    _report(origin, fitting, wanted, [name for name in saved if name not in used])
    return fitting


def _read(init_from: InitFrom) -> tuple[dict[str, Tensor], str]:
    """The tensors and their origin; a configured hash is checked before they are read."""
    path = Path(init_from.path)
    if path.suffix in FILES and path.is_file():
        _check_hash(path, init_from.sha256)
        return _read_file(path, KEY), str(path)
    if not (path / CHECKPOINTS).is_dir():
        what = "a folder without checkpoints" if path.is_dir() else "another file" if path.exists() else "nothing there"
        raise ConfigError(
            f"{KEY}: expected a run's directory, or a .safetensors, .pth or .pt file, received {str(path)!r}: {what}"
        )
    try:
        checkpoint = RunDirectory.open(path, "model.init_from").checkpoints().resolve(str(init_from.checkpoint))
    except ConfigError as error:  # its own key is `checkpoint`
        raise ConfigError(f"{KEY}.{error}") from error
    averaged = checkpoint.ema is not None
    _check_hash(checkpoint.folder / (EMA_WEIGHTS if averaged else WEIGHTS), init_from.sha256)
    return checkpoint.inference_weights, f"{path}, step {checkpoint.step}{', averaged' if averaged else ''}"


def _read_file(path: Path, key: str) -> dict[str, Tensor]:
    """A safetensors file, or what `torch.save(network.state_dict(), path)` wrote.

    A pickle of anything else is not run. Raises `ConfigError`.
    """
    if not path.is_file():
        raise ConfigError(f"{key}: expected a file of weights, received {str(path)!r}: no such file")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise ConfigError(f"{key}: {path} is no whole safetensors file: {first_line(error)}") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{key}: {path} is no pickle of plain weights, and was not run: expected what "
            f"torch.save(network.state_dict(), …) writes"
        ) from error
    except Exception as error:  # a damaged file makes it raise nearly anything
        raise ConfigError(f"{key}: {path} is no whole file of torch.save: {first_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        inside = f"a dict of {_names(map(str, state))}" if isinstance(state, dict) else type(state).__name__
        raise ConfigError(f"{key}: {path} is no state dict: expected names → tensors, received {inside}")
    return {str(name): tensor for name, tensor in state.items()}


def _check_hash(path: Path, expected: str | None) -> None:
    if expected is not None and (actual := sha256_of(path)) != expected.lower():
        raise ConfigError(f"{KEY}.sha256: {path} has {actual}, expected {expected}")


def _below(name: str, prefixes: Iterable[str]) -> bool:
    return any(prefix in ("", name) or name.startswith(f"{prefix}.") for prefix in prefixes)


def _renamed(name: str, renames: Mapping[str, str]) -> str:
    """The network's name for a saved name, by the longest prefix in the map."""
    prefix = max((prefix for prefix in renames if _below(name, [prefix])), key=len, default=None)
    if prefix is None:
        return name
    return ".".join(filter(None, (renames[prefix], name.removeprefix(prefix).removeprefix("."))))


def _check_map(
    renames: Mapping[str, str], left_out: Iterable[str], saved: Iterable[str], left_out_here: Iterable[str]
) -> None:
    there = list(saved)
    for prefix in [*renames, *left_out]:
        known = there if prefix in renames else [*there, *left_out_here]
        if not any(_below(name, [prefix]) for name in known):
            parts = dict.fromkeys(".".join(name.split(".")[:depth]) for name in there for depth in (1, 2))
            raise ConfigError(
                f"{KEY}.map: no name begins with {prefix!r};{did_you_mean(prefix, parts)} there is {_names(there)}"
            )


def _differences(offered: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, str]:
    """By name, each difference between the two networks."""
    shapes = {
        name: f"{name} is {list(offered[name].shape)} there and {list(tensor.shape)} here"
        for name, tensor in expected.items()
        if name in offered and offered[name].shape != tensor.shape
    }
    missing = {name: f"{name} is not there" for name in expected if name not in offered and not name.endswith(COUNTER)}
    return shapes | missing | {name: f"{name} is not here" for name in offered if name not in expected}


def _check_strict(path: str, offered: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    differences = _differences(offered, expected)
    if differences:
        layer = next(iter(differences)).rpartition(".")[0]
        raise ConfigError(
            f"{KEY}: {path} holds another network: {_first(differences.values())}. {KEY}.strict=false takes what "
            f"fits; '{KEY}.map={{{layer}: null}}' leaves a layer out"
        )


def _check_finite(key: str, origin: str, weights: Mapping[str, Tensor]) -> None:
    broken = [name for name, tensor in weights.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise ConfigError(f"{key}: nan or inf in {_names(broken)} of {origin}: expected weights of finite numbers")


def _first(differences: Iterable[str]) -> str:
    differences = list(differences)
    more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
    return "; ".join(differences[:5]) + more


def _report(origin: str, loaded: Iterable[str], wanted: Iterable[str], unused: Iterable[str]) -> None:
    loaded = list(loaded)
    print_wrapped(f"starting weights from {origin}: {len(loaded)} tensors", origin)
    fresh = [name for name in wanted if name not in loaded and not name.endswith(COUNTER)]
    left = [name for name in unused if not name.endswith(COUNTER)]
    for what, names in (("as initialised", fresh), ("not used", left)):
        if names:
            print_wrapped(f"  {what} ({len(names)}): {_names(names)}")


def _names(names: Iterable[str]) -> str:
    names = list(names)
    return listing(names[:LONGEST]) + (", …" if len(names) > LONGEST else "")


def _from_torchvision(
    key: str, arguments: Mapping[str, Any], wanted: Mapping[str, Tensor], normalize: Normalize
) -> dict[str, Tensor]:
    """Torchvision's weights of one network; a head for another number of classes keeps its fresh ones."""
    file = arguments.get("pretrained")
    entry = pretrained_weights(arguments["name"], arguments.get("weights"))
    key = f"{key}.pretrained" if file else f"{key}.weights"
    path = Path(file) if isinstance(file, str) else _weights_file(entry.url, key)
    state = _read_file(path, key)
    saved = {_DENSENET.sub(r"\1\2", name): tensor for name, tensor in state.items() if not name.startswith(AUXILIARY)}
    head = list(wanted)[-1].rpartition(".")[0]
    fresh = {
        name
        for name, tensor in saved.items()
        if _keeps_fresh(tensor, wanted.get(name), is_head=name.rpartition(".")[0] == head)
    }
    expected = {name: tensor for name, tensor in wanted.items() if name not in fresh}
    fitting = {name: tensor for name, tensor in saved.items() if name not in fresh}
    differences = _differences(fitting, expected)
    if differences:
        raise ConfigError(f"{key}: {path} holds another network: {_first(differences.values())}")
    _report(str(path), fitting, wanted, ())
    expects = entry.transforms()
    _note_normalization(key, tuple(expects.mean), tuple(expects.std), normalize)
    return fitting


def _from_timm(
    key: str, arguments: Mapping[str, Any], wanted: Mapping[str, Tensor], normalize: Normalize
) -> dict[str, Tensor]:
    """timm's weights of one network; a head for another number of classes keeps its fresh ones."""
    pretrained, name = arguments["pretrained"], arguments["name"]
    print_wrapped(f"{key}: reading {pretrained if isinstance(pretrained, str) else f'the weights of timm {name}'}")
    try:
        saved, origin = timm_weights(**arguments)
    except ArgumentError as error:
        raise ConfigError(f"{key.rpartition('.')[0]}.{error}") from error
    except Exception as error:  # of a download, a damaged file or another network's, timm and the hub raise nearly any
        mend = "" if isinstance(pretrained, str) else f"; expected a network, or {key}=FILE"
        raise ConfigError(f"{key}: the weights cannot be read: {first_line(error)}{mend}") from error
    expected = {name: tensor for name, tensor in wanted.items() if name in saved}
    differences = _differences(saved, expected)
    if differences:
        raise ConfigError(f"{key}: {origin} holds another network: {_first(differences.values())}")
    _check_finite(key, origin, saved)
    _report(origin, saved, wanted, ())
    config = timm_config(name)
    _note_normalization(key, config.mean, config.std, normalize)
    return saved


def _keeps_fresh(saved: Tensor, here: Tensor | None, *, is_head: bool) -> bool:
    """A head for other classes, or what was never trained (VGG16's IMAGENET1K_FEATURES has NaN)."""
    other_classes = (
        here is not None
        and saved.shape != here.shape
        and (is_head or saved.shape[:1] == (IMAGENET_CLASSES,))
        and saved.shape[1:] == here.shape[1:]
    )
    return other_classes or not bool(saved.isfinite().all())


def _weights_file(url: str, key: str) -> Path:
    """The file in torch's download cache, downloaded if missing; the start of its SHA-256, in its name, is checked."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    prefix = re.search(r"-([0-9a-f]{8,})\.", path.name)
    assert prefix, f"{url} has no hash in its name"
    if not path.is_file():
        print_wrapped(f"downloading {url} to {path}", path, flush=True)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix[1])
        except (OSError, RuntimeError, ValueError, HTTPException) as error:
            raise ConfigError(
                f"{key}: {url} cannot be downloaded: {first_line(error)}; expected a network, the file at {path}, or "
                f"{key.rpartition('.')[0]}.pretrained=FILE"
            ) from error
    actual = sha256_of(path)
    if not actual.startswith(prefix[1]):
        raise ConfigError(
            f"{key}: {path} is damaged or another file: its SHA-256 is {actual[:16]}…, expected {prefix[1]}…; "
            f"remove it, and it is downloaded again"
        )
    return path


def _note_normalization(key: str, mean: Sequence[float], sd: Sequence[float], normalize: Normalize) -> None:
    """Prints a line if the images are not normalised as those that the weights were trained on."""
    theirs = (tuple(mean), tuple(sd))
    grey = (of_channels(mean, 1), of_channels(sd, 1))
    if normalize == "imagenet" and theirs == (IMAGENET_MEAN, IMAGENET_SD):
        return
    if isinstance(normalize, Mapping) and given_statistics(normalize, len(normalize["mean"])) in (theirs, grey):
        return
    by = f"mean {theirs[0]} and sd {theirs[1]} (of 0…1)"
    if theirs == (IMAGENET_MEAN, IMAGENET_SD):
        by = "data.normalize=imagenet"
    print_wrapped(
        f"{key}: trained on images normalised by {by}; this run has {normalize}. data.preprocess=pretrained takes "
        f"size, crop and normalisation of the weights"
    )
