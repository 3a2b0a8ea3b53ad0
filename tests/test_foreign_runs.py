"""A run directory from a stranger, an edited or a half-written one: one sentence, or the run continues. No harm."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Answer, run
from fast_run import FAST, read_json, train_fast
from image_folders import write_folders
from planted import seal

import cnnlab
from cnnlab.cli import evaluate, train
from cnnlab.engine.checkpoint import MANIFEST
from cnnlab.inference.reporting import cell

pytestmark = pytest.mark.torture(figure="attacks")
NEWEST = Path("run/checkpoints/step-00000006")


@pytest.fixture
def unfinished(finished: Path) -> Path:
    """The copy of a run whose end is not recorded: it resumes from its last checkpoint."""
    (finished / "summary.json").unlink()
    return Path("run")


def resume(*overrides: str) -> Answer:
    return run(train, "resume=run", *overrides)


def assert_refused(answer: Answer, *fragments: str) -> None:
    """One message, status 2, nothing of Python's."""
    assert answer.code == 2, answer.err
    assert answer.err.startswith("error: ")
    assert "Traceback" not in answer.err
    assert [fragment for fragment in fragments if fragment not in answer.err] == [], answer.err


def test_an_untouched_run_continues(unfinished: Path) -> None:
    assert resume().code == 0
    assert read_json(unfinished / "summary.json")["status"] == "completed"


# what would harm


LINKS = [
    ".lock",
    ".lock-holder",
    ".config.yaml.tmp",
    ".summary.json.tmp",
    ".environment.json.tmp",
    ".model.txt.tmp",
    ".model.svg.tmp",
    "metrics.jsonl",
    ".metrics.jsonl.tmp",
    "checkpoints/.writing-best",
    "checkpoints/best",
    ".evaluation-test-step-00000006.json.tmp",
    "figures/confusion-test-step-00000006.png",
    "trace.json",
]


@pytest.mark.parametrize(
    ("command", "name"), [*(("resume", name) for name in LINKS), *(("evaluate", name) for name in LINKS[-3:])]
)
def test_a_planted_link_leads_nobody_out_of_the_run(unfinished: Path, name: str, command: str) -> None:
    outside = Path("outside")
    outside.write_text("untouched", encoding="utf-8")
    place = unfinished / name
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(outside.absolute())
    answer = resume() if command == "resume" else run(evaluate, "run=run")
    assert_refused(answer, f"run/{name} is a link: expected regular files and folders")
    assert outside.read_text(encoding="utf-8") == "untouched"


def test_a_folder_that_is_a_link_is_refused(unfinished: Path) -> None:
    Path("elsewhere").mkdir()
    (unfinished / "figures").symlink_to(Path("elsewhere").absolute())
    assert_refused(run(evaluate, "run=run"), "run/figures is a link")
    assert not list(Path("elsewhere").iterdir())


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("resume", "metrics.jsonl"),
        ("resume", f"{NEWEST.relative_to('run')}/manifest.json"),
        ("evaluate", "checkpoints/best"),
        ("load", "checkpoints/best"),
    ],
)
def test_a_pipe_is_not_waited_for(unfinished: Path, name: str, command: str) -> None:
    (unfinished / name).unlink()
    os.mkfifo(unfinished / name)
    if command == "load":
        with pytest.raises(ValueError, match="no regular file"):
            cnnlab.load("run")
    else:
        answer = resume() if command == "resume" else run(evaluate, "run=run")
        assert_refused(answer, f"run/{name} is no regular file")


