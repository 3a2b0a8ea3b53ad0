"""Where images come from and how they reach the training step.

A source knows its sizes without reading images (`describe`), checks that its files are there (`check`), and reads one
split at a time (`read`).
"""

from collections.abc import Callable

from cnnlab.data.arrays import Arrays
from cnnlab.data.digits import Digits
from cnnlab.data.expanded_mnist import ExpandedMNIST
from cnnlab.data.image_folder import ImageFolder
from cnnlab.data.labels_csv import LabelsCSV
from cnnlab.data.logic_gates import LogicGates
from cnnlab.data.shapes import Shapes
from cnnlab.data.source import Source
from cnnlab.data.torchvision_sets import CIFAR10, CIFAR100, KMNIST, MNIST, SVHN, FashionMNIST

SOURCES: dict[str, Callable[..., Source]] = {
    "digits": Digits,
    "mnist": MNIST,
    "expanded_mnist": ExpandedMNIST,
    "fashion_mnist": FashionMNIST,
    "kmnist": KMNIST,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "svhn": SVHN,
    "image_folder": ImageFolder,
    "csv": LabelsCSV,
    "arrays": Arrays,
    "logic_gates": LogicGates,
    "shapes": Shapes,
}
