"""What README.md and CONTRIBUTING.md promise is what the code does."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import composed
from torch import Tensor, nn

from cnnlab.blocks import BLOCKS
from cnnlab.config.compose import CONFIGS
from cnnlab.data.augmentation import AUGMENTATIONS
from cnnlab.network import build_network
from cnnlab.runtime.checks import integer

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text()
PACKAGE = str(REPOSITORY / "cnnlab")


def section(text: str, title: str) -> str:
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_every_file_that_is_named_is_there(text: str) -> None:
    named = set(re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|yaml|md))`", text)) - {"cnnlab/blocks/squeeze.py"}
    places = [REPOSITORY, REPOSITORY / "cnnlab"]
    written_by_the_reader = {"tests/blocks/test_squeeze.py"}
    runs = {"config.yaml", "overrides.yaml"}
    missing = {
        name
        for name in named - written_by_the_reader - runs
        if not any((place / name).exists() for place in places) and not list(REPOSITORY.glob(f"cnnlab/*/{name}"))
    }
    assert not missing


def test_the_block_of_the_walk_through_works(monkeypatch: pytest.MonkeyPatch) -> None:
    source = section(CONTRIBUTING, "Add a block").split("```python\n")[1].split("```")[0]
    scope: dict[str, Any] = {"nn": nn, "Tensor": Tensor, "integer": integer}
    exec(source, scope)
    monkeypatch.setitem(BLOCKS, "squeeze_excitation", scope["SqueezeExcitation"])
    network = build_network((8, 5, 5), {"se1": "squeeze_excitation"})
    x_NCHW = torch.randn(2, 8, 5, 5)
    means_NC = x_NCHW.mean((2, 3))
    gate_NC = network.se1.expand(network.se1.reduce(means_NC).relu()).sigmoid()
    torch.testing.assert_close(network(x_NCHW), x_NCHW * gate_NC[..., None, None])


def test_the_network_of_the_readme_builds() -> None:
    text = section(README, "Compose a network").split("```yaml\n")[1].split("```")[0]
    model = yaml.safe_load(text)
    network = build_network((1, 28, 28), model["blocks"], classes=10, init=model["init"])
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_the_error_of_the_readme_is_what_is_said() -> None:
    expected = re.search(r"error: (model\.blocks\.conv2: .*)", README)
    assert expected
    blocks = {name: {"type": "conv", "out_channels": 20, "kernel_size": 5} for name in ("conv1", "conv2")}
    with pytest.raises(ValueError, match=re.escape(expected[1])):
        build_network((1, 8, 8), blocks)


def test_the_readme_lists_every_published_experiment() -> None:
    presets = {f"book/{path.stem}" for path in (CONFIGS / "experiment" / "book").glob("*.yaml")}
    assert set(re.findall(r"`(book/[\w-]+)`", section(README, "Published experiments"))) == presets


def test_the_readme_lists_every_choice_of_every_group() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section(README, "Train"), re.MULTILINE))
    for group in (folder for folder in CONFIGS.iterdir() if folder.name != "trainer" and folder.is_dir()):
        choices = {path.relative_to(group).with_suffix("").as_posix() for path in group.rglob("*.yaml")}
        choices = {choice for choice in choices if choice != "base" and not choice.startswith("book/")}
        assert set(re.findall(r"`([\w/]+)`", rows[group.name])) == choices, group.name


def test_the_readme_lists_every_block() -> None:
    table = section(README, "Compose a network").split("| blocks | |")[1].split("```")[0]
    named = {
        name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1] if "|" in row else "")
    }
    assert named == set(BLOCKS)


def test_the_readme_lists_every_augmentation() -> None:
    table = section(README, "Train").split("| augmentations | |")[1].split("\n\n")[0]
    named = {name for row in table.splitlines() if "|" in row for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == set(AUGMENTATIONS)


def test_the_readme_gives_the_defaults_that_are() -> None:
    given = re.findall(
        r"`((?:data|optimizer|trainer)\.[\w.]+)=([\w.]+)`",
        section(README, "Train").split("| key |")[1].split("\n\n")[0],
    )
    shown_with_an_example = {"trainer.ema"}
    assert len(given) > 8
    for key, text in given:
        value: Any = composed()
        for part in key.split("."):
            value = value[part]
        assert key in shown_with_an_example or value == yaml.safe_load(text), key
