"""`python evaluate.py run=RUN images=FOLDER`."""

import csv
import io
import os
import shutil
import sys
from pathlib import Path

import pytest
from commands import Answer, ok, run
from fast_run import train_fast
from image_folders import write_folders

import cnnlab
from cnnlab.cli import evaluate
from cnnlab.components import Trust
from cnnlab.inference.predict_command import predict_images
from cnnlab.inference.saved_run import SavedRun
from cnnlab.runtime.errors import ConfigError

SPLITS = {f"{split}/{name}": count for split, count in (("train", 30), ("test", 12)) for name in ("bird", "cat", "dog")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 8×8 images of three classes, beside its `images`. Read it, leave it as it is."""
    root = tmp_path_factory.mktemp("own")
    images = write_folders(root / "images", SPLITS)
    answer = train_fast(
        "data=image_folder", f"data.root={images}", "data.size=8", "data.batch_size=16", f"run_dir={root / 'run'}"
    )
    assert answer.code == 0, answer.err
    return root


@pytest.fixture
def own(trained: Path, in_tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, in_tmp_path / "own"))


def ask(root: Path, *overrides: str) -> Answer:
    return run(evaluate, f"run={root / 'run'}", *overrides)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def predictions(root: Path, pattern: str = "predictions-images-*.csv") -> list[dict[str, str]]:
    return rows(next((root / "run").glob(pattern)))


def test_unlabelled_images_are_predicted_as_in_their_split(own: Path) -> None:
    assert ask(own).code == 0
    split = {row["path"]: row for row in predictions(own, "predictions-test-*.csv")}
    ok(ask(own, f"images={own / 'images' / 'test'}"))
    found = predictions(own)
    assert len(found) == 36
    for row in found:
        same = split[f"test/{row['path']}"]
        assert row["prediction"] == same["prediction"]
        for column in ("probability", "p(bird)", "p(cat)", "p(dog)"):
            assert float(row[column]) == pytest.approx(float(same[column]), abs=1e-6)


def test_the_data_of_the_run_need_not_be_there(own: Path) -> None:
    shutil.move(own / "images" / "test" / "cat", own / "unlabelled")
    shutil.rmtree(own / "images")
    answer = ok(ask(own, f"images={own / 'unlabelled'}"))
    assert f"12 images of {own / 'unlabelled'}" in answer.out
    assert "and 2 more" in answer.out
    (found,) = cnnlab.load(own / "run").predict(own / "unlabelled" / "000.png")
    assert found.label == predictions(own)[0]["prediction"]
    assert ask(own, f"images={own / 'unlabelled' / '003.png'}").code == 0  # one image is enough
    assert [row["path"] for row in predictions(own, "predictions-images-003*.csv")] == ["003.png"]


def test_test_time_augmentation_has_a_file_of_its_own_and_files_that_are_no_images_are_counted(own: Path) -> None:
    (own / "images" / "test" / "cat" / "notes.txt").write_text("a cat")
    place = f"images={own / 'images' / 'test' / 'cat'}"
    message = "not read: 1 file without an extension of an image, such as notes.txt"
    assert all(message in ask(own, place, tta).out for tta in ("tta=none", "tta=flip"))
    plain, flipped = (predictions(own, f"predictions-images-cat-step-*{end}.csv") for end in ("[0-9]", "-flip"))
    assert [row["path"] for row in plain] == [row["path"] for row in flipped]
    assert [row["probability"] for row in plain] != [row["probability"] for row in flipped]


def test_names_that_are_not_utf_8_are_escaped(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own / "unlabelled"
    shutil.copytree(own / "images" / "test" / "cat", folder)
    (folder / "000.png").rename(folder / os.fsdecode(b"\xff.png"))
    (folder / "001.png").rename(folder / "\x1b[31m.png")
    printed = io.TextIOWrapper(io.BytesIO(), "utf-8")  # refuses what is not UTF-8, as a terminal's stdout does
    monkeypatch.setattr(sys, "stdout", printed)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", f"run={own / 'run'}", f"images={folder}"])
    evaluate()
    printed.flush()
    text = printed.buffer.getvalue().decode()
    assert "\\x1b[31m.png" in text
    assert "\x1b" not in text
    assert [row["path"] for row in predictions(own)][:2] == ["\x1b[31m.png", "002.png"]
    assert predictions(own)[-1]["path"] == "\\udcff.png"


def spoil(own: Path) -> None:
    """Folders and files that are no images."""
    for name in ("empty", "broken", "linked", "letter", "circle"):
        (own / name).mkdir()
    (own / "broken" / "a.png").write_bytes((own / "images/test/cat/000.png").read_bytes()[:150])
    (own / "linked" / "a.png").symlink_to(own / "images/test/cat/000.png")
    (own / "circle" / "self").symlink_to("self")
    (own / "letter" / "a.txt").write_text("dear reader")
    os.mkfifo(own / "pipe")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "images: expected a folder of images or an image.* does not exist"),
        ("x" * 300, "images: expected a folder of images or an image.* does not exist"),
        ("pipe", "images: expected a folder of images or an image.* is neither"),
        ("circle", "images: .*self.* where nothing"),
        ("empty", "images: expected images in .* there is none"),
        ("letter", "images: expected images in .* there is none, but 1 file"),
        ("broken", r"images: .*a\.png.* cannot be decoded"),
        ("linked", r"images: .*a\.png.* leads out of"),
    ],
)
def test_what_cannot_be_predicted_is_refused(own: Path, name: str, message: str) -> None:
    spoil(own)
    before = sorted((own / "run").iterdir())
    saved = SavedRun.open(own / "run", "best", "cpu", Trust(), {})
    with pytest.raises(ConfigError, match=message):
        predict_images(saved, own / name, "none")
    assert sorted((own / "run").iterdir()) == before
