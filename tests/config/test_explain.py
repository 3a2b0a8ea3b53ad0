"""What Hydra, OmegaConf and YAML refuse, explained."""

from pathlib import Path

import pytest

from cnnlab.api import compose
from cnnlab.config.saved_config import resolved
from cnnlab.runtime.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=*&^", "seed=*&^: expected KEY=VALUE"),
        ("seed", "seed: expected KEY=VALUE"),
        ("=3", "=3: expected KEY=VALUE"),
        ("model.blocks.conv1.", "model.blocks.conv1.: expected KEY=VALUE"),
        ("seed=1,2", "seed: expected one value, received 1,2; -m runs a job for each"),
        ("seed=choice(1,2)", "seed: expected one value, received choice(1,2); -m runs a job for each"),
        ("experiment=null", "experiment: expected the name of a file in configs/experiment, received null"),
        ("data=???", "data: expected the name of a file in configs/data, received ???"),
        ("trainer=[]", "trainer: expected the name of a file in configs/trainer, received []"),
        ("name=${groups_and_choices:1}", "name: "),
        ("lr=0.1", "lr: there is no such key; did you mean 'optimizer.lr'?"),
        ("epochs=3", "epochs: there is no such key; did you mean 'trainer.epochs'?"),
        ("data.augment.flip.p=0.5", "nothing is set in data.augment; 'data.augment.flip={type: NAME, …}' adds"),
        ("metrics.f1=null", "metrics.f1: nothing is set in metrics; 'metrics.f1={type: NAME, …}' adds"),
        ("optimizer.groups.bias.lr=1", "nothing is set in optimizer.groups; 'optimizer.groups.bias={lr: VALUE}' adds"),
        ("published.value=1", "published.value: nothing is set in published; 'published={value: VALUE, …}' adds"),
        ("hydra.job.env_set.A=1", "nothing is set in hydra.job.env_set; '+hydra.job.env_set.A=VALUE' adds"),
        ("kernel_size=3", "did you mean 'model.blocks.conv1.kernel_size' or 'model.blocks.pool1.kernel_size' or"),
    ],
)
def test_a_message_names_the_key_and_nothing_of_a_parser(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        resolved(compose(override))
    assert message in str(refusal.value)
    for internal in ("LexerNoViableAltException", "<lambda>", "Error parsing", "Config group override", "multirun"):
        assert internal not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5\n", "YAML: expected a mapping, received int"),
        ("defaults: [mine]\n", "YAML: expected configs that do not include themselves"),
        ("blocks: " + "[" * 200 + "]" * 200, "YAML: expected configs that do not include themselves"),
        ("blocks: {null: flatten}\n", "Incompatible key type 'NoneType'"),
    ],
)
def test_a_file_that_cannot_be_composed_is_one_message(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=f"^{message}"):
        compose("model=mine", config_dir=tmp_path)
