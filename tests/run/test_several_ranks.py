"""One run by two ranks: the same training as by one, agreed ends, one sentence for what goes wrong on any of them."""

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from commands import run
from fast_run import read_json, train_fast
from image_folders import write_folders
from two_ranks import in_two_ranks, needs_loopback

from cnnlab.cli import evaluate, train
from cnnlab.engine.checkpoint import read_checkpoint

pytestmark = needs_loopback
# without what each rank draws or measures for itself: dropout, and the statistics of batch norm
ALIKE = (
    "model=mlp",
    "~model.blocks.dropout",
    "data.batch_size=41",
    "data.limit=83",  # the last batch has one image, and the second rank none of it
    "data.drop_last=false",
    "trainer.accumulate=2",
    "trainer.ema=0.9",
    "trainer.clip_norm=1",
    "loss.weight=balanced",
    "trainer.log_every=1",
)
IMAGES = ("data=image_folder", "data.root=images", "data.size=8", "data.validation.count=8")
METRICS = ("metrics={f1: {type: f1_score, average: macro}, area: auroc}",)
DRAWN = ("model=cnn", "trainer.log_every=1", "trainer.checkpoint_every=1")
PLAIN_CNN = ("model=cnn", "~model.blocks.dropout1")
CASES = {
    "train:alike": [*ALIKE, "run_dir=alike"],
    "train:unbroken": [*DRAWN, "run_dir=unbroken"],
    "signal": [*DRAWN, "run_dir=stopped"],
    "train:resumed": ["resume=stopped"],
    "nan": [*DRAWN, "run_dir=broken"],
    "data": ["run_dir=missing"],
    "different": ["run_dir=different"],
}
LONG_CASES = {
    "nan:rollback": [*DRAWN, "trainer.on_nonfinite=rollback", "run_dir=rollback"],
    "train:compiled": [*ALIKE, "trainer.execution.compile=true", "run_dir=compiled"],
    "train:lookahead": [*ALIKE, "trainer.ema=null", "trainer.lookahead={every: 2}", "run_dir=lookahead"],
    "train:streaming": [*ALIKE, "data.memory_fraction=1e-9", "data.workers=1", "run_dir=streaming"],
    "train:shared": [*ALIKE, *IMAGES, "data.limit=null", "run_dir=shared"],
    "train:time": [*DRAWN, "trainer.max_time=1e-9", "trainer.profile=true", "run_dir=time"],
    "train:metrics": [*ALIKE, *METRICS, "run_dir=measured"],
    "evaluate": ["run=measured", "split=val"],
    "train:buckets": [*ALIKE, "data.limit=82", "trainer.parallel=ddp", "run_dir=buckets"],
    "train:synchronized": [*PLAIN_CNN, "trainer.sync_batch_norm=true", "run_dir=synchronized"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def answers(folder: Path) -> list[dict[str, Any]]:
    """What every case returned on each rank."""
    return in_two_ranks(CASES, folder)


@pytest.fixture(scope="module")
def long_answers(folder: Path) -> list[dict[str, Any]]:
    write_folders(folder / "images", {"train/cat": 40, "train/dog": 51, "test/cat": 5, "test/dog": 5})
    return in_two_ranks(LONG_CASES, folder)


def entries(run: Path) -> list[dict[str, Any]]:
    left_out = ("seconds", "images_per_second")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in left_out} for line in lines]


def assert_as_one_rank(run: Path, *overrides: str) -> None:
    """Every figure is that of one process with the same config."""
    alone = run.parent / f"{run.name}-alone"
    answer = train_fast(*overrides, f"run_dir={alone}")
    assert answer.code == 0, answer.err
    ours, theirs = entries(run), entries(alone)
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.pop("split"), other.pop("split")) in ((split, split) for split in ("train", "val", "test"))
        assert mine == pytest.approx(other, rel=1e-5, abs=1e-6)


def test_two_ranks_train_as_one(answers: list[dict[str, Any]], folder: Path) -> None:
    """With accumulation, averaged weights, clipping, class weights and a rank without images in every third step."""
    assert [rank["train:alike"]["code"] for rank in answers] == [0, 0]
    assert_as_one_rank(folder / "alike", *ALIKE)


def test_the_first_rank_alone_prints(answers: list[dict[str, Any]]) -> None:
    assert "completed: alike" in answers[0]["train:alike"]["out"]
    assert answers[1]["train:alike"] == {"code": 0, "out": "", "err": ""}


