"""Runs on folders of images: what is read, reported and refused."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Answer, composed, ok, run
from fast_run import read_json, train_fast
from image_folders import noise, write_folders, write_image
from PIL import Image

from cnnlab import load
from cnnlab.cli import evaluate, train
from cnnlab.components import Trust
from cnnlab.config.check import check_config
from cnnlab.run.loaders import describe_splits, read_training_data, train_loader

WHOLE = {"train/cat": 12, "train/dog": 8, "val/cat": 3, "val/dog": 4, "test/cat": 4, "test/dog": 5}
CARVED = {"cat": 20, "dog": 20}


def train_on(root: Path, *overrides: str, path: str = "run") -> Answer:
    own = ("data=image_folder", f"data.root={root}", "data.size=8", "data.batch_size=4")
    return train_fast(*own, f"run_dir={path}", *overrides)


def losses(path: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def ready_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A completed run, `run`, beside its `images`. Read it, leave it as it is."""
    path = tmp_path_factory.mktemp("own")
    write_folders(path / "images", WHOLE)
    (path / "images" / "readme.txt").touch()
    answer = ok(train_on(path / "images", path=str(path / "run")))
    (path / "printed").write_text(answer.out)
    return path


@pytest.fixture
def own(ready_run: Path, in_tmp_path: Path) -> Path:
    """A copy of the run and its images, which the config then names."""
    shutil.copytree(ready_run, in_tmp_path, dirs_exist_ok=True)
    config = in_tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(ready_run), str(in_tmp_path)))
    return in_tmp_path


def plan(root: Path, **changes: Any) -> Any:
    config = composed("data=image_folder", f"data.root={root}", "data.size=8", "data.batch_size=4")
    config["data"] |= changes
    return check_config(config, Trust())


def test_the_splits_their_origins_and_files_that_are_not_read_are_described(ready_run: Path, tmp_path: Path) -> None:
    printed = (ready_run / "printed").read_text()
    assert "images: train 20 (train/), val 7 (val/), test 9 (test/)\n" in printed
    assert "extension of an image: 1, such as readme.txt\n" in printed
    write_folders(tmp_path / "pets", CARVED)
    assert describe_splits(plan(tmp_path / "pets")) == (
        "images: train 32 (pets/), val 4 (carved out of train, random), test 4 (10% of pets/)"
    )
    assert describe_splits(plan(tmp_path / "pets", test_fraction=0, limit=8)) == (
        "images: train 8 (pets/), val 4 (carved out of train, random); no test split"
    )


def test_validation_images_are_those_of_their_folder_or_a_fraction_of_each_class(tmp_path: Path) -> None:
    data = read_training_data(plan(write_folders(tmp_path / "whole", WHOLE)))
    assert (data.train.y_N.bincount().tolist(), data.val.y_N.bincount().tolist()) == ([12, 8], [3, 4])
    data = read_training_data(plan(write_folders(tmp_path / "a", CARVED), test_fraction=0, validation={"count": 0.2}))
    assert (data.train.y_N.bincount().tolist(), data.val.y_N.bincount().tolist()) == ([16, 16], [4, 4])


def test_a_run_without_a_test_split_completes_and_reports_it(in_tmp_path: Path) -> None:
    answer = ok(train_on(write_folders(in_tmp_path / "images", CARVED), "data.test_fraction=0"))
    assert "the data have no test split" in answer.out
    assert "evaluate.py run=run split=val" in answer.out
    summary = read_json(in_tmp_path / "run" / "summary.json")
    assert summary["status"] == "completed"
    assert "test" not in summary
    assert run(evaluate, "run=run", "split=val").code == 0
    refused = run(evaluate, "run=run")
    assert refused.code == 2
    assert refused.err.startswith("error: split: the run's data have no test split: expected train or val, received")


def test_a_run_with_neither_names_no_evaluation(in_tmp_path: Path) -> None:
    neither = ("data.test_fraction=0", "data.validation.count=0", "trainer.monitor=null")
    answer = ok(train_on(write_folders(in_tmp_path / "images", CARVED), *neither))
    assert "evaluate.py" not in answer.out


def test_a_changed_validation_or_test_image_is_noticed(own: Path) -> None:
    for split, message in (("val", "the images or labels are not"), ("test", "the test images or labels are not")):
        write_image(own / "images" / split / "cat" / "000.png", noise(8, 8, seed=99))
        answer = run(evaluate, "run=run", f"split={split}")
        assert answer.code == 2
        assert f"data: {message}" in answer.err


