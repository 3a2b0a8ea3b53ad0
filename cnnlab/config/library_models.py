"""`model=resnet18` and `model=timm/NAME`: the networks of torchvision and of timm are choices of the group `model`.

torchvision's names stand here, so that a command is composed, and a misspelt name refused, without torch; timm's are
looked up by the block, in timm's own registry. Both are a source of configs of their own, after all folders: what lies
in Hydra's `ConfigStore` is merged into a file of the same name.
"""

from collections.abc import Iterable

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

NAMES = (
    "alexnet",
    "convnext_base",
    "convnext_large",
    "convnext_small",
    "convnext_tiny",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_b4",
    "efficientnet_b5",
    "efficientnet_b6",
    "efficientnet_b7",
    "efficientnet_v2_l",
    "efficientnet_v2_m",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mnasnet0_75",
    "mnasnet1_0",
    "mnasnet1_3",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "regnet_x_16gf",
    "regnet_x_1_6gf",
    "regnet_x_32gf",
    "regnet_x_3_2gf",
    "regnet_x_400mf",
    "regnet_x_800mf",
    "regnet_x_8gf",
    "regnet_y_128gf",
    "regnet_y_16gf",
    "regnet_y_1_6gf",
    "regnet_y_32gf",
    "regnet_y_3_2gf",
    "regnet_y_400mf",
    "regnet_y_800mf",
    "regnet_y_8gf",
    "resnet101",
    "resnet152",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "shufflenet_v2_x1_5",
    "shufflenet_v2_x2_0",
    "squeezenet1_0",
    "squeezenet1_1",
    "swin_b",
    "swin_s",
    "swin_t",
    "swin_v2_b",
    "swin_v2_s",
    "swin_v2_t",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
    "vit_b_16",
    "vit_b_32",
    "vit_h_14",
    "vit_l_16",
    "vit_l_32",
    "wide_resnet101_2",
    "wide_resnet50_2",
)
SUMMARY = f"one of torchvision's {len(NAMES)} networks, such as resnet18; timm/NAME is one of timm's"
TIMM = "timm/"


class LibrarySource(ConfigSource):
    """The configs `model/NAME` of torchvision and `model/timm/NAME`."""

    @staticmethod
    def scheme() -> str:
        return "libraries"

    def load_config(self, config_path: str) -> ConfigResult:
        if not self.is_config(config_path):
            raise ConfigLoadError(f"there is no {config_path}")
        name = config_path.removeprefix("model/").removesuffix(".yaml")
        if name.startswith(TIMM):
            network = {"type": "timm", "name": name.removeprefix(TIMM), "pretrained": False, "num_classes": "classes"}
        else:
            network = {"type": "torchvision", "name": name, "weights": None, "num_classes": "classes"}
        config = OmegaConf.create({"init": "default", "blocks": {"network": network}})
        return ConfigResult(provider=self.provider, path=self.full_path(), config=config, header={"package": None})

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path.strip("/") in ("", "model")

    def is_config(self, config_path: str) -> bool:
        group, _, name = config_path.partition("/")
        name = name.removesuffix(".yaml")
        return group == "model" and (name in NAMES or (name.startswith(TIMM) and name != TIMM))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        below = {"": (ObjectType.GROUP, ["model"]), "model": (ObjectType.CONFIG, [*NAMES])}
        kind, names = below.get(config_path.strip("/"), (None, []))
        return names if results_filter in (None, kind) else []


class LibrarySearchPath(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        # --config-dir goes before the first "schema" of the path: so this comes after every folder
        search_path.append("schema", "libraries://models")


def summarized(choices: Iterable[str]) -> list[str]:
    """Choices as they are listed: those of libraries in a word, last; no `base`, which others start from."""
    choices = {choice for choice in choices if choice.rpartition("/")[2] != "base"}
    if not choices.issuperset(NAMES):
        return sorted(choices)
    return [*sorted(choices - set(NAMES)), f"or {SUMMARY}"]