def test_a_run_of_two_ranks_continues_on_one_and_says_so(
    answers: list[dict[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [rank["nan"]["code"] for rank in answers] == [1, 1]
    monkeypatch.chdir(shutil.copytree(folder / "broken", folder / "continued").parent)
    resumed = run(train, "resume=continued")
    assert resumed.code == 0, resumed.err
    assert "ranks was 2 and is 1: the run continues, but not to identical bits" in resumed.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("compiled", ()),
        ("lookahead", ("trainer.ema=null", "trainer.lookahead={every: 2}")),
        ("streaming", ()),
    ],
)
def test_what_computes_or_averages_otherwise_trains_as_one(
    long_answers: list[dict[str, Any]], folder: Path, name: str, overrides: tuple[str, ...]
) -> None:
    assert [rank[f"train:{name}"]["code"] for rank in long_answers] == [0, 0], long_answers
    assert_as_one_rank(folder / name, *ALIKE, *overrides)


@pytest.mark.slow
def test_ranks_that_share_one_copy_of_the_images_train_as_one(
    long_answers: list[dict[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [rank["train:shared"]["code"] for rank in long_answers] == [0, 0], long_answers
    assert "data: one copy for the 2 ranks of this machine, from " in long_answers[0]["train:shared"]["out"]
    monkeypatch.chdir(folder)
    assert_as_one_rank(folder / "shared", *ALIKE, *IMAGES, "data.limit=null")


@pytest.mark.slow
def test_all_ranks_go_back_to_the_last_checkpoint(long_answers: list[dict[str, Any]], folder: Path) -> None:
    assert [rank["nan:rollback"]["code"] for rank in long_answers] == [0, 0], long_answers
    assert read_json(folder / "rollback/summary.json")["skipped"] == [4]


@pytest.mark.slow
def test_a_time_limit_ends_all_ranks_after_the_same_step(long_answers: list[dict[str, Any]], folder: Path) -> None:
    assert [rank["train:time"]["code"] for rank in long_answers] == [0, 0], long_answers
    assert read_json(folder / "time/summary.json")["status"] == "completed"
    assert read_json(folder / "time/summary.json")["step"] < 6


@pytest.mark.slow
def test_two_ranks_merge_what_their_metrics_have_counted(long_answers: list[dict[str, Any]], folder: Path) -> None:
    assert [rank["train:metrics"]["code"] for rank in long_answers] == [0, 0], long_answers
    assert {"f1", "area"} <= entries(folder / "measured")[-1].keys()
    assert_as_one_rank(folder / "measured", *ALIKE, *METRICS)


@pytest.mark.slow
def test_two_ranks_evaluate_as_one(long_answers: list[dict[str, Any]], folder: Path) -> None:
    assert [rank["evaluate"]["code"] for rank in long_answers] == [0, 0], long_answers
    written = sorted((folder / "measured").glob("*val-step*.csv"))
    before = [path.read_text() for path in written]
    assert len(written) == 2
    assert run(evaluate, f"run={folder / 'measured'}", "split=val").code == 0
    assert [path.read_text() for path in written] == before


def test_a_signal_to_one_rank_saves_on_all_and_they_resume_to_the_same_bits(
    answers: list[dict[str, Any]], folder: Path
) -> None:
    assert [rank["signal"]["code"] for rank in answers] == [143, 143]
    assert "interrupted: stopped" in answers[0]["signal"]["out"]
    assert [rank["train:resumed"]["code"] for rank in answers] == [0, 0]
    ours, theirs = (read_checkpoint(folder / run / "checkpoints/step-00000006") for run in ("stopped", "unbroken"))
    assert all(ours.weights[name].equal(theirs.weights[name]) for name in theirs.weights)
    assert entries(folder / "stopped") == entries(folder / "unbroken")


def test_each_rank_draws_its_own_numbers(answers: list[dict[str, Any]], folder: Path) -> None:
    generators = read_checkpoint(folder / "unbroken/checkpoints/step-00000006").state()
    assert len(generators["generators_of_ranks"]) == 1
    assert not generators["generators_of_ranks"][0]["torch"].equal(generators["generators"]["torch"])


def test_a_loss_that_is_not_finite_on_one_rank_ends_all(answers: list[dict[str, Any]], folder: Path) -> None:
    assert [rank["nan"]["code"] for rank in answers] == [1, 1]
    messages = [rank["nan"]["err"] for rank in answers if rank["nan"]["err"]]
    assert len(messages) == 1
    assert "error: the loss of step 4 is not a finite number; its training images are" in messages[0]
    assert read_json(folder / "broken/summary.json")["status"] == "failed"
    assert read_checkpoint(folder / "broken/checkpoints/step-00000003").step == 3


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("data", "error: rank 1 on HOST: data.root: /there is missing\n"),
        ("different", "error: torchrun: seed is 0 on rank 0 and 1 on rank 1 (HOST): expected the same on every rank\n"),
    ],
)
def test_what_is_wrong_on_one_rank_is_one_sentence(
    answers: list[dict[str, Any]], folder: Path, case: str, message: str
) -> None:

    assert [rank[case]["code"] for rank in answers] == [2, 2]
    assert [rank[case]["err"] for rank in answers if rank[case]["err"]] == [
        message.replace("HOST", socket.gethostname())
    ]
    assert not (folder / {"data": "missing"}.get(case, case)).exists()


@pytest.mark.slow
def test_gradients_in_buckets_train_as_one(long_answers: list[dict[str, Any]], folder: Path) -> None:
    assert [rank["train:buckets"]["code"] for rank in long_answers] == [0, 0], long_answers
    assert_as_one_rank(folder / "buckets", *ALIKE, "data.limit=82")


@pytest.mark.slow
def test_a_synchronized_batch_norm_trains_as_one(long_answers: list[dict[str, Any]], folder: Path) -> None:
    assert [rank["train:synchronized"]["code"] for rank in long_answers] == [0, 0], long_answers
    assert_as_one_rank(folder / "synchronized", *PLAIN_CNN)
