"""torchvision's networks as blocks, against torchvision itself."""

import warnings

import pytest
import torch
from torchvision import models

from cnnlab.blocks.torchvision_networks import torchvision_network
from cnnlab.runtime.errors import ArgumentError


def test_it_computes_what_torchvisions_own_does() -> None:
    ours = torchvision_network("resnet18", num_classes=7).eval()
    theirs = models.resnet18(num_classes=7).eval()
    theirs.load_state_dict(ours.state_dict())
    x_NCHW = torch.randn(2, 3, 40, 40)
    torch.testing.assert_close(ours(x_NCHW), theirs(x_NCHW), rtol=0, atol=0)


def test_a_grey_image_is_three_equal_channels() -> None:
    network = torchvision_network("squeezenet1_1", num_classes=3).eval()
    x_N1HW = torch.randn(2, 1, 40, 40)
    torch.testing.assert_close(network(x_N1HW), network(x_N1HW.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 4, 40, 40), "1 channel \\(grey\\) or 3, received 4 channels"), ((2, 40), "an image, received features")],
)
def test_other_inputs_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torchvision_network("squeezenet1_1")(torch.zeros(shape))


@pytest.mark.parametrize(("name", "classes"), [("googlenet", 5), ("inception_v3", None)])
def test_networks_with_auxiliary_heads_give_one_tensor_in_training(name: str, classes: int | None) -> None:
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("error")
        network = torchvision_network(name, **({"num_classes": classes} if classes else {})).train()
        assert network(torch.empty(2, 3, 96, 96)).shape == (2, classes or 1000)  # ImageNet's


def test_pretrained_googlenet_takes_its_input_as_it_was_trained() -> None:
    with torch.device("meta"):
        assert torchvision_network("googlenet", weights="DEFAULT").transform_input is True
        assert torchvision_network("googlenet").transform_input is False


def test_no_weights_are_read_in_the_constructor(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torch.load", refuse)
    with torch.device("meta"):
        network = torchvision_network("resnet18", num_classes=10, weights="IMAGENET1K_V1")
    assert all(parameter.is_meta for parameter in network.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet81"}, "name: .*'resnet81'; did you mean 'resnet18'\\? expected one of its 80"),
        ({"name": "resnet50", "weights": "V2"}, "weights: resnet50 has no weights 'V2'.* IMAGENET1K_V1, IMAGENET1K_V2"),
        ({"name": "resnet18", "num_classes": 0}, "num_classes: expected a whole number ≥ 1"),
        ({"name": "resnet18", "dropout": 0.1}, "dropout: torchvision's resnet18 has no argument 'dropout'"),
    ],
)
def test_what_it_does_not_take_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message), torch.device("meta"):
        torchvision_network(**arguments)  # type: ignore[arg-type]