def test_overrides_are_text_that_nothing_resolves(unfinished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    (unfinished / "overrides.yaml").write_text("- name=${oc.env:SECRET}\n- '${name}'\n")
    answer = resume()
    assert "hunter2" not in answer.out + answer.err
    assert all(b"hunter2" not in path.read_bytes() for path in unfinished.rglob("*") if path.is_file())
    written = yaml.safe_load((unfinished / "overrides.yaml").read_text())
    assert written[:2] == ["name=${oc.env:SECRET}", "${name}"]


@pytest.mark.parametrize("name", ["config.yaml", "overrides.yaml"])
def test_aliases_are_not_expanded(unfinished: Path, name: str) -> None:
    levels = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 30)]
    text = "\n".join(levels) if name == "config.yaml" else "- &a [x]\n- [*a, *a]\n"
    (unfinished / name).write_text(text)
    assert_refused(resume(), f"run/{name}: expected no YAML aliases")


def test_a_class_name_reaches_neither_the_terminal_nor_a_spreadsheet_as_a_command(unfinished: Path) -> None:
    body = json.loads((NEWEST / MANIFEST).read_text())["manifest"]
    body["meta"]["class_names"] = [f"\x1b]0;{name}\x07" for name in body["meta"]["class_names"]]
    for folder in Path("run/checkpoints").glob("step-*"):
        seal(folder, {**json.loads((folder / MANIFEST).read_text())["manifest"], "meta": body["meta"]})
    Path("images").mkdir()
    write_folders(Path("images"), {"all": 3}, side=8)
    answer = run(evaluate, "run=run", "images=images")
    assert answer.code == 0, answer.err
    assert "\x1b" not in answer.out


@pytest.mark.parametrize("text", ["=1", "+1+1", "-1", "@a", "\t=1"])
def test_a_cell_is_no_formula(text: str) -> None:
    assert cell(text) == f"'{text}"
    assert cell("a=b") == "a=b"


# what would be silent


