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
