import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import composed, ok, run
from fast_run import read_json, train_fast
from image_folders import write_folders
from safetensors.torch import load_file
from torch import Tensor
from torchvision import models

from cnnlab.cli import evaluate, train
from cnnlab.components import Trust
from cnnlab.config.check import check_config
from cnnlab.engine.trainer import Served, StoppedError, TrainState
from cnnlab.run.features import FeatureCache, may_store_features
from cnnlab.run.loaders import TrainingData, read_training_data, train_loader
from cnnlab.run.train_state import build_train_state
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]
FROZEN = "model.freeze=[conv*,norm*]"
LAYOUT = "trainer.execution.layout=channels_last"
FLIPPED = "+data.augment={flip: horizontal_flip}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Stage:
    """A run's parts up to its first step, with a cache of features, and what it reported."""

    def __init__(self, *overrides: str, freeze: str = FROZEN, stop: Callable[[], bool] = lambda: False) -> None:
        values = composed("experiment=debug/fast", f"+{freeze}", *overrides, LAYOUT)
        self.plan = check_config(values, Trust())
        self.plan = replace(self.plan, features=may_store_features(self.plan))
        self.data: TrainingData = read_training_data(self.plan)
        self.state: TrainState = build_train_state(self.plan)
        self.notices: list[str] = []
        held_out = {"val": self.data.val}
        self.cache = FeatureCache(self.plan, values, self.data, held_out, self.state.network, self.notices.append, stop)

    def serve(self, epoch: int) -> Served | None:
        self.state.begin_epoch(epoch)
        return self.cache(epoch)

    def trained_on(self, epoch: int) -> list[Batch]:
        served = self.serve(epoch)
        assert served
        served.train.set_epoch(epoch)
        return list(served.train)


