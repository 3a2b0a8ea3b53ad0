"""What several ranks cannot do together is refused with the key that asks for it."""

from typing import Any

import pytest
from commands import composed

from cnnlab.components import Trust
from cnnlab.config.check import check_config
from cnnlab.config.check_ranks import check_alike, check_ranks
from cnnlab.config.from_python import compose_config
from cnnlab.config.run_config import RunConfig
from cnnlab.runtime.errors import ConfigError


def refusal(monkeypatch: pytest.MonkeyPatch, *overrides: str, **sections: Any) -> str:
    """Of four ranks."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError) as refused:
        check_ranks(check_config(composed("device=cpu", *overrides) | sections, Trust()))
    return str(refused.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batch_size=3", "data.batch_size: expected at least one image for each of the 4 ranks, received 3"),
        ("+data.augment={mix: mixup}", "data.augment.mix: it mixes images of the whole batch"),
        ("trainer.watch_every=5", "trainer.watch_every: a step of 4 ranks cannot be watched: expected null"),
        ("trainer.lr_find=true", "trainer.lr_find: learning rates are tried by one rank, and torchrun has started 4"),
        ("optimizer.lr=auto", "optimizer.lr: learning rates are tried by one rank, and torchrun has started 4"),
    ],
)
def test_what_ranks_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch, override: str, message: str) -> None:
    assert message in refusal(monkeypatch, override)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"reduction": "sum"}, "loss.reduction: expected mean among several ranks, received 'sum'"),
        ({"label_smoothing": 0.1}, None),
    ],
)
def test_a_loss_of_torchs_has_to_be_a_mean(
    monkeypatch: pytest.MonkeyPatch, loss: dict[str, Any], message: str | None
) -> None:
    received = refusal(monkeypatch, "trainer.watch_every=5", loss={"type": "torch.nn.CrossEntropyLoss", **loss})
    assert (message or "loss") in received if message else "loss" not in received


def test_a_batch_norm_needs_more_than_one_image_on_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = {"flatten": "flatten", "norm": "batch_norm", "out": {"type": "linear", "out_features": "classes"}}
    model = composed()["model"] | {"blocks": blocks}
    message = refusal(monkeypatch, "data.batch_size=7", model=model)
    assert "data.batch_size=7 among 4 ranks leaves a single image" in message


@pytest.mark.parametrize("key", ["trainer.parallel=ddp", "trainer.sync_batch_norm=true"])
def test_exchanges_within_the_passes_need_as_many_of_them_on_each_rank(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    # parts of 5 and 4 images make 3 and 4 microbatches
    message = refusal(monkeypatch, key, "data.batch_size=18", "trainer.accumulate=4", "data.drop_last=true")
    assert "a batch of 18 images gives 4 to some and 3 to others" in message
    assert "cannot be compiled" in refusal(monkeypatch, key, "trainer.execution.compile=true")


def test_one_rank_is_refused_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    check_ranks(check_config(composed("device=cpu", "trainer.watch_every=5", "data.batch_size=1"), Trust()))


def test_another_version_on_one_rank_is_named_with_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def gathered(own: tuple[dict[str, str], dict[str, Any], str]) -> list[Any]:
        versions, values, _ = own
        return [own, (versions | {"torch": "2.10.0"}, values, "node2")]

    monkeypatch.setattr("cnnlab.config.check_ranks.gathered", gathered)
    with pytest.raises(ConfigError, match=r"torch is '2.*' on rank 0 and '2.10.0' on rank 1 \(node2\): expected"):
        check_alike(RunConfig(compose_config((), None)))
