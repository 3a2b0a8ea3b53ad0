"""`data.preprocess=pretrained`, against torchvision's and timm's own transforms."""

from typing import Any

import pytest
import torch
from commands import composed
from image_folders import noise
from PIL import Image
from torch import Tensor
from torchvision import models

from cnnlab.components import Trust
from cnnlab.config.check import check_config
from cnnlab.config.preprocessing import resolve_preprocess
from cnnlab.data import SOURCES
from cnnlab.data.normalization import Normalization, normalized
from cnnlab.runtime.errors import ConfigError

SIDES = [64, 100, 223, 224, 225, 256, 300, 451, 37, 520]
IMAGES = [
    Image.fromarray(noise(height // 3 + 1, width // 3 + 1, seed=width)).resize((width, height))
    for width, height in [*zip(SIDES, reversed(SIDES), strict=True), *zip(SIDES, [240] * 10, strict=True)]
]
FOLDER = ("data=image_folder", "data.root=nowhere", "data.preprocess=pretrained")
RESNET18 = ("model=resnet18", "model.blocks.network.weights=DEFAULT")


def config(*overrides: str) -> dict[str, Any]:
    """By Hydra's rules alone, which ask for `+` where the YAML lacks a key."""
    return composed(*(f"+{one}" if one.startswith("data.preprocess") else one for one in overrides))


def seen(by: dict[str, Any]) -> list[Tensor]:
    """Each image as the network sees it, (3, H, W)."""
    data = {"channels": 3, "test_fraction": 0, "root": "nowhere", **by}
    arguments = ("size", "resize", "resize_size", "interpolation", "channels", "test_fraction", "root")
    reader = SOURCES["image_folder"](**{name: data[name] for name in arguments}).reader((3, 1, 1))  # its size is given
    x_NCHW = torch.stack([reader.convert(image) for image in IMAGES])
    tensors = Normalization.fit(data["normalize"], x_NCHW).tensors(torch.device("cpu"))
    return list(normalized(x_NCHW.float(), *tensors))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("ResNet18_Weights.IMAGENET1K_V1", {"size": 224, "resize_size": 256, "interpolation": "bilinear"}),
        ("EfficientNet_B1_Weights.IMAGENET1K_V2", {"size": 240, "resize_size": 255, "interpolation": "bilinear"}),
        ("ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1", {"size": 384, "resize_size": 384, "interpolation": "bicubic"}),
    ],
)
def test_images_are_those_that_torchvisions_transforms_give(weights: str, expected: dict[str, Any]) -> None:
    entry = models.get_weight(weights)
    name = {"ResNet18": "resnet18", "EfficientNet_B1": "efficientnet_b1", "ViT_B_16": "vit_b_16"}
    network = f"model={name[weights.partition('_Weights')[0]]}"
    found = resolve_preprocess(config(*FOLDER, network, f"model.blocks.network.weights={entry.name}"))
    assert found | expected == found
    for ours, image in zip(seen(found), IMAGES, strict=True):
        torch.testing.assert_close(ours, entry.transforms()(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test_resnet.r160_in1k", {"size": 160, "resize_size": 168, "resize": "crop", "interpolation": "bilinear"}),
        ("convnext_tiny.fb_in1k", {"size": 224, "resize_size": 256, "resize": "crop", "interpolation": "bicubic"}),
        ("dm_nfnet_f0.dm_in1k", {"size": 192, "resize_size": 213, "resize": "squash", "interpolation": "bicubic"}),
    ],
)
def test_images_are_those_that_timms_transforms_give(name: str, expected: dict[str, Any]) -> None:
    timm = pytest.importorskip("timm")
    found = resolve_preprocess(config(*FOLDER, f"model=timm/{name}"))
    assert found | expected == found
    pretrained = timm.get_pretrained_cfg(name).to_dict()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=pretrained))
    for ours, image in zip(seen(found), IMAGES, strict=True):
        torch.testing.assert_close(ours, transform(image), rtol=0, atol=1e-5)


def test_weights_of_a_file_expect_what_the_default_ones_do() -> None:
    by_name = resolve_preprocess(config(*FOLDER, *RESNET18))
    experiment = ("experiment=images_pretrained", "data.root=nowhere")
    assert resolve_preprocess(composed(*experiment)) == by_name
    assert resolve_preprocess(composed(*experiment, "model.blocks.network.pretrained=mine.pth")) == by_name


def test_grey_images_take_the_mean_of_the_three_channels_numbers() -> None:
    normalize = resolve_preprocess(config(*FOLDER, *RESNET18, "data.channels=1"))["normalize"]
    assert normalize["mean"] == [pytest.approx((0.485 + 0.456 + 0.406) / 3)]
    assert normalize["std"] == [pytest.approx((0.229 + 0.224 + 0.225) / 3)]


def test_without_the_word_nothing_is_changed() -> None:
    assert resolve_preprocess(config("data=image_folder", "data.root=nowhere", *RESNET18)) == {}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((*FOLDER,), "pretrained is for one network of torchvision or timm, .* the model has none"),
        ((*FOLDER, "model=resnet18"), "needs the weights: expected model.blocks.network.pretrained=true"),
        ((*FOLDER, "model=resnet18", "model.blocks.network.weights=V9"), "blocks.network.weights: resnet18 has no wei"),
        (
            ("data=cifar10", FOLDER[2], *RESNET18),
            "the images of cifar10 have one size: .* 'data.normalize={mean: .0.48",
        ),
    ],
)
def test_what_has_no_preprocessing_is_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_preprocess(config(*overrides))


def test_another_word_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.preprocess: expected pretrained or null, received 'model'"):
        check_config(config("data.preprocess=model"), Trust())


def test_timms_unusual_sizes_are_refused() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match="images of 1024×768 with crop_mode squash: expected a square"):
        resolve_preprocess(config(*FOLDER, "model=timm/vit_base_patch16_sapiens2.fb"))