def test_other_classes_are_refused_with_the_first_difference(own: Path) -> None:
    for split in ("train", "val", "test"):
        (own / "images" / split / "dog").rename(own / "images" / split / "ant")
    for answer in (run(evaluate, "run=run"), run(train, "resume=run")):
        assert answer.code == 2
        assert "data: class 0 was 'cat' in the run and is 'ant' now (2 and 2 classes)" in answer.err


def test_balanced_sampling_trains_in_another_order(tmp_path: Path) -> None:
    write_folders(tmp_path, WHOLE)

    def order(sampling: str) -> list[int]:
        balanced = plan(tmp_path, sampling=sampling)
        data = read_training_data(balanced)
        return [index for batch in train_loader(balanced, data.train, data.normalization) for index in batch.index_N]

    assert len(order("balanced")) == len(order("shuffle"))
    assert order("balanced") != order("shuffle")


def test_images_that_have_moved_are_found_at_data_root(own: Path) -> None:
    assert run(evaluate, "run=run").code == 0
    before = json.loads(next((own / "run").glob("evaluation-test-*.json")).read_text())
    shutil.move(own / "images", own / "elsewhere")
    lost = run(evaluate, "run=run")
    assert lost.code == 2
    assert "data.root: expected the folder of your images" in lost.err
    ok(run(evaluate, "run=run", "data.root=elsewhere"))
    assert json.loads(next((own / "run").glob("evaluation-test-*.json")).read_text()) == before


def test_an_evaluation_takes_no_other_key_of_the_data(own: Path) -> None:
    answer = run(evaluate, "run=run", "data.size=9")
    assert answer.code == 2
    assert answer.err.startswith("error: data.size: ")


# resident and streaming

STREAMING = ("data.memory_fraction=1e-9", "data.workers=1")


def placement(answer: Answer) -> str:
    return next(line for line in answer.out.splitlines() if line.startswith("data: "))


