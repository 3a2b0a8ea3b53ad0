"""The networks of configs/model/blocks and their references: torchvision's, or written here as in their papers.

`docs/make_networks.py` writes what `compared` measures into the docs.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from cnnlab.config.compose import CONFIGS
from cnnlab.network import NetworkPlan, plan_network
from cnnlab.runtime.errors import Complaints

FOLDER = CONFIGS / "model" / "blocks"


class AddedUp(nn.Module):
    """relu?(blocks(x) + shortcut(x))"""

    def __init__(self, blocks: nn.Module, shortcut: nn.Module | None = None, relu: bool = False) -> None:
        super().__init__()
        self.blocks = blocks
        self.shortcut = shortcut or nn.Identity()
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        total = self.blocks(x) + self.shortcut(x)
        return F.relu(total) if self.relu else total


def conv3x3(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False)


def pre_activated(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    """A block of a wide residual network, whose first norm is its shortcut's too where the size changes."""
    second = [conv3x3(inputs, outputs, stride), nn.BatchNorm2d(outputs), nn.ReLU(), conv3x3(outputs, outputs)]
    first = [nn.BatchNorm2d(inputs), nn.ReLU()]
    if inputs == outputs:
        return [AddedUp(nn.Sequential(*first, *second))]
    return [*first, AddedUp(nn.Sequential(*second), nn.Conv2d(inputs, outputs, 1, stride, bias=False))]


def wide_resnet(depth: int = 16, factor: int = 4) -> nn.Module:
    """arXiv 1605.07146, table 1"""
    channels, layers = 16, list[nn.Module]([conv3x3(3, 16)])
    for index, outputs in enumerate((16 * factor, 32 * factor, 64 * factor)):
        for block in range((depth - 4) // 6):
            layers += pre_activated(channels, outputs, 2 if index and not block else 1)
            channels = outputs
    end = [nn.BatchNorm2d(channels), nn.ReLU(), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(channels, 10)]
    return nn.Sequential(*layers, *end)


def bottleneck(inputs: int, width: int, outputs: int, stride: int) -> nn.Module:
    """arXiv 1611.05431, figure 3(c), of 8 groups."""
    blocks = nn.Sequential(
        *(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(conv3x3(width, width, stride, groups=8), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
    )
    if inputs == outputs:
        return AddedUp(blocks, relu=True)
    shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    return AddedUp(blocks, shortcut, relu=True)


def resnext() -> nn.Module:
    """arXiv 1611.05431, section 5.3"""
    channels, layers = 64, list[nn.Module]([conv3x3(3, 64), nn.BatchNorm2d(64), nn.ReLU()])
    for index, outputs in enumerate((256, 512, 1024)):
        for block in range(3):
            layers.append(bottleneck(channels, 2 * outputs, outputs, 2 if index and not block else 1))
            channels = outputs
    return nn.Sequential(*layers, nn.AvgPool2d(8), nn.Flatten(), nn.Linear(channels, 10))


def convolutions(*layers: Sequence[int] | nn.Module) -> nn.Module:
    """Each (in, out, kernel, stride, padding) with a ReLU after it; the mean of each channel at the end."""
    modules = [
        (layer,) if isinstance(layer, nn.Module) else (nn.Conv2d(*layer), nn.ReLU())  # type: ignore[arg-type]
        for layer in layers
    ]
    return nn.Sequential(*(module for group in modules for module in group), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def all_cnn() -> nn.Module:
    """arXiv 1412.6806, table 2, All-CNN-C"""
    wide = [(192, 192, 3, 2, 1), (192, 192, 3, 1, 0), (192, 192, 1, 1, 0), (192, 10, 1, 1, 0)]
    start = [(3, 96, 3, 1, 1), (96, 96, 3, 1, 1), (96, 96, 3, 2, 1), (96, 192, 3, 1, 1), (192, 192, 3, 1, 1)]
    return convolutions(*start, *wide)


def network_in_network() -> nn.Module:
    """arXiv 1312.4400, section 4.2"""
    return convolutions(
        *((3, 192, 5, 1, 2), (192, 160, 1, 1, 0), (160, 96, 1, 1, 0), nn.MaxPool2d(3, 2, 1)),
        *((96, 192, 5, 1, 2), (192, 192, 1, 1, 0), (192, 192, 1, 1, 0), nn.AvgPool2d(3, 2, 1)),
        *((192, 192, 3, 1, 1), (192, 192, 1, 1, 0), (192, 10, 1, 1, 0)),
    )


class LeNet5(nn.Module):
    """LeCun et al. 1998, section II.B"""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 6, 5)
        # S2 and S4 are a coefficient and a bias for each map
        self.s2 = nn.ParameterList([torch.ones(6), torch.zeros(6)])
        self.c3 = nn.Conv2d(6, 16, 5)
        self.s4 = nn.ParameterList([torch.ones(16), torch.zeros(16)])
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, 84)
        self.output = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = squash(subsampled(squash(self.c1(F.pad(x, (2, 2, 2, 2)))), *self.s2))
        x = squash(subsampled(squash(self.c3(x)), *self.s4))
        return self.output(squash(self.f6(squash(self.c5(x)).flatten(1))))


def squash(x: Tensor) -> Tensor:
    return 1.7159 * torch.tanh(x * 0.66666667)


def subsampled(x: Tensor, coefficient: Tensor, bias: Tensor) -> Tensor:
    mean = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    return mean * coefficient[:, None, None] + bias[:, None, None]


class DenseLayer(nn.Sequential):
    """arXiv 1608.06993, section 3: what it adds comes after the channels that reach it."""

    def __init__(self, inputs: int, growth: int) -> None:
        squeezed = [nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, 4 * growth, 1, bias=False)]
        super().__init__(*squeezed, nn.BatchNorm2d(4 * growth), nn.ReLU(), conv3x3(4 * growth, growth))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, super().forward(x)], 1)


