"""What README.md, CONTRIBUTING.md and the guides say is what the code does; `test_guides.py` runs their commands."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from cnnlab.blocks import BLOCKS
from cnnlab.network import build_network
from cnnlab.runtime.checks import number

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
COMPOSE = (DOCS / "guides" / "compose.md").read_text(encoding="utf-8")
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
PAGES = [*REPOSITORY.glob("*.md"), *(DOCS / "guides").glob("*.md")]


def section(text: str, title: str) -> str:
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    made = (
        "../reference/",
        "../contributing.md",
        "../security.md",
        "../notebook.md",
    )  # by `make docs`, which checks them
    missing = [link for link in links if not link.startswith(made) and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_every_file_that_is_named_is_there(text: str) -> None:
    named = set(re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|yaml|md))`", text)) - {"cnnlab/blocks/response.py"}
    places = [REPOSITORY, REPOSITORY / "cnnlab"]
    written_by_the_reader = {"tests/blocks/test_response.py"}
    missing = {
        name
        for name in named - written_by_the_reader
        if not any((place / name).exists() for place in places) and not list(REPOSITORY.glob(f"cnnlab/*/{name}"))
    }
    assert not missing


def test_the_block_of_the_walk_through_works(monkeypatch: pytest.MonkeyPatch) -> None:
    source = section(CONTRIBUTING, "Add a block").split("```python\n")[1].split("```")[0]
    scope: dict[str, Any] = {"torch": torch, "nn": nn, "Tensor": Tensor, "number": number}
    exec(source, scope)
    monkeypatch.setitem(BLOCKS, "global_response_norm", scope["GlobalResponseNorm"])
    network = build_network((8, 5, 5), {"grn1": "global_response_norm"})
    x_NCHW = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(network(x_NCHW), x_NCHW)  # as it starts
    torch.nn.init.constant_(network.get_parameter("grn1.weight"), 2)
    norm_NC = x_NCHW.square().sum((2, 3)).sqrt()
    expected_NCHW = x_NCHW * (1 + 2 * norm_NC / norm_NC.mean(1, keepdim=True))[..., None, None]
    torch.testing.assert_close(network(x_NCHW), expected_NCHW)


@pytest.mark.parametrize("text", [README, COMPOSE], ids=["README", "compose"])
def test_the_network_of_a_page_builds(text: str) -> None:
    model = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    network = build_network((1, 28, 28), model["blocks"], classes=10, init=model["init"])
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_the_error_of_the_guide_is_what_is_said() -> None:
    expected = re.search(r"error: (model\.blocks\.conv2: .*)", COMPOSE)
    assert expected
    blocks = {name: {"type": "conv", "out_channels": 20, "kernel_size": 5} for name in ("conv1", "conv2")}
    with pytest.raises(ValueError, match=re.escape(expected[1])):
        build_network((1, 8, 8), blocks)
