"""What a GPU does for a run; on a machine without one, nothing of it can be asked."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Answer, run

import cnnlab
from cnnlab.cli import evaluate, train
from cnnlab.components import Trust
from cnnlab.config.check import check_config
from cnnlab.config.saved_config import resolved
from cnnlab.engine import autotune
from cnnlab.run.loaders import read_training_data, train_loader

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
AUGMENT = (
    "data.augment={shift: {type: shift, pixels: 1}, turn: rotation, flip: horizontal_flip, "
    "hole: {type: cutout, size: 2}, light: brightness, contrast: contrast, "
    "jitter: {type: color_jitter, brightness: 0.2, contrast: 0.2}, hide: {type: random_erasing, value: random}, "
    "noise: {type: gaussian_noise, sigma: 0.02}, more: {type: random_affine, degrees: 9, interpolation: bilinear}}"
)


def train_on_cuda(*overrides: str) -> Answer:
    answer = run(train, "experiment=debug/fast", "device=cuda", *overrides)
    assert answer.code == 0, answer.err
    return answer


def environment(run_dir: str) -> dict[str, Any]:
    return json.loads(Path(run_dir, "environment.json").read_text(encoding="utf-8"))


def train_losses(run_dir: str) -> list[float]:
    records = map(json.loads, Path(run_dir, "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [record["loss"] for record in records if record["split"] == "train"]


@pytest.mark.parametrize("captured", ["true", "false"])
def test_a_deterministic_run_repeats_its_bits(in_tmp_path: Path, captured: str) -> None:
    for name in "ab":
        options = ("trainer.deterministic=true", f"trainer.execution.cuda_graph={captured}", "trainer.ema=0.9")
        train_on_cuda(f"run_dir={name}", *options)
    assert train_losses("a") == train_losses("b")


def test_whether_a_step_is_captured_is_timed_and_noted(in_tmp_path: Path) -> None:
    answer = train_on_cuda("run_dir=auto", "trainer.execution.layout=auto", "trainer.execution.cuda_graph=auto")
    assert "cuda_graph" in answer.out
    assert environment("auto")["cuda_graph"] in (True, False)
    assert environment("auto")["device"] == torch.cuda.get_device_name()


@pytest.mark.parametrize("captured", ["true", "false"])
def test_a_resumed_run_ends_with_the_bits_of_an_unbroken_one(in_tmp_path: Path, captured: str) -> None:
    options = ("trainer.deterministic=true", "trainer.execution.layout=channels_last", "trainer.checkpoint_every=2")
    options += (f"trainer.execution.cuda_graph={captured}", "optimizer.momentum=0.9", "trainer.max_steps=6")
    for name in ("whole", "broken"):
        train_on_cuda(f"run_dir={name}", *options)
    checkpoints = sorted(Path("broken", "checkpoints").glob("step-*"))
    for folder in checkpoints[1:]:
        folder.rename(in_tmp_path / folder.name)
    answer = run(train, "resume=broken")
    assert answer.code == 0, answer.err
    assert train_losses("whole")[-1] == train_losses("broken")[-1]


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
@pytest.mark.parametrize("captured", ["auto", "false"])
def test_every_precision_trains(in_tmp_path: Path, precision: str, captured: str) -> None:
    for name in ("fp32", precision):
        options = (f"trainer.execution.precision={name}", f"trainer.execution.cuda_graph={captured}")
        train_on_cuda(f"run_dir={name}", *options, "trainer.execution.layout=channels_last")
    assert train_losses(precision) == pytest.approx(train_losses("fp32"), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("captured", ["auto", "false"])
def test_compiled_steps_train(in_tmp_path: Path, captured: str) -> None:
    for name in ("false", "true"):
        options = (f"trainer.execution.compile={name}", f"trainer.execution.cuda_graph={captured}")
        train_on_cuda(f"run_dir={name}", *options, "trainer.execution.layout=channels_last")
    assert train_losses("true") == pytest.approx(train_losses("false"), rel=1e-3)


@pytest.mark.parametrize("fraction", ["0.5", "0.0000000001"], ids=["resident", "streaming"])
@pytest.mark.parametrize("workers", ["0", "2"])
def test_batches_are_those_of_the_cpu(fraction: str, workers: str) -> None:
    images = {}
    for device in ("cpu", "cuda"):
        settings = (f"device={device}", AUGMENT, "data.batch_size=32", f"data.memory_fraction={fraction}")
        plan = check_config(resolved(cnnlab.compose(*settings, f"data.workers={workers}")), Trust())
        data = read_training_data(plan)
        loader = train_loader(plan, data.train, data.normalization)
        loader.set_epoch(1)
        images[device] = [(batch.x_NCHW.cpu(), batch.target.cpu(), batch.index_N.cpu()) for batch in loader]
        loader.close()
    assert len(images["cpu"]) == len(images["cuda"]) > 10
    for ours, theirs in zip(images["cuda"], images["cpu"], strict=True):
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-3)
        assert all(map(torch.equal, ours[1:], theirs[1:]))


def test_mixed_images_train(in_tmp_path: Path) -> None:
    train_on_cuda("run_dir=run", "data.augment={mixup: mixup}", "loss.label_smoothing=0.1")
    assert all(loss > 0 for loss in train_losses("run"))


def test_a_run_of_the_gpus_is_evaluated_and_resumed_on_the_cpu(in_tmp_path: Path) -> None:
    train_on_cuda("run_dir=run", "trainer.execution.cuda_graph=true", "trainer.execution.layout=channels_last")
    for device in ("cuda", "cpu"):
        answer = run(evaluate, "run=run", f"device={device}")
        assert answer.code == 0, answer.err
    answer = run(train, "resume=run", "trainer.epochs=3", "device=cpu", "trainer.execution.cuda_graph=auto")
    assert answer.code == 0, answer.err


def test_the_slowest_operations_are_the_gpus(in_tmp_path: Path) -> None:
    answer = train_on_cuda("run_dir=run", "trainer.profile=true", "trainer.max_steps=24", "trainer.epochs=null")
    assert "the slowest kernels of a step:" in answer.out
    assert re.search(r"GPU busy: \d", answer.out)
    assert json.loads(Path("run", "trace.json").read_text(encoding="utf-8"))["traceEvents"]


def test_where_memory_is_short_a_way_out_is_named(in_tmp_path: Path) -> None:
    torch.cuda.set_per_process_memory_fraction(1e-4)
    try:
        answer = run(train, "device=cuda", "data.batch_size=1024", "run_dir=run", "trainer.execution.layout=contiguous")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert answer.code == 1
    assert "out of memory at data.batch_size=1024" in answer.err


def test_timing_on_the_gpu_leaves_the_run_alone(in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("trainer.deterministic=true", "trainer.execution.layout=channels_last")
    train_on_cuda("run_dir=given", *options, "trainer.execution.cuda_graph=true")
    monkeypatch.setattr(autotune, "CLEARLY_FASTER", 1e9)  # the captured one is taken however long it takes
    answer = train_on_cuda("run_dir=timed", *options, "trainer.execution.cuda_graph=auto")
    assert "timed on this machine" in answer.out
    assert environment("timed")["cuda_graph"] is True
    assert train_losses("timed") == train_losses("given")
