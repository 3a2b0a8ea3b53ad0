"""`auto` in `data` and `trainer`, resolved while a config is checked."""

from pathlib import Path
from typing import Any

import pytest
from commands import composed, ok, run
from fast_run import train_fast
from image_folders import write_folders
from omegaconf import OmegaConf

from cnnlab.cli import train
from cnnlab.components import Trust
from cnnlab.config.auto import auto_batch_size, auto_decay, auto_epochs, auto_monitor
from cnnlab.config.check import check_config
from cnnlab.config.run_plan import RunPlan
from cnnlab.runtime.errors import ConfigError

AUTO = ("data.batch_size=auto", "trainer.epochs=auto", "trainer.ema=auto", "trainer.monitor=auto")


def plan(*overrides: str, **data: Any) -> RunPlan:
    config = composed(*overrides)
    config["data"] |= data
    return check_config(config, Trust())


@pytest.mark.parametrize(
    ("images", "size"), [(1, 1), (5, 5), (300, 16), (1800, 16), (5000, 32), (10_000, 64), (20_000, 128), (10**6, 128)]
)
def test_a_batch_is_a_power_of_two_within_the_set(images: int, size: int) -> None:
    assert auto_batch_size(images) == size


def test_more_images_train_for_more_steps_in_fewer_epochs() -> None:
    counts = [10 * 2**power for power in range(18)]
    epochs = [auto_epochs(count) for count in counts]
    assert epochs == sorted(epochs, reverse=True)
    shown = [count * chosen for count, chosen in zip(counts, epochs, strict=True)]
    assert shown == sorted(shown)
    assert auto_epochs(10**9) == 3


def test_the_average_spans_a_twentieth_of_the_steps() -> None:
    assert [auto_decay(steps) for steps in (1, 400, 2000, 10**6, None)] == [0.5, 0.95, 0.99, 0.999, 0.999]


def test_few_validation_images_choose_no_checkpoint_unless_one_has_to_be_chosen() -> None:
    assert [auto_monitor(count) for count in (0, 1999, 2000)] == [None, None, "accuracy/val"]
    assert [auto_monitor(count, is_needed=True) for count in (0, 1)] == [None, "accuracy/val"]
    assert plan(*AUTO, "trainer.patience=3").settings.monitor == "accuracy/val"


def test_every_auto_becomes_a_value_that_trains_and_is_explained() -> None:
    found = plan(*AUTO)
    assert found.auto.values == {
        "data.batch_size": 16,
        "trainer.epochs": 50,
        "trainer.ema": 0.995,
        "trainer.monitor": None,
    }
    assert found.auto.lines == [
        "auto: data.batch_size=16, trainer.epochs=50, trainer.ema=0.995; for 1,257 training images",
        "auto: trainer.monitor=null, the last weights count; for 180 validation images",
    ]
    assert found.data.batch_size == 16
    assert (found.settings.epochs, found.settings.ema, found.settings.monitor) == (50, 0.995, None)
    assert found.total_steps == 50 * (1257 // 16)


def test_a_value_that_is_given_wins_and_the_others_follow_it() -> None:
    found = plan(*AUTO, "data.batch_size=100", "trainer.max_steps=40")
    assert found.auto.values == {"trainer.epochs": 50, "trainer.ema": 0.5, "trainer.monitor": None}
    assert plan().auto.values == {}
    assert plan(*AUTO, "trainer.lookahead={every: 5}").settings.ema is None


def test_no_validation_split_has_no_monitor() -> None:
    found = plan(*AUTO, "data.validation.count=0")
    assert found.settings.monitor is None
    assert found.auto.lines[1] == "auto: trainer.monitor=null, the last weights count; for 0 validation images"


def test_every_fold_trains_by_the_same_numbers(tmp_path: Path) -> None:
    root = write_folders(tmp_path, {"cat": 20, "dog": 21})
    settings = ("data=image_folder", f"data.root={root}", "data.test_fraction=0", *AUTO[1:])
    folds = [plan(*settings, folds=3, fold=fold) for fold in range(3)]
    assert [fold.data.train_count(fold.spec) for fold in folds] == [27, 27, 28]
    assert [fold.auto.values for fold in folds] == [folds[0].auto.values] * 3
    assert folds[0].auto.values["data.batch_size"] == 16


def test_three_images_a_class_train_in_one_batch(tmp_path: Path) -> None:
    root = write_folders(tmp_path, {"cat": 3, "dog": 3})
    found = plan("experiment=images", f"data.root={root}")
    assert (found.data.batch_size, found.spec.counts) == (4, {"train": 5, "test": 1})
    assert found.steps_per_epoch == 1


def test_impossible_splits_are_reported_once_and_not_as_a_matter_of_auto(tmp_path: Path) -> None:
    root = write_folders(tmp_path, {"cat": 3, "dog": 3})
    with pytest.raises(ConfigError, match=r"^data.validation.count: expected fewer than the 5 [^\n]*$"):
        plan("experiment=images", f"data.root={root}", "data.validation.count=5")
    with pytest.raises(ConfigError, match=r"^data.root: expected a folder for each class, two or more, [^\n]*$"):
        plan("experiment=images", f"data.root={write_folders(tmp_path / 'one', {'cat': 3})}")


@pytest.mark.parametrize("word", ["data.batch_size=atuo", "trainer.epochs=atuo", "trainer.ema=atuo"])
def test_any_other_word_is_no_number(word: str) -> None:
    key = word.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"^{key}: expected a [^\n]*number[^\n]*, received 'atuo'$"):
        plan(word)


def test_the_numbers_are_in_the_config_of_a_run_and_auto_resumes_it(in_tmp_path: Path) -> None:
    root = write_folders(in_tmp_path / "images", {"cat": 12, "dog": 12})
    own = ("data=image_folder", f"data.root={root}", *AUTO, "trainer.max_steps=2", "run_dir=run", "resume=auto")
    printed = ok(train_fast(*own)).out
    assert "auto: data.size=16; the shorter side of 22 images looked at has 8 pixels\n" in printed
    assert printed.count("\nauto: ") == 3
    saved = OmegaConf.load("run/config.yaml")
    assert (saved.data.size, saved.data.batch_size, saved.trainer.epochs) == (16, 16, 100)
    assert "run is complete" in ok(train_fast(*own)).out
    assert "run is complete" in ok(run(train, "resume=run", "data.size=auto")).out
