"""`data.inspect=FOLDER`: a look at the data before training."""

import shutil
from pathlib import Path

import pytest
from commands import Answer, ok, run
from fast_run import read_json
from image_folders import noise, write_folders, write_image

from cnnlab.cli import train
from cnnlab.data.image_folder import ImageFolder
from cnnlab.run.inspection_files import folder_for_inspection
from cnnlab.runtime.errors import ConfigError

HOSTILE = "<img src=x onerror=alert(1)>"
SMALL = ("data=image_folder", "data.root=mine", "data.size=16", "data.batch_size=8", "data.test_fraction=0")


def inspect(*overrides: str) -> Answer:
    return run(train, *SMALL, "data.inspect=seen", *overrides)


@pytest.fixture
def folder(in_tmp_path: Path) -> Path:
    """Two classes with 6 and 30 images to train on, one image in train and test, one that is none."""
    root = write_folders(
        in_tmp_path / "mine", {f"train/{HOSTILE}": 6, "train/b": 30, f"test/{HOSTILE}": 2, "test/b": 1}, 16
    )
    shutil.copy(root / "train" / "b" / "003.png", root / "test" / "b" / "copy.png")
    write_image(root / "train" / "b" / "large.png", noise(40, 60, seed=7))
    (root / "train" / "b" / "broken.png").write_bytes((root / "train" / "b" / "004.png").read_bytes()[:200])
    return root


def test_the_page_shows_counts_files_duplicates_and_images(folder: Path) -> None:
    answer = ok(
        inspect(
            "data.validation.count=0",
            "trainer.monitor=null",
            "trainer.max_steps=0",
            "data.augment={flip: random_horizontal_flip}",
        )
    )
    assert "files: 1 cannot be read: " in answer.out
    assert "duplicates: 1 group of 2 images; in 1 they are equal to the bit" in answer.out
    assert "1 of 4 test images (25.0%) are in train, too" in answer.out
    assert f"classes: 31 training images of b and 6 of {HOSTILE}: data.sampling=balanced" in answer.out
    found = read_json(Path("seen/inspection.json"))
    assert found["classes"] == {HOSTILE: {"train": 6, "test": 2}, "b": {"train": 31, "test": 2}}
    assert found["duplicates"] == [
        {
            "exact": True,
            "images": [
                {"split": "train", "file": "train/b/003.png", "class": "b"},
                {"split": "test", "file": "test/b/copy.png", "class": "b"},
            ],
        }
    ]
    assert "broken.png" in found["unreadable"]["train"][0]
    assert found["files"]["largest"] == "60 × 40"
    assert found["files"]["files"] == "42 (PNG 42)"  # the broken one has a header
    page = Path("seen/index.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;</td>") == 1
    assert "http" not in page  # self-contained
    assert sorted(path.name for path in Path("seen").iterdir()) == [
        "augmented.png",
        "class-000.png",
        "class-001.png",
        "duplicates.png",
        "index.html",
        "inspection.json",
    ]
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_run_inspects_once_and_resumes_without_it(folder: Path) -> None:
    (folder / "train" / "b" / "broken.png").unlink()
    short = ("trainer.epochs=null", "trainer.snapshot_every_epochs=null", "observers=quiet", "run_dir=run")
    ok(inspect("trainer.max_steps=2", "schedule=constant", *short))
    assert Path("seen/index.html").exists()
    for name in ("config.yaml", "overrides.yaml"):
        assert "inspect" not in Path("run", name).read_text(encoding="utf-8")
    ok(run(train, "resume=run", "trainer.max_steps=3"))
    assert read_json(Path("run/summary.json"))["step"] == 3


def test_images_in_memory_are_inspected(in_tmp_path: Path) -> None:
    ok(run(train, "data=digits", "data.inspect=seen", "trainer.max_steps=0"))
    found = read_json(Path("seen/inspection.json"))
    assert sum(counts["train"] + counts["val"] + counts["test"] for counts in found["classes"].values()) == 1797
    assert found["files"] == {}
    assert "compared exactly alone" in found["summary"][0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("mine", "exists and is a folder: expected a folder that does not exist yet"),
        ("a_file", "exists and is a file"),
        ("", "exists and is a folder"),
        ("mine/train/seen", "is inside data.root, mine, and would become a part of the data"),
        ("elsewhere/../mine/seen", "is inside data.root"),
        ("a_file/seen", "cannot be made"),
        ("bad\0name", "cannot be made"),
    ],
)
def test_a_folder_that_cannot_be_made_is_refused(given: str, expected: str, in_tmp_path: Path) -> None:
    Path("a_file").touch()
    Path("mine").mkdir()
    with pytest.raises(ConfigError, match=f"^data.inspect: .*{expected}"):
        folder_for_inspection(given, "mine")
    assert sorted(path.name for path in in_tmp_path.iterdir()) == ["a_file", "mine"]


def test_a_sweep_inspects_nothing(in_tmp_path: Path) -> None:
    answer = run(train, "-m", "data.inspect=seen", "seed=1,2")
    assert (answer.code, answer.err.partition(": the data")[0]) == (2, "error: data.inspect")
    assert not list(in_tmp_path.iterdir())


def test_data_of_which_nothing_can_be_read_are_refused(in_tmp_path: Path) -> None:
    for name in ("a", "b"):
        (in_tmp_path / "mine" / name).mkdir(parents=True)
        (in_tmp_path / "mine" / name / "0.png").write_bytes(b"no image")
    source = ImageFolder(root="mine", size=16, channels=3, resize="crop", test_fraction=0)
    with pytest.raises(ConfigError, match="2 of 2 images cannot be read") as refused:
        source.read_readable("train")
    assert str(refused.value).count("its content is no supported image") == 2
