"""Weights that a run begins with: from a run, from a file, from torchvision; and what stays as it was."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from commands import Answer, composed, ok, run
from fast_run import FAST, train_fast
from torch import Tensor, nn
from torchvision import models

from cnnlab.cli import evaluate, train
from cnnlab.components import Trust
from cnnlab.config.check import check_config
from cnnlab.engine.checkpoint import Checkpoint, Checkpoints
from cnnlab.network import NetworkPlan, plan_network
from cnnlab.run.starting_weights import InitFrom, apply_weights, read_starting_weights
from cnnlab.run.train_state import build_train_state
from cnnlab.runtime.errors import Complaints, ConfigError

REPOSITORY = Path(__file__).parents[2]
BLOCKS: dict[str, Any] = {
    "conv1": {"type": "conv", "out_channels": 2, "kernel_size": 3},
    "norm1": "batch_norm",
    "pool": "global_avg_pool",
    "output": {"type": "linear", "out_features": 3},
}
SEVEN: dict[str, Any] = {"output": {"type": "linear", "out_features": 7}}
RESNET: dict[str, Any] = {
    "network": {"type": "torchvision", "name": "resnet18", "num_classes": 3, "weights": "DEFAULT"}
}
TRUNK = "model.freeze=[conv*, norm*]"
NEW_HEAD = "model.init_from.map={output: null}"


def planned(blocks: dict[str, Any] = BLOCKS, shape: tuple[int, ...] = (1, 8, 8)) -> NetworkPlan:
    complaints = Complaints()
    plan = plan_network(shape, blocks, complaints)
    complaints.raise_if_any()
    assert plan is not None
    return plan


def tensors(blocks: dict[str, Any] = BLOCKS, **extra: Tensor) -> dict[str, Tensor]:
    """The state of a network whose every number is another."""
    state = planned(blocks).build().state_dict()
    return {name: torch.rand(tensor.shape).to(tensor.dtype) for name, tensor in state.items()} | extra


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(tensors(), path)
    return path


def read(path: Path, blocks: dict[str, Any] = BLOCKS, **options: Any) -> dict[str, Tensor]:
    return read_starting_weights(planned(blocks), InitFrom(str(path), **options), "standardize")


def last(path: Path) -> Checkpoint:
    return Checkpoints(path / "checkpoints").resolve("last")


def test_strictly_every_tensor_comes_from_the_file(file: Path) -> None:
    weights, saved = read(file), safetensors.torch.load_file(file)
    assert weights.keys() == saved.keys()
    network = planned().build()
    apply_weights(network, weights)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("every", ["", "*"])
def test_a_prefix_puts_a_whole_file_into_one_block(file: Path, every: str) -> None:
    nested = {"trunk": {"type": "sequential", "blocks": BLOCKS}}
    assert set(read(file, nested, map={every: "trunk"})) == {f"trunk.{name}" for name in tensors()}


def test_the_longest_prefix_decides_and_ends_at_a_dot(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    inner = {"conv": BLOCKS["conv1"], "conv1": {"type": "conv", "out_channels": 1, "kernel_size": 1}}
    saved = tensors({"old": {"type": "sequential", "blocks": inner}, "pool": "global_avg_pool"})
    safetensors.torch.save_file(saved, path)
    blocks = {"first": inner["conv"], "new": {"type": "sequential", "blocks": {"conv1": inner["conv1"]}}}
    weights = read(path, blocks, map={"old": "new", "old.conv": "first"})
    assert torch.equal(weights["first.weight"], saved["old.conv.weight"])
    assert torch.equal(weights["new.conv1.weight"], saved["old.conv1.weight"])
    assert len(weights) == 4


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_a_state_dict_of_torch_is_read(tmp_path: Path, suffix: str) -> None:
    saved, path = tensors(), tmp_path / f"weights{suffix}"
    torch.save(saved, path)
    weights = read(path)
    assert weights.keys() == saved.keys()
    assert all(torch.equal(weights[name], saved[name]) for name in saved)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (nn.Linear(2, 2), "weights.pth is no pickle of plain weights, and was not run"),
        ({"model": tensors(), "epoch": 3}, "is no state dict: .* received a dict of model, epoch"),
        ([torch.zeros(1)], "is no state dict: expected names → tensors, received list"),
        (tensors(BLOCKS | SEVEN), "holds another network: output.weight is"),
    ],
)
def test_what_is_no_state_dict_of_this_network_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match=f"^model.init_from: .*{message}"):
        read(tmp_path / "weights.pth")


def test_a_damaged_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "weights.pt")
    content = (tmp_path / "weights.pt").read_bytes()
    (tmp_path / "weights.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match=r"weights\.pt is no whole file of torch\.save"):
        read(tmp_path / "weights.pt")


def test_null_leaves_a_layer_out_on_both_sides(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = BLOCKS | SEVEN
    assert not {name for name in read(file, other, map={"output": None}) if name.startswith("output")}
    printed = capsys.readouterr().out
    assert "as initialised (2): output.weight, output.bias" in printed
    assert "not used (2): output.bias, output.weight" in printed


def test_null_leaves_out_what_another_entry_has_moved_and_a_layer_that_is_new_here(file: Path) -> None:
    nested = {"trunk": {"type": "sequential", "blocks": BLOCKS | SEVEN}}
    weights = read(file, nested, map={"": "trunk", "output": None})
    assert {name.split(".")[1] for name in weights} == {"conv1", "norm1"}
    longer = BLOCKS | {"extra": {"type": "linear", "out_features": 3}}
    assert set(read(file, longer, map={"extra": None})) == set(tensors())


def test_not_strictly_what_fits_is_taken(file: Path) -> None:
    other = {"conv1": BLOCKS["conv1"], "pool": "global_avg_pool", **SEVEN}
    assert set(read(file, other, strict=False)) == {"conv1.weight", "conv1.bias"}


def test_a_norms_counter_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    saved = tensors()
    del saved["norm1.num_batches_tracked"]
    safetensors.torch.save_file(saved, path)
    assert read(path).keys() == saved.keys()


def test_the_hash_that_is_given_is_that_of_the_file(file: Path) -> None:
    read(file, sha256=hashlib.sha256(file.read_bytes()).hexdigest().upper())
    with pytest.raises(ConfigError, match=f"model.init_from.sha256: {file} has .*, expected {'0' * 64}"):
        read(file, sha256="0" * 64)


@pytest.mark.parametrize(
    ("blocks", "options", "message"),
    [
        (
            BLOCKS | SEVEN,
            {},
            "another network: output.weight is \\[3, 2\\] there and \\[7, 2\\] here; output.bias is .*"
            "strict=false takes what fits; 'model.init_from.map={output: null}' leaves a layer out",
        ),
        ({"a": {"type": "linear", "out_features": 3}}, {"strict": False}, "nothing in .* fits: there is "),
        (BLOCKS, {"map": {"conv9": "conv1"}}, "map: no name begins with 'conv9'; did you mean 'conv1'"),
        (BLOCKS, {"map": {"outputs": None}}, "map: no name begins with 'outputs'; did you mean 'output'"),
        (BLOCKS, {"map": {"con": "conv1"}}, "map: no name begins with 'con'"),
        (BLOCKS, {"map": {"norm1": "output"}}, "map: .* would both be output.bias"),
    ],
)
def test_what_does_not_fit_is_refused(file: Path, blocks: dict[str, Any], options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(file, {"flatten": "flatten", **blocks} if "a" in blocks else blocks, **options)


def test_a_file_that_is_not_whole_is_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="is no whole safetensors file"):
        read(file)


def test_a_damaged_run_is_refused(finished: Path) -> None:
    path = last(finished).folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"model\.init_from\.checkpoint: .* is damaged"):
        read(finished, checkpoint="last")


def fine_tuned(source: Path, *overrides: str) -> Answer:
    return ok(train_fast(f"model.init_from={source}", TRUNK, NEW_HEAD, *overrides))


def test_a_frozen_trunk_from_another_run_stays_to_the_bit_while_the_head_learns(finished: Path) -> None:
    answer = fine_tuned(finished, "run_dir=new")
    assert "2,570 train" in answer.out
    assert "starting weights from" in answer.out
    assert_only_the_head_learned(finished, last(Path("new")).weights)


def assert_only_the_head_learned(source: Path, *tuned: dict[str, Tensor]) -> None:
    begun = Checkpoints(source / "checkpoints").resolve("best").weights
    for weights in tuned:
        changed = {name for name in begun if not torch.equal(begun[name], weights[name])}
        assert changed == {"output.weight", "output.bias"}


def test_the_averaged_weights_of_a_run_are_taken_where_there_are_any(in_tmp_path: Path) -> None:
    assert train_fast("run_dir=old", "trainer.ema=0.9").code == 0
    answer = train_fast("run_dir=new", "model.init_from=old", "optimizer.lr=0", "model.freeze=[norm*]")
    assert ", averaged: 20 tensors" in answer.out
    best = Checkpoints(Path("old/checkpoints")).resolve("best")
    assert best.ema is not None
    assert all(torch.equal(best.ema[name], tensor) for name, tensor in last(Path("new")).weights.items())


def test_a_run_begins_from_the_checkpoint_that_is_named(finished: Path) -> None:
    answer = train_fast(f"model.init_from={{path: {finished}, checkpoint: 3}}", "run_dir=new")
    assert f"starting weights from {finished}, step 3" in answer.out


def test_a_run_that_has_no_checkpoint_yet_begins_from_its_source_again(finished: Path) -> None:
    fine_tuned(finished, "run_dir=new")
    reference = last(Path("new")).weights
    shutil.rmtree("new/checkpoints")
    answer = ok(run(train, "resume=new"))
    assert "starting weights from" in answer.out
    assert all(torch.equal(reference[name], tensor) for name, tensor in last(Path("new")).weights.items())


@pytest.mark.slow
def test_a_run_resumed_in_a_fresh_process_needs_no_source_and_trains_the_head_alone_to_the_bit(
    finished: Path,
) -> None:
    settings = ("schedule=constant", "trainer.ema=0.9")
    fine_tuned(finished, *settings, "run_dir=whole", "trainer.max_steps=9")
    fine_tuned(finished, *settings, "run_dir=parts", "trainer.max_steps=3")
    finished.rename("elsewhere")
    assert run(evaluate, "run=parts").code == 0
    command = [sys.executable, str(REPOSITORY / "train.py"), "resume=parts", "trainer.max_steps=9"]
    subprocess.run(command, check=True, capture_output=True)
    whole, parts = last(Path("whole")), last(Path("parts"))
    assert whole.step == parts.step == 9
    assert_only_the_head_learned(Path("elsewhere"), parts.weights, parts.inference_weights)
    assert all(torch.equal(whole.weights[name], parts.weights[name]) for name in whole.weights)


def test_groups_leave_out_frozen_layers_and_follow_the_schedule_from_their_own_rate() -> None:
    groups = "+optimizer.groups={conv*: {lr: 0.001}, output*: {lr: 0.1}}"
    plan = check_config(composed(FAST, "schedule=cosine", "+model.freeze=[conv1, norm1]", groups), Trust())
    optimizer = plan.build_optimizer(build_train_state(plan).network)
    schedule = plan.build_schedule(optimizer)
    for _ in range(3):  # of 6: half-way, (1 + cos(π/2)) / 2
        schedule.step()
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}
    assert not {name for name in rates if name.startswith(("conv1", "norm1"))}
    found = [rates[name] for name in ("conv2.weight", "output.weight", "norm2.weight")]
    assert found == pytest.approx([0.001 / 2, 0.1 / 2, 0.05 / 2])


# torchvision's


@pytest.fixture
def pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """A made-up file of weights for resnet18 with 1,000 classes, where torch keeps its downloads."""
    return publish(tmp_path, monkeypatch, models.resnet18().state_dict())


def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, Tensor]) -> dict[str, Tensor]:
    folder = tmp_path / "torch_home" / "hub" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "new.pth")
    digest = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()
    (folder / "new.pth").rename(folder / f"resnet18-{digest[:8]}.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    entry = models.ResNet18_Weights.DEFAULT
    monkeypatch.setattr(
        "cnnlab.run.starting_weights.pretrained_weights",
        lambda name, weights: SimpleNamespace(
            url=f"file:///nowhere/resnet18-{digest[:8]}.pth", transforms=entry.transforms
        ),
    )
    return state


def weights_file() -> Path:
    return next((Path(torch.hub.get_dir()) / "checkpoints").glob("resnet18-*.pth"))


def read_pretrained(normalize: str = "imagenet", **arguments: Any) -> dict[str, Tensor]:
    return read_starting_weights(planned({"network": RESNET["network"] | arguments}, (3, 64, 64)), None, normalize)


def test_pretrained_weights_come_with_a_fresh_head_and_a_note_on_another_normalisation(
    pretrained: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    weights = read_pretrained()
    assert {f"network.{name}" for name in pretrained} - weights.keys() == {"network.fc.weight", "network.fc.bias"}
    assert all(torch.equal(tensor, pretrained[name.removeprefix("network.")]) for name, tensor in weights.items())
    printed = capsys.readouterr().out
    assert "as initialised (2): fc.weight, fc.bias" in printed
    assert "normalised" not in printed
    read_pretrained("standardize")
    note = "trained on images normalised by data.normalize=imagenet; this run has standardize"
    assert note in capsys.readouterr().out
    assert len(read_pretrained(num_classes=1000)) == len(pretrained)  # of as many classes the head comes too


def read_pretrained_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, Tensor]) -> dict[str, Tensor]:
    publish(tmp_path, monkeypatch, state)
    return read_pretrained()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_torchvisions_weights_comes_with_a_fresh_head(tmp_path: Path, suffix: str) -> None:
    file, state = tmp_path / f"mine{suffix}", models.shufflenet_v2_x0_5(num_classes=7).state_dict()
    safetensors.torch.save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    named = {"type": "torchvision", "name": "shufflenet_v2_x0_5", "num_classes": 3, "pretrained": str(file)}
    weights = read_starting_weights(planned({"network": named}, (3, 64, 64)), None, "imagenet")
    assert {f"network.{name}" for name in state} - weights.keys() == {"network.fc.weight", "network.fc.bias"}
    assert all(torch.equal(tensor, state[name.removeprefix("network.")]) for name, tensor in weights.items())
    file.unlink()
    with pytest.raises(ConfigError, match=r"blocks.network.pretrained: expected a file of weights, received '.*mine"):
        read_starting_weights(planned({"network": named}, (3, 64, 64)), None, "imagenet")
    with pytest.raises(ConfigError, match=r"pretrained: expected one of weights and pretrained, received weights=DEF"):
        planned({"network": named | {"weights": "DEFAULT"}}, (3, 64, 64))


def test_what_was_never_trained_stays_fresh_and_auxiliary_heads_are_no_mismatch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = models.resnet18().state_dict() | {"AuxLogits.fc.weight": torch.zeros(3)}
    state["layer4.1.conv2.weight"] = torch.full_like(state["layer4.1.conv2.weight"], torch.nan)
    weights = read_pretrained_of(tmp_path, monkeypatch, state)
    assert "network.conv1.weight" in weights
    assert "network.layer4.1.conv2.weight" not in weights


def test_densenets_older_names_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = models.densenet121().state_dict()
    older = {name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): t for name, t in state.items()}
    assert older.keys() != state.keys()
    publish(tmp_path, monkeypatch, older)
    assert len(read_pretrained(name="densenet121")) == len(state) - 2


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_every_other_mismatch_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    state = models.resnet18().state_dict()
    tensor = state.pop("conv1.weight")
    if change == "shape":
        state["conv1.weight"] = tensor[:, :1]
    if change == "extra":
        state |= {"conv1.weight": tensor, "conv9.weight": tensor}
    with pytest.raises(ConfigError, match=r"model\.blocks\.network\.weights: .* holds another network: conv[19]"):
        read_pretrained_of(tmp_path, monkeypatch, state)


def test_the_hash_in_its_name_is_checked_for_a_file_that_was_there(pretrained: dict[str, Tensor]) -> None:
    path = weights_file()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"network\.weights: .* is damaged or another file: its SHA-256 is"):
        read_pretrained()


def test_a_file_that_is_not_there_is_downloaded(
    pretrained: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = weights_file()
    content = path.read_bytes()
    path.unlink()
    asked = []

    def download(url: str, target: str, hash_prefix: str) -> None:
        asked.append((url, hash_prefix))
        Path(target).write_bytes(content)

    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    assert read_pretrained()
    assert asked == [(f"file:///nowhere/{path.name}", path.stem.removeprefix("resnet18-"))]
    assert f"downloading file:///nowhere/{path.name} to {path}" in capsys.readouterr().out


def test_a_failed_download_names_where_to_put_the_file(pretrained: dict[str, Tensor]) -> None:
    path = weights_file()
    path.unlink()
    with pytest.raises(ConfigError, match=f"file:///nowhere/{path.name} cannot be downloaded: .* the file at {path}"):
        read_pretrained()


def test_a_file_that_holds_code_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state: Any = {"conv1.weight": Path("/")}
    with pytest.raises(ConfigError, match="is no pickle of plain weights, and was not run"):
        read_pretrained_of(tmp_path, monkeypatch, state)


@pytest.mark.slow
def test_a_run_from_pretrained_weights_freezes_evaluates_and_resumes(
    pretrained: dict[str, Tensor], in_tmp_path: Path
) -> None:
    answer = train_fast(
        "model=resnet18",
        "model.blocks.network.weights=IMAGENET1K_V1",
        'model.freeze=["network.conv1", "network.bn1", "network.layer*"]',
        "data.normalize=imagenet",
        "schedule=constant",
        "run_dir=run",
    )
    assert answer.code == 0, answer.err
    weights_file().unlink()
    assert run(evaluate, "run=run").code == 0
    assert run(train, "resume=run", "trainer.max_steps=8").code == 0
    tuned = last(Path("run"))
    kept = {name: tensor for name, tensor in pretrained.items() if not name.startswith("fc.")}
    assert all(torch.equal(tuned.weights[f"network.{name}"], tensor) for name, tensor in kept.items())
    assert json.loads(Path("run/summary.json").read_text(encoding="utf-8"))["step"] == 8


@pytest.mark.slow
def test_a_network_that_asks_for_its_version_is_trained_and_evaluated(in_tmp_path: Path) -> None:
    ok(train_fast("model=mnasnet0_5", "trainer.max_steps=2", "trainer.ema=0.9", "run_dir=run"))
    assert train_fast("model=mnasnet0_5", "model.init_from=run", "trainer.max_steps=1", "run_dir=new").code == 0
    assert run(train, "resume=run", "trainer.max_steps=2").code == 0


# timm's


def timms(name: str = "test_resnet.r160_in1k", **options: Any) -> tuple[Any, dict[str, Tensor]]:
    """timm's network of that name with other weights than a fresh one of ours, and their state."""
    timm = pytest.importorskip("timm")
    network = timm.create_model(name, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01)
    return timm, network.state_dict()