def densenet(depth: int = 100, growth: int = 12) -> nn.Module:
    """arXiv 1608.06993, section 4.2"""
    channels = 2 * growth
    layers = list[nn.Module]([conv3x3(3, channels)])
    for block in range(3):
        if block:
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1, bias=False)]
            layers.append(nn.AvgPool2d(2))
            channels //= 2
        for _ in range((depth - 4) // 6):
            layers.append(DenseLayer(channels, growth))
            channels += growth
    end = [nn.BatchNorm2d(channels), nn.ReLU(), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(channels, 10)]
    return nn.Sequential(*layers, *end)


def inception() -> nn.Module:
    """torchvision's googlenet without auxiliary classifiers"""
    return models.googlenet(aux_logits=False, transform_input=False, init_weights=False)


def airbench94() -> nn.Module:
    """arXiv 2404.00498, section 3 and its listing of the network."""
    layers: list[nn.Module] = [nn.Conv2d(3, 24, 2), nn.GELU()]
    for inputs, outputs in ((24, 64), (64, 256), (256, 256)):
        first = [conv3x3(inputs, outputs), nn.MaxPool2d(2), nn.BatchNorm2d(outputs, eps=1e-12), nn.GELU()]
        layers += [*first, conv3x3(outputs, outputs), nn.BatchNorm2d(outputs, eps=1e-12), nn.GELU()]
    return nn.Sequential(*layers, nn.MaxPool2d(3), nn.Flatten(), nn.Linear(256, 10, bias=False), Ninth())


class Ninth(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 9


def vision_transformer() -> nn.Module:
    """torchvision's VisionTransformer of this size"""
    return models.VisionTransformer(
        image_size=224, patch_size=16, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768
    )


def after(name: str, other: str) -> Callable[[list[str]], list[str]]:
    """Puts `name` behind the last one that begins with `other`: torch lists a module's own parameters first."""

    def ordered(names: list[str]) -> list[str]:
        rest = [one for one in names if one != name]
        place = max(index for index, one in enumerate(rest) if one.startswith(other)) + 1
        return [*rest[:place], name, *rest[place:]]

    return ordered


def layer_scales_last(names: list[str]) -> list[str]:
    for name in [one for one in names if one.endswith(".layer_scale")]:
        names = after(name, name.removesuffix("layer_scale"))(names)
    return names


@dataclass(frozen=True)
class Known:
    """A network of the folder, what it is compared with, and the images that it was published for."""

    name: str
    reference: Callable[[], nn.Module]
    input_shape: tuple[int, int, int]
    classes: int = 10
    ordered: Callable[[list[str]], list[str]] = list  # the names of the reference's tensors, as they are used

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.yaml"

    @property
    def origin(self) -> str:
        """What the reference is."""
        if self.reference.__module__.startswith("torchvision."):
            return f"torchvision's {self.reference.__name__}"
        return inspect.getdoc(self.reference) or ""


OF_IMAGENET = {"input_shape": (3, 224, 224), "classes": 1000}
OF_CIFAR = {"input_shape": (3, 32, 32)}
KNOWN = [
    Known("lenet5_1998", LeNet5, (1, 28, 28)),
    Known("nin", network_in_network, **OF_CIFAR),
    Known("wrn16_4", wide_resnet, **OF_CIFAR),
    Known("airbench94", airbench94, **OF_CIFAR),
    Known("allcnn", all_cnn, **OF_CIFAR),
    Known("resnext29", resnext, **OF_CIFAR),
    Known("densenet_bc100", densenet, **OF_CIFAR),
    Known("vgg11", models.vgg11, **OF_IMAGENET),
    Known("resnet18", models.resnet18, **OF_IMAGENET),
    Known("resnet50", models.resnet50, **OF_IMAGENET),
    Known("inception", inception, **OF_IMAGENET),
    Known("squeezenet1_1", models.squeezenet1_1, **OF_IMAGENET),
    Known("mobilenetv2", models.mobilenet_v2, **OF_IMAGENET),
    Known("convnext_tiny", models.convnext_tiny, **OF_IMAGENET, ordered=layer_scales_last),
    Known("vit_tiny", vision_transformer, **OF_IMAGENET, ordered=after("class_token", "conv_proj.")),
    Known("efficientnet_b0", models.efficientnet_b0, **OF_IMAGENET),
]
FAST = ("squeezenet1_1", "wrn16_4", "vit_tiny", "airbench94")  # branches, projections, attention, plain


def planned(known: Known) -> NetworkPlan:
    model = yaml.safe_load(known.path.read_text(encoding="utf-8"))
    complaints = Complaints()
    plan = plan_network(known.input_shape, model["blocks"], complaints, classes=known.classes, init=model["init"])
    complaints.raise_if_any()
    assert plan is not None
    return plan


def filled(reference: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
    """No scale of one, no bias of zero, and the statistics of noise: the output depends on every layer."""
    norms = [module for module in reference.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.dim() < 2 or parameter.std() == 0:
                parameter.uniform_(0.5, 1.5)
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over batches, of which there is one
        if norms:
            reference.train()(torch.randn(2, *input_shape, dtype=torch.float64))
    return reference.eval()


def copied(network: nn.Module, reference: nn.Module, ordered: Callable[[list[str]], list[str]]) -> None:
    """The reference's tensors become those of the network."""
    theirs, own = reference.state_dict(), network.state_dict()
    for (name, tensor), other in zip(own.items(), ordered(list(theirs)), strict=True):
        assert tensor.numel() == theirs[other].numel(), (name, other)
        tensor.copy_(theirs[other].view_as(tensor))


@dataclass(frozen=True)
class Comparison:
    """A network's figures; outputs are (1, classes)."""

    parameters: tuple[int, int, int]  # of its table, of the network and of the reference
    macs: tuple[float, float]  # of its table and of the reference
    output: Tensor
    expected: Tensor

    @property
    def difference(self) -> float:
        """Of the outputs: the norm of their difference over the reference's norm."""
        return float((self.output - self.expected).norm() / self.expected.norm())


def compared(known: Known) -> Comparison:
    """Both networks in float64 and in evaluation mode, with equal weights and statistics, on one image of noise."""
    plan, reference = planned(known), filled(known.reference().double(), known.input_shape)
    network = plan.build().double().eval()
    copied(network, reference, known.ordered)
    x_NCHW = torch.randn(1, *known.input_shape, dtype=torch.float64)
    with torch.no_grad(), mock.patch.object(torch.backends.mha, "get_fastpath_enabled", return_value=False):
        with FlopCounterMode(display=False) as counter:  # does not count the products of the fast path
            expected = reference(x_NCHW)
        output = network(x_NCHW)
    own, theirs = (sum(parameter.numel() for parameter in one.parameters()) for one in (network, reference))
    parameters, macs = (sum(getattr(row, name) for row in plan.rows) for name in ("parameters", "macs"))
    return Comparison((parameters, own, theirs), (macs, counter.get_total_flops() / 2), output, expected)
