import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import Answer, run
from fast_run import read_json, train_fast

from cnnlab.assembly import evaluate
from cnnlab.data.source import Pictures


def measured(path: Path, split: str, step: int) -> dict[str, Any]:
    return read_json(path / f"evaluation-{split}-step-{step:08d}.json")


def best_step(path: Path) -> int:
    step = read_json(path / "summary.json")["best"]["step"]
    assert isinstance(step, int)
    return step


def ask(path: Path, *overrides: str) -> Answer:
    return run(evaluate, f"run={path}", *overrides)


def last_validation(path: Path) -> dict[str, float]:
    entries = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return {name: [e for e in entries if e["split"] == "val"][-1][name] for name in ("loss", "accuracy")}


def figures(result: dict[str, Any]) -> dict[str, float]:
    return {name: result[name] for name in ("loss", "accuracy")}


def same(values: dict[str, float]) -> Any:
    """The same pictures were right; the loss is summed picture by picture there, batch by batch here."""
    return {"accuracy": values["accuracy"], "loss": pytest.approx(values["loss"], rel=1e-6)}


def test_the_test_split_gives_what_the_run_measured(finished: Path) -> None:
    assert ask(finished).code == 0
    result = measured(finished, "test", best_step(finished))
    assert figures(result) == same(read_json(finished / "summary.json")["test"])


def test_the_validation_split_gives_what_the_best_had(finished: Path) -> None:
    assert ask(finished, "split=val").code == 0
    best = read_json(finished / "summary.json")["best"]
    result = measured(finished, "val", best["step"])
    assert figures(result) == same({"accuracy": best["accuracy/val"], "loss": best["loss/val"]})


def test_the_last_checkpoint_gives_what_the_last_validation_had(finished: Path) -> None:
    assert ask(finished, "split=val", "checkpoint=last").code == 0
    result = measured(finished, "val", 6)
    assert figures(result) == same(last_validation(finished))


def test_averaged_weights_are_evaluated_where_validation_used_them(in_tmp_path: Path) -> None:
    train_fast("run_dir=run", "trainer.ema=0.9")
    path = in_tmp_path / "run"
    assert ask(path, "split=val", "checkpoint=last").code == 0
    result = measured(path, "val", 6)
    assert figures(result) == same(last_validation(path))


def test_a_checkpoint_is_taken_by_its_step(finished: Path) -> None:
    assert ask(finished, "checkpoint=3").code == 0
    assert measured(finished, "test", 3)["checkpoint"] == "step-00000003"


def test_the_result_is_printed(finished: Path) -> None:
    answer = ask(finished)
    test = read_json(finished / "summary.json")["test"]
    assert f"test: accuracy {test['accuracy']:.4f}, loss {test['loss']:.4f} on 360 pictures" in answer.out
    assert f"step {best_step(finished)}" in answer.out


def test_an_evaluation_changes_no_file_of_the_run(finished: Path) -> None:
    written: set[str] = set()

    def content() -> dict[str, bytes]:
        files = [path for path in finished.rglob("*") if path.is_file() and path.name not in written]
        return {str(path): path.read_bytes() for path in files}

    before = content()
    ask(finished)
    new = {path.name for path in finished.rglob("*") if str(path) not in before and path.is_file()}
    kinds = ("evaluation-", "predictions-", "confusion-", "events.out.tfevents")
    assert len(new) == 5
    assert all(name.startswith(kinds) for name in new)
    written |= new
    assert content() == before


def test_the_pictures_are_normalized_as_in_training(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("measured anew")

    monkeypatch.setattr("cnnlab.data.normalization.Normalization.fit", fail)
    assert ask(finished).code == 0


@pytest.mark.parametrize("which", ["999", "4", "newest"])
def test_a_checkpoint_that_is_not_there_is_answered_with_those_that_are(finished: Path, which: str) -> None:
    answer = ask(finished, f"checkpoint={which}")
    assert answer.code == 2
    assert answer.err.startswith("error: checkpoint: expected best, last or one of the steps 3, 6")
    assert f"received '{which}'" in answer.err


def test_a_split_that_no_run_has_is_refused(finished: Path) -> None:
    answer = ask(finished, "split=train")
    assert answer.code == 2
    assert answer.err.startswith("error: split: expected one of val, test, received 'train'")


def test_a_run_without_a_validation_split_has_none_to_evaluate(in_tmp_path: Path) -> None:
    train_fast("run_dir=run", "data.validation.count=0", "trainer.monitor=null")
    answer = ask(in_tmp_path / "run", "split=val")
    assert answer.code == 2
    assert answer.err.startswith("error: split: the run has no validation split")


def test_a_damaged_checkpoint_is_refused(finished: Path) -> None:
    weights = finished / "checkpoints" / f"step-{best_step(finished):08d}" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    answer = ask(finished)
    assert answer.code == 2
    assert "error: checkpoint: " in answer.err
    assert "model.safetensors is damaged" in answer.err
    assert not list(finished.glob("evaluation-*"))


def test_another_networks_checkpoint_is_refused_with_five_keys(finished: Path, in_tmp_path: Path) -> None:
    train_fast("run_dir=other", "model=mlp")
    shutil.rmtree(finished / "checkpoints")
    shutil.copytree(in_tmp_path / "other" / "checkpoints", finished / "checkpoints")
    answer = ask(finished)
    assert answer.code == 2
    assert "holds another network: " in answer.err
    assert answer.err.count(" is not in the ") == 5
    assert "more" in answer.err


def test_weights_of_another_size_are_told_with_both_sizes(finished: Path, in_tmp_path: Path) -> None:
    train_fast("run_dir=other", "model.blocks.conv3.out_channels=32")
    shutil.rmtree(finished / "checkpoints")
    shutil.copytree(in_tmp_path / "other" / "checkpoints", finished / "checkpoints")
    assert "conv3.weight is [32, 32, 3, 3] in the checkpoint and [64, 32, 3, 3] in the network" in ask(finished).err


def test_a_run_without_a_checkpoint_cannot_be_evaluated(finished: Path) -> None:
    shutil.rmtree(finished / "checkpoints")
    answer = ask(finished)
    assert answer.code == 2
    assert answer.err.startswith("error: checkpoint: ")


def test_changed_data_is_reported(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pictures, "digest", lambda self: "0" * 64)
    answer = ask(finished, "split=val")
    assert "data: " in answer.err
