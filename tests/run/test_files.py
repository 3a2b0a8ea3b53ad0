import contextlib
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnlab.run.files import RunDirectory
from cnnlab.runtime.errors import ConfigError, TrainingError


def test_a_new_directory_is_named_by_date_and_time(in_tmp_path: Path) -> None:
    directory = RunDirectory.create("digits", None)
    directory.release()
    assert directory.path.parent == Path("runs/digits")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_[0-9a-f]{4}", directory.path.name)


def test_two_runs_of_one_second_have_two_directories(in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.strftime", lambda form: "2020-01-01_00-00-00")
    made = [RunDirectory.create("digits", None) for _ in range(5)]
    for directory in made:
        directory.release()
    assert len({directory.path for directory in made}) == 5


def test_what_exists_is_refused_and_left_as_it_is(in_tmp_path: Path) -> None:
    wanted = in_tmp_path / "run"
    wanted.write_text("mine")
    with pytest.raises(ConfigError, match=f"run_dir: {wanted} exists: .* resume={wanted}"):
        RunDirectory.create("name", wanted)
    assert wanted.read_text() == "mine"


@pytest.mark.parametrize("wanted", ["file/run", "x" * 300, "nul\0"])
def test_a_place_that_cannot_be_written_is_refused(in_tmp_path: Path, wanted: str) -> None:
    (in_tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run_dir: .* cannot be made: .* expected a place to write to"):
        RunDirectory.create("name", Path(wanted))


@pytest.mark.parametrize("there", [[], ["a"], ["a", "a/b"]])
def test_a_discarded_directory_takes_with_it_what_was_made_for_it(in_tmp_path: Path, there: list[str]) -> None:
    for folder in there:
        (in_tmp_path / folder).mkdir()
    RunDirectory.create("name", in_tmp_path / "a" / "b" / "run").discard()
    assert [path.relative_to(in_tmp_path).as_posix() for path in sorted(in_tmp_path.rglob("*"))] == there


def test_a_discarded_directory_leaves_the_run_beside_it(in_tmp_path: Path) -> None:
    one, other = RunDirectory.create("name", None), RunDirectory.create("name", None)
    one.discard()
    other.release()
    assert list((in_tmp_path / "runs" / "name").iterdir()) == [other.path.absolute()]


def refused(path: Path) -> str:
    """The refusal of a run that is in use; the lock that is refused holds no file."""
    second = RunDirectory(path)
    with pytest.raises(ConfigError, match="is in use by") as refusal:
        second.lock()
    assert second._lock is None
    return str(refusal.value)


def test_a_run_in_use_names_its_holder_each_time_until_it_is_released(in_tmp_path: Path) -> None:
    directory = RunDirectory.create("name", in_tmp_path / "run")
    for _ in range(2):  # the refused one does not overwrite the holder's name
        assert f"process {os.getpid()} on " in refused(in_tmp_path / "run")
    directory.release()
    second = RunDirectory(in_tmp_path / "run")
    second.lock()
    second.release()
    assert (in_tmp_path / "run" / ".lock-holder").read_text().count("process") == 1


def test_opening_what_is_not_there_names_the_key_and_the_place(in_tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"resume: .* received 'nowhere'; {in_tmp_path}/nowhere does not exist"):
        RunDirectory.open(Path("nowhere"), "resume")
    with pytest.raises(ConfigError, match=r"resume: .* does not exist"):
        RunDirectory.open(Path("x" * 300), "resume")


def test_opening_a_folder_without_a_config_is_refused(in_tmp_path: Path) -> None:
    (in_tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=r"run: expected a run's directory with a config\.yaml") as refusal:
        RunDirectory.open(in_tmp_path / "folder", "run")
    assert "does not exist" not in str(refusal.value)


def test_a_file_is_replaced_whole(in_tmp_path: Path) -> None:
    directory = RunDirectory(in_tmp_path)
    assert directory.read_json("model.txt") == {}  # as a run that was killed early leaves it
    directory.write_text("model.txt", "a long old text")
    directory.write_text("model.txt", "new")
    assert [(path.name, path.read_text()) for path in in_tmp_path.iterdir()] == [("model.txt", "new")]


def test_a_write_that_fails_leaves_the_old_file(in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = RunDirectory(in_tmp_path)
    directory.write_json("summary.json", {"status": "completed"})

    def full(self: Path, target: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(TrainingError, match=r"summary\.json cannot be written: No space left"):
        directory.write_json("summary.json", {"status": "failed"})
    assert directory.read_json("summary.json") == {"status": "completed"}


@pytest.mark.parametrize("name", [".summary.json.tmp", ".lock", "figures"])
def test_no_link_in_a_run_is_written_through(in_tmp_path: Path, name: str) -> None:
    (in_tmp_path / "elsewhere").mkdir()
    target = in_tmp_path / "elsewhere" / "mine"
    target.write_text("mine")
    (in_tmp_path / "run").mkdir()
    (in_tmp_path / "run" / name).symlink_to(target.parent if name == "figures" else target)
    directory = RunDirectory(in_tmp_path / "run")
    for act in (directory.lock, lambda: directory.write_json("summary.json", {}), lambda: figure(directory)):
        with contextlib.suppress(ConfigError, TrainingError):
            act()
    directory.release()
    assert [path.name for path in target.parent.iterdir()] == ["mine"]
    assert target.read_text() == "mine"


def figure(directory: RunDirectory) -> Path:
    return directory.write_figure("maps.png", np.zeros((2, 3, 3), np.uint8))


def test_a_figure_is_a_png(in_tmp_path: Path) -> None:
    with Image.open(figure(RunDirectory(in_tmp_path))) as image:
        assert (image.format, image.size) == ("PNG", (3, 2))


@pytest.mark.parametrize("content", ["{", "[1]", "[" * 100_000, "\x00", b"\xff\xfe"], ids=range(5))
def test_json_that_a_run_does_not_write_is_refused(in_tmp_path: Path, content: str | bytes) -> None:
    (in_tmp_path / "summary.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=r"summary\.json: expected (a JSON object|JSON as a run writes it)"):
        RunDirectory(in_tmp_path).read_json("summary.json")


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(in_tmp_path: Path) -> None:
    os.mkfifo(in_tmp_path / "summary.json")
    with pytest.raises(ConfigError, match="but it is no regular file"):
        RunDirectory(in_tmp_path).read_json("summary.json")