def test_a_run_that_streams_reports_it_and_learns_the_same_to_the_bit(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CNNLAB_CACHE", str(own / "cache"))
    augmented = "+data.augment={flip: horizontal_flip, move: {type: shift, pixels: 1}}"
    resident, streaming = (train_on(own / "images", augmented, *o, path=p) for p, o in (("a", ()), ("b", STREAMING)))
    assert placement(resident).startswith("data: resident on cpu (6.9 kB, ")  # 36 · 192 bytes
    more = f"data: streaming from {own}/cache with 1 worker (6.9 kB, more than 1e-09 of the "
    assert placement(streaming).startswith(more)
    assert train_on(own / "images", augmented, *STREAMING, "data.workers=0", path="c").code == 0
    assert losses(own / "a") == losses(own / "b") == losses(own / "c")


@pytest.mark.slow
def test_a_run_of_a_larger_machine_is_evaluated_here_and_resumed_with_other_workers(own: Path) -> None:
    assert train_on(own / "images", *STREAMING, path="streaming").code == 0
    config = own / "streaming" / "config.yaml"
    config.write_text(config.read_text().replace("workers: 1", "workers: 5000"))
    assert run(evaluate, "run=streaming").code == 0
    measured = read_json(next((own / "streaming").glob("evaluation-test-*.json")))
    assert measured["accuracy"] == read_json(own / "streaming" / "summary.json")["test"]["accuracy"]
    assert "on 7 images" in run(evaluate, "run=streaming", "split=val").out
    assert "data.workers: expected auto or a whole number from 0 to" in run(train, "resume=streaming").err
    assert run(train, "resume=streaming", "data.workers=0").code == 0


def test_a_cache_that_cannot_be_kept_leaves_no_run(in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folders(in_tmp_path / "images", CARVED)
    monkeypatch.setenv("CNNLAB_CACHE", "/dev/null/cache")
    answer = train_on(root)
    assert answer.code == 2
    assert answer.err.startswith("error: CNNLAB_CACHE: decoded images cannot be kept in /dev/null/cache (")
    assert [path.name for path in in_tmp_path.iterdir()] == ["images"]


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_run_with_its_name(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnlab.data.streaming._Stored.__getitem__", lambda stored, rows: os._exit(7))
    answer = train_on(own / "images", *STREAMING, path="dying")
    assert answer.code == 1
    assert "error: a worker that reads images died (process " in answer.err
    assert ", status 7)" in answer.err
    assert "Traceback" not in answer.err
    assert read_json(own / "dying" / "summary.json")["status"] == "failed"


def test_preprocessing_of_the_weights_is_kept_in_numbers_and_done_again_by_whoever_loads_the_run(
    in_tmp_path: Path,
) -> None:
    timm = pytest.importorskip("timm")
    write_folders(Path("images"), WHOLE, side=30)
    network = ("model=timm/test_resnet.r160_in1k", "data.preprocess=pretrained")
    answer = ok(train_on(Path("images"), *network, "trainer.max_steps=1", "schedule=constant"))
    assert "images as the weights expect them: data.size=160 data.resize=crop data.resize_size=168 " in answer.out
    config = yaml.safe_load(Path("run/config.yaml").read_text(encoding="utf-8"))["data"]
    numbers = {"preprocess": None, "size": 160, "resize_size": 168, "interpolation": "bilinear"}
    assert config | numbers | {"normalize": {"mean": [0.5] * 3, "std": [0.5] * 3}} == config
    file = Path("images/test/dog/000.png")
    transform = timm.data.create_transform(
        **timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg("test_resnet").to_dict())
    )
    predictor = load("run")
    expected = predictor.network(transform(Image.open(file))[None]).softmax(1)[0].tolist()
    assert [*predictor.predict(file)[0].probabilities.values()] == pytest.approx(expected, abs=1e-5)
    ok(run(train, "resume=run", "trainer.max_steps=2"))


# labels in a CSV, folds


def write_csv(root: Path) -> Path:
    """24 images of two classes in six groups, each with two images of either."""
    write_folders(root, {"cat": 12, "dog": 12})
    rows = [f"{label}/{number:03d}.png,{label},p{number // 2}" for label in ("cat", "dog") for number in range(12)]
    (root / "labels.csv").write_text("\n".join(["file_name,label,group", *rows]))
    return root


def edit(root: Path, old: str, new: str) -> None:
    text = (root / "labels.csv").read_text()
    assert old in text
    (root / "labels.csv").write_text(text.replace(old, new))


FOLDS = ("data=csv", "data.size=8", "data.batch_size=4", "data.test_fraction=0", "+data.folds=3")


@pytest.mark.parametrize(
    "edited", [("dog/001.png,dog", "dog/001.png,cat"), ("dog/001.png,dog,p0", "dog/001.png,dog,p9")]
)
def test_an_edited_label_or_group_makes_other_data(tmp_path: Path, edited: tuple[str, str]) -> None:
    config = composed(*FOLDS, f"data.root={write_csv(tmp_path)}", "+data.fold=0")
    before = read_training_data(check_config(config, Trust())).digest
    assert read_training_data(check_config(config, Trust())).digest == before
    edit(tmp_path, *edited)
    assert read_training_data(check_config(config, Trust())).digest != before


def test_the_folds_of_a_run_validate_every_training_image_once(tmp_path: Path) -> None:
    write_csv(tmp_path)
    validated: list[int] = []
    for fold in range(3):
        own = check_config(composed(*FOLDS, f"data.root={tmp_path}", f"+data.fold={fold}"), Trust())
        assert own.data.carved_count(own.spec) == len(read_training_data(own).val)
        assert f"(fold {fold} of 0 to 2, in place of data.validation)" in describe_splits(own)
        validated += read_training_data(own).val.index_N.tolist()
    assert sorted(validated) == list(range(own.spec.counts["train"]))


def test_a_run_of_a_fold_is_evaluated_and_notices_an_edited_label_on_resume(in_tmp_path: Path) -> None:
    root = write_csv(in_tmp_path / "scans")
    ok(train_fast(*FOLDS, f"data.root={root}", "data.fold=1", "run_dir=run"))
    assert "on 8 images" in ok(run(evaluate, "run=run", "split=val")).out
    ok(run(evaluate, "run=run", f"images={root / 'cat'}"))
    edit(root, "dog/001.png,dog", "dog/001.png,cat")
    for answer in (run(evaluate, "run=run", "split=val"), run(train, "resume=run", "trainer.epochs=9")):
        assert answer.code == 2
        assert "the images or labels are not those that the run was trained with" in answer.err