def tensors(batches: list[Batch]) -> list[list[Any]]:
    return [[batch.x_NCHW.tolist(), batch.target.tolist(), batch.index_N.tolist()] for batch in batches]


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    entries = map(json.loads, (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [{k: v for k, v in entry.items() if k not in ("seconds", "images_per_second")} for entry in entries]


def weights(run_dir: Path, file: str = "model.safetensors") -> dict[str, Tensor]:
    last = (run_dir / "checkpoints" / "last").read_text(encoding="utf-8").strip()
    return load_file(run_dir / "checkpoints" / last / file)


def assert_same_run(one: Path, other: Path) -> None:
    for mine, theirs in zip(metrics(one), metrics(other), strict=True):
        assert mine.pop("split") == theirs.pop("split")
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    torch.testing.assert_close(weights(one), weights(other), rtol=1e-4, atol=1e-5)


def test_a_run_on_features_is_the_run_on_images(in_tmp_path: Path, cache: Path) -> None:
    same = (FROZEN, LAYOUT, "trainer.ema=0.9", "trainer.snapshot_every_epochs=1", "trainer.max_steps=12")
    stored = ok(train_fast("run_dir=stored", *same))
    assert "features: nothing changes before dropout1, so 1,257 training images" in re.sub(r"\s+", " ", stored.out)
    assert len([*cache.glob("*.features")]) == 3  # train, val, and test at the end
    assert "features" not in ok(train_fast("run_dir=images", *same, "trainer.features=false")).out
    assert_same_run(Path("stored"), Path("images"))
    assert read_json(in_tmp_path / "stored" / "environment.json")["features"] is True


def test_batches_hold_what_the_frozen_layers_give_in_the_order_of_the_images() -> None:
    stage = Stage()
    images = train_loader(stage.plan, stage.data.train, stage.data.normalization)
    images.set_epoch(1)
    network, cut = stage.state.network, stage.cache
    for features, batch in zip(stage.trained_on(1), images, strict=True):
        assert features.index_N.tolist() == batch.index_N.tolist()
        assert features.target.tolist() == batch.target.tolist()
        with torch.no_grad():
            expected = cut.phase.cut.features(network, batch.x_NCHW)  # type: ignore[union-attr]
        torch.testing.assert_close(features.x_NCHW, expected)


def test_k_views_repeat_the_augmentation_of_the_first_k_epochs() -> None:
    stage = Stage(FLIPPED, "trainer.features=2", "data.drop_last=false")
    images = train_loader(stage.plan, stage.data.train, stage.data.normalization)
    images.set_epoch(1)
    network, by_epoch = stage.state.network, [by_index(stage.trained_on(epoch)) for epoch in range(4)]
    cut, augmented = stage.cache.phase.cut, by_index(list(images))
    assert cut
    with torch.no_grad():
        expected = cut.features(network, augmented)
    torch.testing.assert_close(by_epoch[1], expected)
    assert torch.equal(by_epoch[0], by_epoch[2])
    assert torch.equal(by_epoch[1], by_epoch[3])
    assert not torch.equal(by_epoch[0], by_epoch[1])


def by_index(batches: list[Batch]) -> Tensor:
    """What an epoch holds for each image, in the order of the images."""
    return torch.cat([batch.x_NCHW for batch in batches])[torch.cat([batch.index_N for batch in batches]).argsort()]


@pytest.mark.parametrize("mend", ["missing", "damaged", "cut", "begun"])
def test_what_is_missing_or_damaged_is_computed_again_with_the_same_bits(
    cache: Path, mend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tensors(Stage().trained_on(0))
    for file in cache.glob("*.features"):
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        if mend == "begun":  # by a run that was killed
            file.with_suffix(".features-part").write_bytes(content)
        if mend in ("missing", "begun"):
            file.unlink()
        else:
            file.write_bytes(content if mend == "damaged" else content[:-3])
    assert tensors(Stage().trained_on(0)) == before
    assert ("damaged" in capsys.readouterr().out) == (mend in ("damaged", "cut"))
    assert not [*cache.glob("*.features-part")]


def test_a_pass_that_is_stopped_continues_where_it_was(cache: Path) -> None:
    whole = tensors(Stage().trained_on(0))
    shutil.rmtree(cache)
    answers = iter([False, True])
    with pytest.raises(StoppedError):
        Stage(stop=lambda: next(answers)).serve(0)
    assert len([*cache.glob("*.features-part")]) == 1
    stage = Stage()
    assert tensors(stage.trained_on(0)) == whole


def test_features_serve_the_epochs_in_which_the_first_layers_are_frozen(cache: Path) -> None:
    stage = Stage(freeze="model.freeze={conv*: {after: 1, until: 3}, norm*: {after: 1, until: 3}}")
    assert [stage.serve(epoch) is not None for epoch in range(4)] == [False, True, True, False]
    assert len(stage.notices) == 1
    before = len([*cache.iterdir()])
    with torch.no_grad():
        next(stage.state.network.parameters()).add_(1)  # as an epoch of training does
    stage.serve(1)
    assert len([*cache.iterdir()]) > before


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], True),
        (["trainer.features=false"], False),
        ([FLIPPED], False),
        ([FLIPPED, "trainer.features=3"], True),
        (["+data.augment={mix: mixup}"], False),
    ],
)
def test_images_that_are_augmented_anew_have_no_stored_features(overrides: list[str], expected: bool) -> None:
    values = composed("experiment=debug/fast", f"+{FROZEN}", *overrides)
    assert may_store_features(check_config(values, Trust())) is expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.features=0"], r"trainer.features: expected auto, false, or how many .*, 1 or more, received 0"),
        (["trainer.features=true"], "received True"),
        (["trainer.features=2", "+model.freeze=[]"], "since no layer is frozen"),
        ([f"+{FROZEN}", "trainer.features=2", "+data.augment={mix: mixup}"], "since data.augment.mix joins images"),
        ([f"+{FROZEN}", "trainer.features=2", "+data.sampling=balanced"], "since an image may come twice in an epoch"),
    ],
)
def test_views_that_cannot_be_stored_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_config(composed("experiment=debug/fast", *overrides), Trust())


