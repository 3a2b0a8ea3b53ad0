"""The walk through the notes shows what was found, and what needs no training is found again."""

import shlex
from pathlib import Path

import pytest
import yaml
from laboratory.shown import Shown, signed
from make_notes import CONCEPTS, IMAGES, PAGE, STYLE, kept, page, read_results, section
from matplotlib import style
from matplotlib.figure import Figure
from PIL import Image

import cnnlab
from cnnlab.config.compose import CONFIGS

WITHOUT_RUNS = (
    "planted_filter",
    "stride",
    "padding",
    "dropout",
    "four_steps",
    "sigmoid",
    "quadratic_cost",
    "why_a_cost",
    "weight_sharing",
    "receptive_field",
    "pooling",
)


def test_the_page_is_what_follows_from_the_results() -> None:
    assert PAGE.read_text() == page(read_results())


def test_every_concept_was_found_to_hold() -> None:
    missed = [
        (name, claim["what"])
        for name, found in read_results().items()
        for claim in found["claims"]
        if not claim["holds"]
    ]
    assert missed == []
    assert set(read_results()) == set(CONCEPTS)


def test_every_command_can_be_followed() -> None:
    """Each training has a directory of its own, which the evaluations name, and every key is one of the commands'."""
    commands = [shlex.split(line)[1:] for line in PAGE.read_text().splitlines() if line.startswith("python ")]
    run_dirs = [word.removeprefix("run_dir=") for command in commands for word in command if "run_dir=" in word]
    assert len(run_dirs) == len(set(run_dirs)) > 10
    trained = {tuple(one for one in given if "run_dir=" not in one) for script, *given in commands if "train" in script}
    for overrides in trained:
        if len(overrides) > 1:  # tests/test_configs.py composes every experiment
            cnnlab.compose(*overrides)
    keys = set(yaml.safe_load((CONFIGS / "evaluate.yaml").read_text()))
    for evaluated in (given for script, *given in commands if "evaluate" in script):
        named = dict(override.split("=", 1) for override in evaluated)
        assert named["run"] in run_dirs
        assert set(named) <= keys


def test_every_image_of_the_page_is_there_and_no_other() -> None:
    named = {file for found in read_results().values() for file in found["images"]}
    assert named == {path.name for path in IMAGES.iterdir()}


def test_every_image_is_described_in_a_sentence() -> None:
    alts = [alt for found in read_results().values() for alt in found["images"].values()]
    assert len(alts) == len(set(alts)) > 20
    assert [alt for alt in alts if not (len(alt.split()) > 8 and alt.endswith(".")) or set(alt) & set("[]\n")] == []


def test_an_image_is_written_with_its_description(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("make_notes.IMAGES", tmp_path)
    shown = Shown(["make notes"])
    with style.context(STYLE):
        shown.draw("curve", Figure(), "A curve that rises.")
        found = kept("learning", shown)
    assert found["images"] == {"learning-curve.png": "A curve that rises."}
    assert "![A curve that rises.](notes/learning-curve.png)" in section(found)
    with Image.open(tmp_path / "learning-curve.png") as image:
        assert image.width == 960  # 6.4 inches


def test_a_negative_number_has_a_minus_sign() -> None:
    assert [signed(-0.5), signed(0.5), signed(-1e-6, ".1e")] == ["−0.50", "+0.50", "−1.0e−06"]


@pytest.mark.parametrize("concept", WITHOUT_RUNS)
def test_a_concept_that_needs_no_training_holds_here(monkeypatch: pytest.MonkeyPatch, concept: str) -> None:
    monkeypatch.setattr(Shown, "table", lambda *given: None)  # starts a command, whose output no claim is about
    claims = CONCEPTS[concept]().claims
    assert len(claims) >= 2
    assert [claim for claim in claims if not claim.holds] == []


def test_a_claim_that_does_not_hold_is_marked() -> None:
    shown = Shown(["make notes"])
    shown.claim("two and two", 4, 5)
    found = {"commands": shown.commands, "text": "", "images": {}, "claims": [vars(c) for c in shown.claims]}
    assert "| two and two | 4 | 5 **missed** |" in section(found)


def test_a_run_of_another_command_is_not_taken_for_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laboratory.shown.RUNS", tmp_path)
    (tmp_path / "cnn").mkdir()
    (tmp_path / "cnn" / "overrides.yaml").write_text("[data=mnist, run_dir=/elsewhere]")
    (tmp_path / "cnn" / "summary.json").write_text('{"status": "completed"}')
    assert Shown().train("cnn", "data=mnist") == tmp_path / "cnn"
    with pytest.raises(RuntimeError, match="was made with data=mnist, not data=digits"):
        Shown().train("cnn", "data=digits")