def read_timms(pretrained: Any, normalize: Any = "imagenet", **arguments: Any) -> dict[str, Tensor]:
    spec = {"type": "timm", "name": "test_resnet.r160_in1k", "num_classes": 3, "pretrained": pretrained} | arguments
    shape = spec.pop("shape", (3, 40, 40))
    return read_starting_weights(planned({"network": spec}, shape), None, normalize)


@pytest.mark.parametrize("extension", [".safetensors", ".pth"])
def test_a_file_of_timms_weights_comes_with_a_fresh_head(
    tmp_path: Path, extension: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, state = timms()
    path = tmp_path / f"weights{extension}"
    (safetensors.torch.save_file if extension == ".safetensors" else torch.save)(state, path)
    weights = read_timms(str(path))
    assert {f"network.{name}" for name in state} - weights.keys() == {"network.fc.weight", "network.fc.bias"}
    assert all(torch.equal(tensor, state[name.removeprefix("network.")]) for name, tensor in weights.items())
    printed = capsys.readouterr().out
    assert f"starting weights from {path}: {len(weights)} tensors" in printed
    assert "as initialised (2): fc.weight, fc.bias" in printed
    assert "trained on images normalised by mean (0.5, 0.5, 0.5) and sd (0.5, 0.5, 0.5)" in printed
    half = {"mean": [0.5] * 3, "std": [0.5] * 3}
    assert len(read_timms(str(path), half, num_classes=1000)) == len(state)  # of as many classes the head comes too
    assert "normalised" not in capsys.readouterr().out


def test_timms_weights_are_fitted_to_channels_and_size_as_timm_does(tmp_path: Path) -> None:
    timm, state = timms("test_vit.r160_in1k")
    path = tmp_path / "vit.safetensors"
    safetensors.torch.save_file(state, path)
    weights = read_timms(str(path), name="test_vit.r160_in1k", shape=(1, 32, 48))
    theirs = timm.create_model(
        "test_vit",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(path)},
        num_classes=3,
        in_chans=1,
        img_size=(32, 48),
    ).state_dict()
    assert {f"network.{name}" for name in theirs} - weights.keys() == {"network.head.weight", "network.head.bias"}
    assert all(torch.equal(tensor, theirs[name.removeprefix("network.")]) for name, tensor in weights.items())