@pytest.mark.parametrize(
    ("key", "value"), [("optimizer.lr", 0.5), ("seed", 7), ("data.augment.flip", "horizontal_flip")]
)
def test_an_edited_config_is_noticed(unfinished: Path, key: str, value: Any) -> None:
    config = yaml.safe_load((unfinished / "config.yaml").read_text())
    *path, last = key.split(".")
    node = config
    for name in path:
        node = node[name]
    node[last] = value
    (unfinished / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert_refused(resume(), "config.yaml was edited since the last checkpoint")


def test_what_may_change_may_be_edited(unfinished: Path) -> None:
    text = (unfinished / "config.yaml").read_text()
    (unfinished / "config.yaml").write_text(text.replace("log_every: 2", "log_every: 3"))
    assert resume().code == 0


@pytest.mark.parametrize("sd", [[0], [], ["a"], [float("inf")]], ids=str)
def test_a_planted_normalization_is_refused(unfinished: Path, sd: list[Any]) -> None:
    for folder in Path("run/checkpoints").glob("step-*"):
        body = json.loads((folder / MANIFEST).read_text())["manifest"]
        body["meta"]["normalization"]["sd_C"] = sd
        seal(folder, body)
    assert_refused(run(evaluate, "run=run"), "normalization", "expected")


# what would be a dead end


def test_a_run_that_is_killed_while_it_reads_its_data_starts_again(in_tmp_path: Path) -> None:
    write_folders(in_tmp_path / "images", {"cat": 30, "dog": 30}, side=16)
    program = (
        "import os, signal, cnnlab.data.image_files as files\n"
        "files.ImageReader.read_each = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from cnnlab.cli import train; train()"
    )
    overrides = (FAST, "data=image_folder", "data.root=images", "data.size=8", "data.batch_size=8", "run_dir=run")
    killed = subprocess.run([sys.executable, "-c", program, *overrides], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in Path("run").iterdir() if not path.name.startswith(".")] != []
    answer = resume()
    assert answer.code == 0, answer.err
    assert "has no checkpoint yet: starting this run again" in answer.out
    assert read_json(Path("run/summary.json"))["status"] == "completed"


def test_a_refused_run_leaves_no_directory(in_tmp_path: Path) -> None:
    write_folders(in_tmp_path / "images", {"cat": 30, "dog": 30}, side=16)
    (in_tmp_path / "images" / "cat" / "000.png").write_bytes(b"no image")
    answer = run(
        train, FAST, "data=image_folder", "data.root=images", "data.size=8", "data.batch_size=8", "run_dir=run"
    )
    assert_refused(answer, "000.png")
    assert not Path("run").exists()


@pytest.mark.parametrize("text", ["{", "[1]", "3", "\x00", '{"status": 1e999}', ""], ids=repr)
def test_a_damaged_summary_is_answered_or_the_run_continues(unfinished: Path, text: str) -> None:
    (unfinished / "summary.json").write_text(text)
    answer = resume()
    assert answer.code in (0, 2)
    assert "Traceback" not in answer.err
    if answer.code == 0:
        assert read_json(unfinished / "summary.json")["status"] == "completed"
    else:
        assert "run/summary.json" in answer.err


@pytest.mark.parametrize("text", [None, "{}", '{"torch": "1.0"}', "[", "[1]", "\x00", ""], ids=repr)
def test_an_environment_that_was_removed_or_edited_is_reported_and_written_again(
    unfinished: Path, text: str | None
) -> None:
    path = unfinished / "environment.json"
    before = read_json(path)
    path.unlink()
    if text is not None:
        path.write_text(text)
    answer = resume()
    assert answer.code == 0
    assert "run/environment.json is not what the checkpoint recorded: it is written again" in answer.out
    assert before.keys() == read_json(path).keys()


@pytest.mark.parametrize("text", ["- [", "a: b", "3", "- {", "[[[[" * 20], ids=repr)
def test_damaged_overrides_are_answered(unfinished: Path, text: str) -> None:
    (unfinished / "overrides.yaml").write_text(text)
    assert_refused(resume(), "run/overrides.yaml: expected")


def test_a_manifest_without_its_keys_is_damage_and_an_older_checkpoint_is_taken(unfinished: Path) -> None:
    seal(NEWEST, {"format": 2, "files": {}})
    answer = resume()
    assert answer.code == 0, answer.err
    assert "set aside" in answer.out


def test_a_deleted_run_stops_with_a_sentence_and_is_not_made_again(in_tmp_path: Path) -> None:
    program = (
        "import shutil, cnnlab.engine.trainer as t\n"
        "save = t.Trainer._save\n"
        "def gone(self, score): shutil.rmtree('run'); save(self, score)\n"
        "t.Trainer._save = gone\n"
        "from cnnlab.cli import train; train()"
    )
    ended = subprocess.run([sys.executable, "-c", program, FAST, "run_dir=run"], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "error: the checkpoint of step 3 could not be written" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not Path("run/checkpoints").exists()


def test_a_signal_while_the_test_split_is_measured_leaves_a_run_that_resumes(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(finished)
    from cnnlab.run import training

    read = training.read_split

    def interrupted(plan: Any, split: str) -> Any:
        if Path("run/summary.json").exists():  # not the first reading, before training
            os.kill(os.getpid(), signal.SIGTERM)
        return read(plan, split)

    with monkeypatch.context() as patch:
        patch.setattr(training, "read_split", interrupted)
        assert train_fast("run_dir=run").code == 143
    assert "test" not in read_json(Path("run/summary.json"))
    assert resume().code == 0
    assert "accuracy" in read_json(Path("run/summary.json"))["test"]


@pytest.mark.slow
def test_a_second_signal_of_the_other_kind_stops_at_once(in_tmp_path: Path) -> None:
    program = (
        "import time, cnnlab.engine.trainer as t\n"
        "def slow(self, score): print('saving', flush=True); time.sleep(60)\n"
        "t.Trainer._save = slow\n"
        "from cnnlab.cli import train; train()"
    )
    command = [sys.executable, "-c", program, FAST, "run_dir=run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        assert any("saving" in line for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        time.sleep(1.2)  # what comes sooner is the same request, sent to all processes
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(30)
        assert time.monotonic() - begun < 10
    assert process.returncode == -signal.SIGINT
