"""The presets for MNIST and CIFAR-10 keep what they promise."""

import json
from pathlib import Path

import pytest
from commands import composed, ok, run
from image_folders import write_folders
from safetensors.torch import load_file
from torch import nn

from cnnlab.cli import train
from cnnlab.components import Trust
from cnnlab.config.check import check_config
from cnnlab.config.run_plan import RunPlan
from cnnlab.engine.lookahead import Lookahead
from cnnlab.network.freeze import freeze_matching


def parameters(*overrides: str) -> int:
    network = check_config(composed(*overrides), Trust()).network.build()
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_best_networks_parameters_are_fewer_than_half_a_million() -> None:
    assert parameters("experiment=mnist_best") < 500_000


@pytest.mark.slow
@pytest.mark.mnist
def test_the_fast_preset_is_past_98_5_percent_after_one_epoch(in_tmp_path: Path, mnist_root: Path) -> None:
    run_dir = in_tmp_path / "run"
    answer = run(
        train,
        "experiment=mnist_fast",
        f"data.root={mnist_root}",
        "trainer.epochs=1",
        "observers=quiet",
        "device=cpu",
        f"run_dir={run_dir}",
    )
    assert answer.code == 0, answer.err
    assert json.loads((run_dir / "summary.json").read_text())["test"]["accuracy"] > 0.985


@pytest.fixture(scope="module")
def airbench() -> RunPlan:
    return check_config(composed("experiment=cifar_fast"), Trust())


NESTEROV = 1 + 1 / (1 - 0.85)  # the published lr is what a gradient that stays the same moves by


def test_cifar_fast_has_as_many_parameters_and_steps_as_published(airbench: RunPlan) -> None:
    convolutions = 24 * 12 + 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    biases, norms, output = 24, 2 * 2 * (64 + 256 + 256), 256 * 10
    assert sum(row.parameters for row in airbench.network.rows) == convolutions + biases + norms + output == 1_972_792
    assert airbench.total_steps == 476  # ⌈9.9 · (50,000 // 1,024)⌉


def test_cifar_fast_decays_every_parameter_alike_and_moves_the_biases_of_norms_64_times_as_fast(
    airbench: RunPlan,
) -> None:
    optimizer = airbench.build_optimizer(airbench.network.build())
    groups = {name: group for group in optimizer.param_groups for name in group["names"]}
    assert "whiten.weight" not in groups
    for name, group in groups.items():
        scale = 64 if name.endswith("bias") and "norm" in name else 1
        assert group["lr"] == pytest.approx(scale * 11.5 / NESTEROV), name
        assert group["lr"] * group["weight_decay"] == pytest.approx(0.0153 / NESTEROV, rel=1e-5), name
        assert (group["momentum"], group["nesterov"]) == (0.85, True)
    assert {"whiten.bias", "group3.norm2.bias", "output.weight"} <= groups.keys()


def test_cifar_fasts_schedule_is_the_triangle(airbench: RunPlan) -> None:
    optimizer = airbench.build_optimizer(airbench.network.build())
    schedule = airbench.build_schedule(optimizer)
    seen = []
    for _ in range(476):
        seen.append(optimizer.param_groups[0]["lr"] / 1.5)
        optimizer.step()
        schedule.step()
    rising = [0.2 + 0.8 * step / 109 for step in range(109)]  # 109 = ⌊0.23 · 476⌋
    falling = [1 - 0.93 * step / 367 for step in range(367)]
    assert seen == pytest.approx([*rising, *falling], rel=1e-9)


def test_cifar_fast_freezes_the_first_layer_and_the_scales_of_norms(airbench: RunPlan) -> None:
    network = airbench.network.build()
    norms = {f"group{group}.norm{norm}.weight" for group in (1, 2, 3) for norm in (1, 2)}
    for epoch, more in ((0, []), (2, []), (3, ["whiten.bias"]), (9, ["whiten.bias"])):
        freeze_matching(network, airbench.network.freeze, epoch)
        frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
        assert frozen == {"whiten.weight", *norms, *more}


def test_cifar_fasts_slow_weights_keep_most_of_themselves_at_the_end(airbench: RunPlan) -> None:
    assert airbench.settings.lookahead is not None
    lookahead = Lookahead(nn.Linear(1, 1), airbench.settings.lookahead, airbench.total_steps)
    for lookahead.updates in (5, 238, 476):
        assert 1 - lookahead.alpha == pytest.approx(0.95**5 * (lookahead.updates / 476) ** 3)


@pytest.mark.slow
def test_cifar_fast_trains_on_images_in_folders(in_tmp_path: Path) -> None:
    write_folders(in_tmp_path / "images", {f"{split}/{name}": 12 for split in ("train", "test") for name in "ab"})
    options = ("data=image_folder", "data.root=images", "data.batch_size=8", "trainer.epochs=3.5", "run_dir=run")
    ok(run(train, "experiment=cifar_fast", *options, "trainer.keep_every=3", "observers=quiet", "device=cpu"))
    summary = json.loads((in_tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["step"], summary["tta"]) == ("completed", 11, "flip_diagonal")
    assert set(summary["test"]) == {"loss", "accuracy"}
    checkpoints = in_tmp_path / "run" / "checkpoints"
    third, ninth, last = (load_file(checkpoints / f"step-{step:08}" / "model.safetensors") for step in (3, 9, 11))
    assert third["whiten.weight"].equal(last["whiten.weight"])
    assert not third["whiten.bias"].equal(ninth["whiten.bias"])
    assert not ninth["output.weight"].equal(last["output.weight"])
    assert last["group1.norm1.weight"].eq(1).all()
