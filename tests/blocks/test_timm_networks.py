"""timm's networks as blocks, against timm itself."""

import importlib.util
from typing import Any

import pytest
import torch

from cnnlab.blocks.timm_networks import timm_config, timm_network
from cnnlab.runtime.errors import ArgumentError

timm = pytest.importorskip("timm")


@pytest.mark.parametrize(
    ("name", "shape", "own"),
    [
        ("test_resnet.r160_in1k", (3, 40, 48), {}),
        ("test_convnext", (1, 32, 32), {}),
        ("test_vit", (4, 48, 32), {"img_size": (48, 32)}),  # an architecture for one size
    ],
)
def test_it_computes_what_timms_own_does(name: str, shape: tuple[int, int, int], own: dict[str, Any]) -> None:
    ours = timm_network(name, shape, num_classes=7).eval()
    theirs = timm.create_model(name, num_classes=7, in_chans=shape[0], **own).eval()
    theirs.load_state_dict(ours.state_dict())
    x_NCHW = torch.randn(2, *shape)
    torch.testing.assert_close(ours(x_NCHW), theirs(x_NCHW), rtol=0, atol=0)


def test_without_a_number_of_classes_it_has_its_weights() -> None:
    with torch.device("meta"):
        x_NCHW = torch.empty(2, 3, 32, 32)
        assert timm_network("test_resnet", (3, 32, 32))(x_NCHW).shape == (2, 1000)
        trunk = timm_network("test_resnet", (3, 32, 32), num_classes=0)
        assert trunk(x_NCHW).shape == (2, trunk.num_features)


def test_its_weights_follow_from_torchs_seed() -> None:
    def drawn() -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        state: dict[str, torch.Tensor] = timm_network("test_vit", (3, 32, 32)).state_dict()
        return state

    first, second = drawn(), drawn()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_options_go_to_timms_builder() -> None:
    with torch.device("meta"):
        assert timm_network("test_resnet", (3, 32, 32), drop_rate=0.25).drop_rate == 0.25


def test_no_weights_are_read_in_the_constructor(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)
    with torch.device("meta"):
        network = timm_network("test_resnet", (3, 32, 32), num_classes=5, pretrained=True)
    assert all(parameter.is_meta for parameter in network.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "convnex_tiny.fb_in1k"}, "name: timm has no network 'convnex_tiny.fb_in1k'; did you mean 'convnext_"),
        (
            {"name": "test_resnet.r160"},
            "name: timm's test_resnet has no weights 'r160'; expected test_resnet.r160_in1k",
        ),
        ({"name": "hf-hub:timm/resnet18"}, "name: timm has no network 'hf-hub:timm/resnet18'"),
        ({"name": "local-dir:/tmp"}, "name: timm has no network 'local-dir:/tmp'"),
        ({"name": "../test_resnet"}, "name: timm has no network '../test_resnet'"),
        ({"name": "darknet17", "pretrained": True}, "pretrained: timm has no weights for darknet17"),
        ({"name": "resnet10t", "num_classes": -1}, "num_classes: expected a whole number ≥ 0"),
        ({"name": "test_resnet", "drop_rat": 0.1}, "drop_rat: timm's test_resnet has .* did you mean 'drop_rate'"),
        ({"name": "test_resnet", "checkpoint_path": "x"}, "checkpoint_path: expected no such argument"),
        ({"name": "test_resnet", "pretrained_cfg_overlay": {"file": "x"}}, "pretrained_cfg_overlay: expected no such"),
        ({"name": "test_vit", "img_size": 64}, "img_size: expected no such argument: .* the data"),
    ],
)
def test_what_it_does_not_take_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message), torch.device("meta"):
        timm_network(**{"input_shape": (3, 32, 32)} | arguments)


def test_features_are_refused() -> None:
    with pytest.raises(ValueError, match="expected an image, received features"):
        timm_network("test_resnet", (40,))


def test_without_the_package_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match=r"model=timm/resnet50 needs timm: pip install 'cnnlab\[timm\]'"):
        timm_config("resnet50")
