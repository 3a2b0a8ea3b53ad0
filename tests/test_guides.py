"""Every command and every program in README.md and the guides is read from the page and run, in the page's order.

README's run in every suite. A guide's trainings pass all the checks that come before a run's directory; the long tests
run them.
"""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from commands import Answer, run
from image_folders import write_folders

from cnnlab.cli import evaluate, train

REPOSITORY = Path(__file__).parents[1]
GUIDES = REPOSITORY / "docs" / "guides"
PAGES = [REPOSITORY / "README.md", *sorted(GUIDES.glob("*.md"))]
PROGRAMS = {"train.py": train, "evaluate.py": evaluate, "cnnlab-train": train, "cnnlab-evaluate": evaluate}
SET_UP = ("python3 -m venv .venv && . .venv/bin/activate", "pip install -e . -c constraints.txt")  # by `make setup`

SHORT = ("trainer.max_steps=6", "trainer.snapshot_every_epochs=null")
LONGER = ("trainer.max_steps=45", "trainer.snapshot_every_epochs=null")  # than the run that is resumed
# too long even so: the config is checked, the layer table printed, and that is all
TABLE_ALONE = (
    "weights=DEFAULT",
    "compile=auto",
    "compile=true",
    "rnn_vs_cnn",
    "model=resnet18",
    "model=timm/",
    "images_pretrained",
    "experiment=book",
)


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of code in a language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """The lines of the shell's blocks, without comments."""
    return [line for block in blocks(page, "sh") for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="session")