@pytest.mark.slow
def test_own_images_are_trained_from_a_file_of_weights_with_the_head_first(in_tmp_path: Path) -> None:
    write_folders(in_tmp_path / "mine", {"cat": 16, "dog": 16}, side=40)
    torch.save(models.resnet18().state_dict(), "resnet18.pth")
    options = ("data.root=mine", "model.blocks.network.pretrained=resnet18.pth", "data.batch_size=8", "run_dir=run")
    answer = ok(
        run(train, "experiment=images_pretrained", *options, "trainer.epochs=3", "model.freeze.backbone.until=2")
    )
    assert "data.size=224 data.resize=crop data.resize_size=256" in re.sub(r"\s+", " ", answer.out)
    assert "nothing changes before network.fc, so 2 views of" in re.sub(r"\s+", " ", answer.out)
    Path("resnet18.pth").unlink()  # the checkpoints are enough
    ok(run(evaluate, "run=run"))
    assert weights(Path("run")).keys() == {f"network.{name}" for name in models.resnet18().state_dict()}


BEGUN = ("run_dir=run", FROZEN, LAYOUT, "trainer.epochs=6", "trainer.checkpoint_every=5", "trainer.ema=0.9")


def start(*overrides: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, str(REPOSITORY / "train.py"), *overrides]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.parametrize("without_cache", [False, True], ids=["cache", "no cache"])
def test_a_run_that_is_killed_resumes_to_the_same_bits(in_tmp_path: Path, cache: Path, without_cache: bool) -> None:
    unbroken = start(*BEGUN[1:], "run_dir=unbroken")
    assert unbroken.wait(timeout=300) == 0
    process = start(*BEGUN)
    deadline = time.monotonic() + 300
    while not [*Path("run/checkpoints").glob("step-0000002*")] and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if without_cache:
        shutil.rmtree(cache)
    resumed = start("resume=run")
    assert resumed.wait(timeout=300) == 0
    assert metrics(Path("run")) == metrics(Path("unbroken"))
    for file in ("model.safetensors", "ema.safetensors"):
        one, other = weights(Path("run"), file), weights(Path("unbroken"), file)
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["model.freeze={conv1: null, norm1: null, conv2: {until: 2}, norm2: {until: 2}, conv3: {until: 1}}"],
        [FROZEN, "trainer.watch_every=7", "trainer.snapshot_every_epochs=2", "trainer.accumulate=2"],
        [FROZEN, "data.sampling=balanced", "data.drop_last=false", "trainer.clip_norm=1"],
        [FROZEN, "trainer.lookahead={every: 5, alpha: 0.5}", "trainer.tta=flip"],
        ["model.freeze={conv*: {after: 2}, norm*: {after: 2}}", "trainer.monitor_test=true"],
    ],
    ids=["gradual", "watched", "balanced", "lookahead", "after"],
)
def test_whatever_a_run_does_it_does_on_features(in_tmp_path: Path, overrides: list[str]) -> None:
    common = (*overrides, LAYOUT, "trainer.epochs=4")
    assert "features: nothing changes" in ok(run(train, "run_dir=stored", *common)).out
    ok(run(train, "run_dir=images", *common, "trainer.features=false"))
    assert_same_run(Path("stored"), Path("images"))


@pytest.mark.slow
def test_features_that_do_not_fit_into_memory_are_streamed_where_they_are_smaller_than_the_images(
    in_tmp_path: Path,
) -> None:
    small = ("data=shapes", "model.blocks.pool={type: adaptive_avg_pool, output_size: 1, after: relu3}", FROZEN)
    common = (*small, LAYOUT, "trainer.max_steps=20", "data.memory_fraction=1e-6")
    assert "features: nothing changes" in ok(run(train, "run_dir=stored", *common)).out
    ok(run(train, "run_dir=images", *common, "trainer.features=false"))
    assert_same_run(Path("stored"), Path("images"))
    refused = ok(run(train, "run_dir=larger", FROZEN, "trainer.max_steps=20", "data.memory_fraction=1e-6"))
    assert "more than the images and than data.memory_fraction" in re.sub(r"\s+", " ", refused.out)
