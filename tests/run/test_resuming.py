"""What a resumed run compares with its checkpoint."""

from pathlib import Path
from typing import Any

import pytest
from commands import composed
from fast_run import FAST

from cnnlab.components import Trust
from cnnlab.config.check import check_config
from cnnlab.engine.checkpoint import Checkpoint
from cnnlab.run.resuming import changes_of_environment, check_classes, check_data, check_lookahead, check_record
from cnnlab.runtime.errors import ConfigError

ENVIRONMENT = {"data_digest": "a" * 64, "torch": "2.15.0", "threads": 1}


def checkpoint(**meta: Any) -> Checkpoint:
    return Checkpoint(Path("step-00000003"), 3, None, meta, {}, None)


@pytest.mark.parametrize(
    "meta",
    [{}, {"environment": [], "class_names": []}, {"environment": ENVIRONMENT, "class_names": "ab"}],
)
def test_a_checkpoint_without_its_record_is_refused(meta: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="step-00000003 does not record its data and environment"):
        check_record(checkpoint(**meta))


def test_other_data_are_refused_with_both_digests() -> None:
    check_data(checkpoint(environment=ENVIRONMENT), "a" * 64)
    with pytest.raises(ConfigError, match="SHA-256 aaaaaaaaaaaa… then, bbbbbbbbbbbb… now"):
        check_data(checkpoint(environment=ENVIRONMENT), "b" * 64)


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (["cat", "dog", "emu"], "class 2 was missing in the run and is 'emu' now"),
        (["cat"], "class 1 was 'dog' in the run and is missing now"),
    ],
)
def test_other_classes_are_refused_with_the_first_difference(now: list[str], message: str) -> None:
    saved = checkpoint(class_names=["cat", "dog"])
    check_classes(saved, ["cat", "dog"])
    with pytest.raises(ConfigError, match=message):
        check_classes(saved, now)


def test_only_what_may_change_bits_is_reported() -> None:
    now = {"torch": "2.16.0", "platform": None, "device": None, "precision": None, "deterministic": None, "ranks": 1}
    saved = checkpoint(environment=ENVIRONMENT | {"git_commit": "abc"})
    changes = changes_of_environment(saved, {**now, "threads": 1, "git_commit": "def"})
    assert changes == ["torch was 2.15.0 and is 2.16.0: the run continues, but not to identical bits"]


def test_an_alpha_that_follows_the_runs_length_keeps_it() -> None:
    config = composed(FAST, "trainer.lookahead={power: 2}")
    plan = check_config(config, Trust())
    check_lookahead(plan, config["trainer"])
    with pytest.raises(ConfigError, match=r"^trainer.lookahead.power: alpha was made for 4 steps .* received one of 6"):
        check_lookahead(plan, {**config["trainer"], "max_steps": 4})
    constant = check_config(composed(FAST, "trainer.lookahead={every: 2}"), Trust())
    check_lookahead(constant, {**config["trainer"], "lookahead": {"every": 2}, "max_steps": 4})