def test_timms_own_weights_are_asked_of_the_hub_as_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    _, state = timms()
    asked: list[Any] = []

    def from_hub(*arguments: Any, **options: Any) -> dict[str, Tensor]:
        asked.append((arguments, options.get("weights_only")))
        return dict(state)

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", from_hub)
    weights = read_timms(True)
    assert asked == [(("timm/test_resnet.r160_in1k",), True)]
    assert torch.equal(weights["network.conv1.0.weight"], state["conv1.0.weight"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"pretrained: expected true, false or a file of weights, received '.*w.pth': no such file"),
        ({"conv1.0.weight": Path("/")}, r"pretrained: the weights cannot be read: .*weights_only=True"),
        ({"conv1.0.weight": torch.zeros(1)}, r"pretrained: the weights cannot be read: "),
    ],
)
def test_a_file_of_timms_that_does_not_fit_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    timms()
    path = tmp_path / "w.pth"
    if content:
        torch.save(content, path)
    with pytest.raises(ConfigError, match=rf"model\.blocks\.network\.{message}"):
        read_timms(str(path))


@pytest.mark.slow
def test_a_run_from_timms_weights_freezes_evaluates_and_resumes(in_tmp_path: Path) -> None:
    _, state = timms()
    safetensors.torch.save_file(state, "weights.safetensors")
    ok(
        train_fast(
            "model=timm/test_resnet.r160_in1k",
            "model.blocks.network.pretrained=weights.safetensors",
            'model.freeze=["network.conv1", "network.bn1", "network.layer*"]',
            "schedule=constant",
            "trainer.max_steps=1",
            "run_dir=run",
        )
    )
    Path("weights.safetensors").unlink()
    ok(run(evaluate, "run=run"))
    ok(run(train, "resume=run", "trainer.max_steps=2"))
    tuned = last(Path("run")).weights
    grey = state["conv1.0.weight"].sum(1, keepdim=True)  # what timm makes of the three channels for one
    torch.testing.assert_close(tuned["network.conv1.0.weight"], grey)
    assert torch.equal(tuned["network.layer4.0.conv1.weight"], state["layer4.0.conv1.weight"])


