"""Published data sets through torchvision's own classes, downloaded where missing."""

import contextlib
import sys
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch

from cnnlab.data.source import DataSpec, Images, Source
from cnnlab.runtime.errors import ConfigError, first_line

DIGIT_NAMES = tuple(str(digit) for digit in range(10))
FASHION_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_NAMES = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
    "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
    "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster "
    "man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
    "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
    "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger "
    "tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)


class TorchvisionSet(Source):
    """A data set of `torchvision.datasets` with a training and a test split, read from where torchvision puts it.

    A subclass has the name of torchvision's class, which checks its files on every read.
    """

    spec: ClassVar[DataSpec]
    folder: ClassVar[str]  # below the root
    files: ClassVar[tuple[str, ...]]
    arguments: ClassVar[dict[str, dict[str, Any]]] = {"train": {"train": True}, "test": {"train": False}}

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def describe(self) -> DataSpec:
        return self.spec

    def check(self) -> None:
        name, tried = type(self).__name__, self._tried()
        if self._is_there():
            return
        missing = [folder for folder in (tried, *tried.parents) if not folder.exists()]
        print(f"{name} is not in {tried}: downloading it", file=sys.stderr)
        try:
            for split in self.spec.counts:
                if not self._is_there():  # most come in one piece
                    self._open(split, download=True)
        except Exception as error:  # torchvision raises RuntimeError, URLError, OSError, EOFError, …
            for folder in missing:  # that torchvision made in vain
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise ConfigError(
                f"data.root: {name} was not found in {tried} and could not be downloaded "
                f"({first_line(error).rstrip(':')}); on a machine with a network run\n"
                f'  python -c "{self._download_by_hand()}"\n'
                f"and set data.root (or the environment variable CNNLAB_DATA) to that folder"
            ) from error

    def read(self, split: str) -> Images:
        try:
            return self._images(self._open(split))
        except (RuntimeError, ValueError, AssertionError, EOFError, OSError) as error:
            raise ConfigError(
                f"data.root: the {split} files in {self._tried()} are damaged ({first_line(error)}): delete them, and "
                f"they are downloaded again"
            ) from error

    def _is_there(self) -> bool:
        return all((self._tried() / file).is_file() for file in self.files)

    def _tried(self) -> Path:
        return (self.root / self.folder).resolve()

    def _open(self, split: str, **options: Any) -> Any:
        """torchvision's data set."""
        import torchvision.datasets  # a second, and only these sources need it

        return getattr(torchvision.datasets, type(self).__name__)(self.root, **self.arguments[split], **options)

    def _download_by_hand(self) -> str:
        return f"import torchvision; torchvision.datasets.{type(self).__name__}('data', download=True)"

    @abstractmethod
    def _images(self, dataset: Any) -> Images:
        """The images of torchvision's data set, which has read its files."""


class MNIST(TorchvisionSet):
    """60,000 + 10,000 grey 28×28 handwritten digits (LeCun, Cortes and Burges), under `root/MNIST/raw`."""

    spec = DataSpec((1, 28, 28), {"train": 60_000, "test": 10_000}, DIGIT_NAMES)
    folder = "MNIST/raw"
    files = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )

    def _images(self, dataset: Any) -> Images:
        return Images.of(dataset.data[:, None], dataset.targets)


class FashionMNIST(MNIST):
    """60,000 + 10,000 grey 28×28 images of clothes (arXiv 1708.07747), under `root/FashionMNIST/raw`."""

    spec = DataSpec((1, 28, 28), {"train": 60_000, "test": 10_000}, FASHION_NAMES)
    folder = "FashionMNIST/raw"


class KMNIST(MNIST):
    """60,000 + 10,000 grey 28×28 Kuzushiji characters (arXiv 1812.01718), under `root/KMNIST/raw`."""

    spec = DataSpec(
        (1, 28, 28),
        {"train": 60_000, "test": 10_000},
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    )
    folder = "KMNIST/raw"


class CIFAR10(TorchvisionSet):
    """50,000 + 10,000 colour 32×32 photographs of 10 classes (Krizhevsky 2009), under
    `root/cifar-10-batches-py`. The files are pickles: torchvision opens them only where their MD5 is the published one.
    """

    spec = DataSpec((3, 32, 32), {"train": 50_000, "test": 10_000}, CIFAR10_NAMES)
    folder = "cifar-10-batches-py"
    files = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")

    def _images(self, dataset: Any) -> Images:
        x_NCHW = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
        return Images.of(x_NCHW, torch.tensor(dataset.targets))


class CIFAR100(CIFAR10):
    """50,000 + 10,000 colour 32×32 photographs of 100 classes (Krizhevsky 2009), under
    `root/cifar-100-python`, with their fine labels.
    """

    spec = DataSpec((3, 32, 32), {"train": 50_000, "test": 10_000}, tuple(CIFAR100_NAMES.split()))
    folder = "cifar-100-python"
    files = ("train", "test", "meta")


class SVHN(TorchvisionSet):
    """73,257 + 26,032 colour 32×32 house-number digits (Netzer et al. 2011), in `root` itself."""

    spec = DataSpec((3, 32, 32), {"train": 73_257, "test": 26_032}, DIGIT_NAMES)
    folder = ""
    files = ("train_32x32.mat", "test_32x32.mat")
    arguments: ClassVar = {"train": {"split": "train"}, "test": {"split": "test"}}

    def _images(self, dataset: Any) -> Images:
        return Images.of(torch.from_numpy(dataset.data).contiguous(), torch.from_numpy(dataset.labels))

    def _download_by_hand(self) -> str:
        return f"import torchvision; [torchvision.datasets.SVHN('data', s, download=True) for s in {[*self.arguments]}]"
