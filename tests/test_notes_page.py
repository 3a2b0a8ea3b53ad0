"""The walk through the notes says what was found, and what needs no training is found again."""

import pytest
from laboratory.shown import Shown
from make_notes import CONCEPTS, PAGE, PICTURES, page, read_results, section

WITHOUT_RUNS = (
    "planted_filter",
    "stride",
    "padding",
    "dropout",
    "four_steps",
    "sigmoid",
    "quadratic_cost",
    "why_a_cost",
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


def test_every_picture_of_the_page_is_there_and_no_other() -> None:
    named = {file for found in read_results().values() for file in found["pictures"]}
    assert named == {path.name for path in PICTURES.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("concept", WITHOUT_RUNS)
def test_a_concept_that_needs_no_training_holds_here(concept: str) -> None:
    claims = CONCEPTS[concept]().claims
    assert len(claims) >= 2
    assert [claim for claim in claims if not claim.holds] == []


def test_a_claim_that_does_not_hold_is_told() -> None:
    shown = Shown(["make notes"])
    shown.claim("two and two", 4, 5)
    found = {"commands": shown.commands, "text": "", "pictures": [], "claims": [vars(c) for c in shown.claims]}
    assert "| two and two | 4 | 5 **missed** |" in section(found)