@pytest.mark.slow
def test_the_filters_of_timms_first_convolution_are_drawn(in_tmp_path: Path) -> None:
    timms()
    ok(train_fast("model=timm/test_resnet", "trainer.max_steps=1", "run_dir=run"))
    ok(run(evaluate, "run=run", "layers=[network.conv1.0]"))
    assert [*Path("run/figures").glob("filters-network.conv1.0-*.png")]


def test_a_saved_config_cannot_send_timm_to_a_hub_or_a_file(finished: Path) -> None:
    pytest.importorskip("timm")
    config = yaml.safe_load((finished / "config.yaml").read_text(encoding="utf-8"))
    for name in ("hf-hub:some/one", "local-dir:/tmp"):
        config["model"]["blocks"] = {"network": {"type": "timm", "name": name, "num_classes": "classes"}}
        (finished / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        answer = run(evaluate, f"run={finished}")
        assert answer.code == 2
        assert f"model.blocks.network.name: timm has no network '{name}'" in answer.err


def test_weights_that_are_not_finite_are_refused_where_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "nan.safetensors"
    weights = tensors()
    weights["conv1.weight"][0, 0, 0, 1] = torch.nan
    safetensors.torch.save_file(weights, path)
    with pytest.raises(ConfigError, match=r"model.init_from: nan or inf in conv1.weight of .*nan.safetensors"):
        read(path)
    assert "conv1.weight" not in read(path, map={"conv1": None})  # what is left out may be anything