def data_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files of MNIST's sizes, full of noise, where torchvision looks for them."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for prefix, count in (("train", 60_000), ("t10k", 10_000)):
        for name, sizes, largest in (("images-idx3", (count, 28, 28), 256), ("labels-idx1", (count,), 10)):
            values = np.resize(np.random.default_rng(0).integers(0, largest, 9_973, dtype=np.uint8), sizes)
            header = bytes([0, 0, 8, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)
            (folder / f"{prefix}-{name}-ubyte").write_bytes(header + values.tobytes())
    return root


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each of two classes, and the same classes in a CSV."""
    root = write_folders(tmp_path_factory.mktemp("images") / "my_images", {"cat": 160, "dog": 160}, side=64)
    paths = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*.png"))]
    rows = [f"{path},{path[:3]},patient{number // 8}\n" for number, path in enumerate(paths)]
    (root / "labels.csv").write_text("".join(["file_name,label,group\n", *rows]))
    return root


@pytest.fixture(scope="session")
def run_of_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "RUN"
    assert run(train, f"run_dir={path}", "trainer.epochs=1", *LONGER).code == 0
    return path


@pytest.fixture
def reader(in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_sets: Path, images: Path) -> Iterator[Path]:
    """The folder in which somebody follows a page, with data of their own."""
    monkeypatch.setenv("CNNLAB_DATA", str(data_sets))
    monkeypatch.syspath_prepend(str(in_tmp_path))
    monkeypatch.setattr("cnnlab.sweep.figures.draw_figures", lambda *_: [])  # seconds, tested with the searches
    shutil.copytree(images, in_tmp_path / "my_images")
    shutil.copytree(images / "cat", in_tmp_path / "FOLDER")
    x_NHW = np.random.default_rng(0).integers(0, 256, (200, 16, 16), dtype=np.uint8)
    np.savez(in_tmp_path / "my_images.npz", x_train=x_NHW, y_train=np.arange(200) % 2)
    return in_tmp_path


def write_files_of(page: Path, folder: Path) -> None:
    """The files whose content a page shows, with their names in a first comment."""
    shown = [*blocks(GUIDES / "compose.md", "yaml"), *blocks(page, "yaml"), *blocks(page, "python")]
    for text in shown:
        name = re.match(r"# (\S+\.(?:py|yaml))\n", text)
        if name:
            (folder / name[1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / name[1]).write_text(text, encoding="utf-8")


def shows_table_alone(arguments: list[str]) -> bool:
    return any(part in argument for part in TABLE_ALONE for argument in arguments)


def shortened(arguments: list[str]) -> list[str]:
    """The overrides of a training, with those that end it early."""
    if {"--cfg", "--help", "--version", "-sc"} & set(arguments) or any(one.startswith("-sc") for one in arguments):
        return arguments
    if shows_table_alone(arguments):
        arguments = [*arguments, "trainer.max_steps=0"]
    elif "trainer.max_steps=0" not in arguments:
        resumed = any(argument.startswith("resume=") for argument in arguments)
        arguments = [*arguments, *(LONGER if resumed else SHORT)]
    arguments = [re.sub(r"^sweep\.n_trials=\d+", "sweep.n_trials=2", argument) for argument in arguments]
    one_process = "-m" in arguments and not any("n_jobs" in argument for argument in arguments)
    return [*arguments, "hydra/launcher=basic"] if one_process else arguments


def answer_of(line: str) -> Answer | None:
    """What a command of a page answers; None for one that another test or the set-up runs."""
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        targets = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{words[1]}:.* ## ", targets, re.MULTILINE), line
        return None
    if line in SET_UP:
        return None
    words = words[1:] if words[0] == "python" else words
    program, arguments = PROGRAMS[words[0]], words[1:]
    return run(program, *(shortened(arguments) if program is train else arguments))


class Checked(BaseException):
    """Raised where a training or a sweep would make its directory."""


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.stem)
def test_every_training_of_a_guide_passes_the_checks(
    page: Path, reader: Path, run_of_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def checked(*_: object) -> None:
        raise Checked

    monkeypatch.setattr("cnnlab.run.files.RunDirectory.create", checked)
    monkeypatch.setattr("cnnlab.sweep.sweeper.make_sweep_directory", checked)
    write_files_of(page, reader)
    shutil.copytree(run_of_digits, reader / "RUN")
    for line in commands(page):
        words = [word for word in shlex.split(line, comments=True) if word != "python"]
        trains = PROGRAMS.get(words[0]) is train and not any(word.startswith("resume=") for word in words)
        if trains:
            try:
                answer = run(train, *words[1:], *["trainer.max_steps=0"] * shows_table_alone(words))
            except Checked:
                continue
            assert answer.code == 0, f"{line}\n{answer.err}"  # the table alone, or help


@pytest.mark.parametrize(
    "page",
    [PAGES[0], *(pytest.param(page, marks=pytest.mark.slow) for page in PAGES[1:])],
    ids=lambda page: page.stem,
)
def test_every_command_of_a_page_works(page: Path, reader: Path, run_of_digits: Path) -> None:
    if page.stem == "export":
        pytest.importorskip("onnxscript")
    if page.stem == "see":
        pytest.importorskip("captum")
    write_files_of(page, reader)
    made = reader / "RUN"
    if page.stem == "own-images":
        answer = run(train, "run_dir=RUN", "data=image_folder", "data.root=my_images", *SHORT)
        assert answer.code == 0, answer.err
    else:
        shutil.copytree(run_of_digits, made)
        shutil.copytree(run_of_digits, reader / "runs" / "digits" / "2026-01-01_00-00-00_abcd")
    for line in commands(page):
        answer_or_none = answer_of(line)
        if answer_or_none is not None:
            assert answer_or_none.code == 0, f"{line}\n{answer_or_none.err}"


def test_the_program_of_the_guide_works(reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = blocks(GUIDES / "python.md", "python")
    shown: dict[str, object] = {}
    exec(program.replace("trainer.epochs=5", "trainer.epochs=1"), shown)
    network = shown["network"]
    (prediction,) = network.predict([next((reader / "FOLDER").iterdir())])  # type: ignore[attr-defined]
    assert sum(prediction.probabilities.values()) == pytest.approx(1)


def answers_shown() -> list[tuple[str, str]]:
    """Commands after a `$`, with what the page says they answer."""
    shown = [block for page in PAGES for block in blocks(page, "") if block.startswith("$ ")]
    return [(block.partition("\n")[0][2:], block.partition("\n")[2]) for block in shown]


@pytest.mark.parametrize(("line", "expected"), answers_shown())
def test_an_answer_is_as_a_page_shows_it(line: str, expected: str, in_tmp_path: Path) -> None:
    words = shlex.split(line)[1:]
    answer = run(PROGRAMS[words[0]], *words[1:])
    pattern = re.escape(expected).replace("…", ".*")
    assert re.fullmatch(pattern, answer.out + answer.err, re.DOTALL), answer.out + answer.err
