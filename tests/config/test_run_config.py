import pytest
from omegaconf import OmegaConf

from cnnlab.config.run_config import RunConfig

VALUES = {"optimizer": {"lr": 0.05}, "model": {"blocks": {"relu1": "relu"}}, "trainer": {"ema": None}}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("++trainer.ema=null", {"trainer.ema": None}),
        ("model=mlp", {"model": "mlp"}),
        ("optimizer.lr=5e-2", {"optimizer.lr": 0.05}),
        ("~model.blocks.dropout1", {"model.blocks.dropout1": "removed"}),
        ("+model.blocks.norm1={type: batch_norm}", {"model.blocks.norm1": "{type: batch_norm}"}),
        ("run_dir=here", {}),
        ("device=cpu", {}),
    ],
)
def test_hyperparameters_are_the_learning_rate_and_what_was_chosen(override: str, expected: dict[str, object]) -> None:
    config = RunConfig(OmegaConf.create(VALUES), (override,))
    assert config.hyperparameters == {"optimizer.lr": 0.05} | expected


@pytest.mark.parametrize("given", ["++trainer.ema=0.9", "trainer.ema=0.9"])
def test_a_key_that_is_left_out_is_neither_in_the_config_nor_among_the_overrides(given: str) -> None:
    config = RunConfig(OmegaConf.create(VALUES), (given, "trainer.ema_start=1")).without("trainer.ema")
    assert config.values == VALUES | {"trainer": {}}
    assert config.overrides == ("trainer.ema_start=1",)
    assert "ema" in VALUES["trainer"]
